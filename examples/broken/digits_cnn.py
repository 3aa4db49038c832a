"""A small convolutional network that reads handwritten digits.

Broken on purpose: the training set is sorted by digit and never shuffled (DATA104).

The data are scikit-learn's 1,797 real digits of 8 x 8 pixels; nothing is downloaded.
Train it with ``python examples/broken/digits_cnn.py --epochs 10``,
audit it with ``nnaudit examples/broken/digits_cnn.py``.
"""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 64
CLASSES = 10


def load_splits() -> tuple[TensorDataset, TensorDataset]:
    """Hold out every fifth image of each digit for validation; normalise by the training set."""
    bunch = load_digits()
    train_images, train_labels, val_images, val_labels = [], [], [], []
    for digit in range(CLASSES):
        images = bunch.images[bunch.target == digit]
        held_out = np.arange(len(images)) % 5 == 0
        train_images.append(images[~held_out])
        train_labels.append(np.full((~held_out).sum(), digit))
        val_images.append(images[held_out])
        val_labels.append(np.full(held_out.sum(), digit))

    pixels = np.concatenate(train_images)
    mean, std = pixels.mean(), pixels.std()

    def as_dataset(images: list[np.ndarray], labels: list[np.ndarray]) -> TensorDataset:
        normalised = (np.concatenate(images) - mean) / std
        return TensorDataset(
            torch.tensor(normalised, dtype=torch.float32).unsqueeze(1),
            torch.tensor(np.concatenate(labels), dtype=torch.int64),
        )

    return as_dataset(train_images, train_labels), as_dataset(val_images, val_labels)


def train_loader() -> DataLoader:
    """Batches of the training set."""
    train, _ = load_splits()
    return DataLoader(train, batch_size=BATCH_SIZE)


def val_loader() -> DataLoader:
    """Batches of the validation set, in a fixed order."""
    _, val = load_splits()
    return DataLoader(val, batch_size=BATCH_SIZE)


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolution, normalisation, ReLU; the image keeps its size."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(),
    )


def build_model(width: float = 1.0) -> nn.Module:
    """Build the network; ``width`` multiplies the number of channels."""
    channels = 8 * max(1, round(4 * width))
    return nn.Sequential(
        conv_block(1, channels),
        conv_block(channels, channels),
        nn.MaxPool2d(2),
        conv_block(channels, 2 * channels),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 2 * 2, CLASSES),
    )


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the logits, averaged over the batch."""
    return F.cross_entropy(output, target)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases and normalisation weights are not decayed."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=2e-3)


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
