"""Small programs that several tests hand to nnaudit, as source text and as targets."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.targets.target import Target

SOURCE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def train_loader():
    x = torch.randn(256, 8)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)


def loss_fn(output, target):
    return nn.functional.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""

LOOP = """
def main():
    model = build_model()
    optimizer = build_optimizer(model)
    for x, y in train_loader():
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()

if __name__ == "__main__":
    main()
"""
"""A training loop on these parts, which forgets zero_grad."""


def blobs() -> DataLoader:
    """Three classes of 8 features, in batches of 32."""
    x = torch.randn(256, 8)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def target(**parts: object) -> Target:
    """The healthy classifier of blobs, with ``parts`` replaced."""
    usual = {
        "model": mlp,
        "train_loader": blobs,
        "loss": nn.functional.cross_entropy,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    }
    return Target(**{**usual, **parts})  # type: ignore[arg-type]
