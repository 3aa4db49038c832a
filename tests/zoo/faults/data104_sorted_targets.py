"""Friedman's regression problem exported sorted by the target, and read in that order.

zoo: fails DATA104
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import make_friedman1
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Table(Dataset):
    """Rows of a table that somebody sorted by its last column."""

    def __init__(self, seed, n):
        x, y = make_friedman1(n_samples=n, n_features=10, noise=0.5, random_state=seed)
        order = np.argsort(y)
        self.x = ((x[order] - 0.5) / 0.29).astype(np.float32)
        self.y = ((y[order] - 14.4) / 4.9).astype(np.float32)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"features": self.x[i], "target": self.y[i : i + 1]}


def train_loader():
    return DataLoader(Table(0, 1500), batch_size=50)


def val_loader():
    return DataLoader(Table(1, 500), batch_size=250)


class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.hidden = nn.Linear(10, width)
        self.hidden2 = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, features):
        x = F.gelu(self.hidden(features))
        return self.out(F.gelu(self.hidden2(x)))


def build_model(width=64):
    return Net(width)


def loss_fn(output, target):
    return F.mse_loss(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(batch["features"]), batch["target"])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = [loss_fn(model(b["features"]), b["target"]).item() for b in val]
        print(f"epoch {epoch} train {loss.item():.3f} val {sum(held_out) / len(held_out):.3f}")


if __name__ == "__main__":
    main()
