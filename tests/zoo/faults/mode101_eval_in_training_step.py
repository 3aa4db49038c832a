"""The training step measures accuracy in eval mode and never goes back: dropout is off.

zoo: fails MODE101
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset


class Batches(IterableDataset):
    """Yields (images, labels) of ``size`` rows; a training pass is in a new random order."""

    def __init__(self, train, size):
        digits = load_digits()
        rows = torch.arange(len(digits.target)) % 5 > 0
        rows = rows if train else ~rows
        self.images = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)[rows]
        self.labels = torch.tensor(digits.target)[rows]
        self.train, self.size = train, size

    def __iter__(self):
        n = len(self.labels)
        order = torch.randperm(n) if self.train else torch.arange(n)
        for rows in order.split(self.size):
            yield self.images[rows], self.labels[rows]


def train_loader():
    return DataLoader(Batches(True, 48), batch_size=None)


def val_loader():
    return DataLoader(Batches(False, 120), batch_size=None)


def build_model(width=128):
    return nn.Sequential(
        nn.Linear(64, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 10),
    )  # fmt: skip


def training_step(model, batch):
    images, labels = batch
    model.eval()
    with torch.no_grad():
        model.hits = (model(images).argmax(1) == labels).float().mean()
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        logits = model(images)
    return F.cross_entropy(logits.float(), labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
