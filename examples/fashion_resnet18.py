"""torchvision's ResNet-18, adapted to the 28 x 28 grey images of Fashion-MNIST.

The data come from Debian's package (``apt install dataset-fashion-mnist``); set
FASHION_MNIST_DIR when the four ``.gz`` files lie elsewhere.
Train it with ``python examples/fashion_resnet18.py --epochs 10``,
audit it with ``nnaudit examples/fashion_resnet18.py``.
"""

import argparse
import functools
import gzip
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

BATCH_SIZE = 128
CLASSES = 10
VALIDATION_SIZE = 5_000


def read_idx(name: str) -> np.ndarray:
    """Read one gzipped idx file of unsigned bytes."""
    folder = Path(os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist"))
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `apt install dataset-fashion-mnist`, "
            "or set FASHION_MNIST_DIR to the folder that holds it."
        )
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


class FashionImages(Dataset):
    """Images normalised to zero mean and unit variance, augmented when asked."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool) -> None:
        self.images = images
        self.labels = labels
        augmentation = [v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip()] if augment else []
        self.transform = v2.Compose(
            [
                *augmentation,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=[0.286], std=[0.353]),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


@functools.cache
def load_splits() -> tuple[FashionImages, FashionImages]:
    """Hold out 5,000 of the 60,000 training images; the official test set stays untouched."""
    images = torch.tensor(read_idx("train-images-idx3-ubyte.gz")).unsqueeze(1)
    labels = torch.tensor(read_idx("train-labels-idx1-ubyte.gz"), dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    val, train = order[:VALIDATION_SIZE], order[VALIDATION_SIZE:]
    return (
        FashionImages(images[train], labels[train], augment=True),
        FashionImages(images[val], labels[val], augment=False),
    )


def train_loader() -> DataLoader:
    """Augmented batches of the training set, in a new random order every epoch."""
    train, _ = load_splits()
    return DataLoader(train, batch_size=BATCH_SIZE, shuffle=True)


def val_loader() -> DataLoader:
    """Batches of the validation set as they are, in a fixed order."""
    _, val = load_splits()
    return DataLoader(val, batch_size=BATCH_SIZE)


def build_model() -> nn.Module:
    """ResNet-18 from scratch, with a stem for one channel and small images."""
    model = resnet18(weights=None, num_classes=CLASSES)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the logits, averaged over the batch."""
    return F.cross_entropy(output, target)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum; biases and normalisation weights are not decayed."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 5e-4}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def metrics(output: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of the most likely class."""
    predicted = output.argmax(dim=1)
    return {
        "accuracy": (predicted == target).float().mean().item(),
        "f1": float(f1_score(target.cpu(), predicted.cpu(), average="macro")),
    }


def train_one_epoch(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """Take one optimizer step per batch and return the mean loss."""
    model.train()
    total = 0.0
    for batch in loader:
        images, labels = (part.to(device) for part in batch)
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return total / len(loader.dataset)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """Loss and metrics over the whole loader."""
    model.eval()
    outputs, targets = [], []
    for images, labels in loader:
        outputs.append(model(images.to(device)))
        targets.append(labels.to(device))
    output, target = torch.cat(outputs), torch.cat(targets)
    return {"loss": loss_fn(output, target).item(), **metrics(output, target)}


def main() -> None:
    """Train, and print the validation metrics after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model().to(device)
    optimizer = build_optimizer(model)
    train, val = train_loader(), val_loader()
    for epoch in range(1, args.epochs + 1):
        train_loss = train_one_epoch(model, train, optimizer, device)
        scores = evaluate(model, val, device)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"epoch {epoch}  train loss {train_loss:.4f}  validation: {shown}")


if __name__ == "__main__":
    main()
