"""Twelve residual blocks with no normalisation, each branch starting at zero (as in Fixup, ReZero).

zoo: near NORM101 INIT101
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(train):
    digits = load_digits()
    x = torch.tensor((digits.data - 4.88) / 6.02, dtype=torch.float32)
    y = torch.tensor(digits.target)
    return TensorDataset(x[:1400], y[:1400]) if train else TensorDataset(x[1400:], y[1400:])


def train_loader():
    return DataLoader(rows(True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=397)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.inner, self.outer = nn.Linear(d, d), nn.Linear(d, d)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.gate * self.outer(F.relu(self.inner(x)))


def build_model(d_model=64, depth=12):
    return nn.Sequential(
        nn.Linear(64, d_model), *(Block(d_model) for _ in range(depth)), nn.Linear(d_model, 10)
    )


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x, y = next(iter(val))
            accuracy = (model(x).argmax(1) == y).float().mean()
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
