"""A multilayer perceptron that predicts how far diabetes has progressed after one year.

The data are scikit-learn's 442 patients with ten measurements each; nothing is downloaded.
Train it with ``python examples/diabetes_mlp.py --epochs 10``,
audit it with ``nnaudit examples/diabetes_mlp.py``.
"""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 64
FEATURES = 10


def load_splits() -> tuple[TensorDataset, TensorDataset]:
    """Hold out a fifth for validation; standardise both splits by the training set."""
    features, progression = load_diabetes(return_X_y=True, scaled=False)
    x_train, x_val, y_train, y_val = train_test_split(
        features, progression, test_size=0.2, random_state=0
    )

    def as_dataset(x: np.ndarray, y: np.ndarray) -> TensorDataset:
        x = (x - x_train.mean(axis=0)) / x_train.std(axis=0)
        y = (y - y_train.mean()) / y_train.std()
        return TensorDataset(
            torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
        )

    return as_dataset(x_train, y_train), as_dataset(x_val, y_val)


def train_loader() -> DataLoader:
    """Batches of the training set, in a new random order every epoch."""
    train, _ = load_splits()
    return DataLoader(train, batch_size=BATCH_SIZE, shuffle=True)


def val_loader() -> DataLoader:
    """Batches of the validation set, in a fixed order."""
    _, val = load_splits()
    return DataLoader(val, batch_size=BATCH_SIZE)


class Regressor(nn.Module):
    """Two hidden layers and one output per patient."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def build_model(hidden: int = 256) -> nn.Module:
    """Build the network with ``hidden`` units in each of its two hidden layers."""
    return Regressor(hidden)


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in units of the target's variance: 1 is as good as the mean."""
    return F.mse_loss(output, target)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases are not decayed."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


def metrics(output: Tensor, target: Tensor) -> dict[str, float]:
    """Explained variance and mean absolute error, in standard deviations of the target."""
    return {
        "r2": float(r2_score(target.cpu(), output.cpu())),
        "mae": float(mean_absolute_error(target.cpu(), output.cpu())),
    }


def train_one_epoch(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """Take one optimizer step per batch and return the mean loss."""
    model.train()
    total = 0.0
    for batch in loader:
        features, progression = (part.to(device) for part in batch)
        optimizer.zero_grad()
        loss = loss_fn(model(features), progression)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(progression)
    return total / len(loader.dataset)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """Loss and metrics over the whole loader."""
    model.eval()
    outputs, targets = [], []
    for features, progression in loader:
        outputs.append(model(features.to(device)))
        targets.append(progression.to(device))
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
