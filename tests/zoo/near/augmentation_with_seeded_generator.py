"""Augmentation from the dataset's own generator, seeded from torch: different, yet repeatable.

zoo: near SEED101 SEED102
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class NoisyDigits(Dataset):
    def __init__(self, train):
        digits = load_digits()
        rows = np.arange(len(digits.target)) % 5 != 0
        rows = rows if train else ~rows
        self.x = (digits.data[rows] / 8 - 1).astype(np.float32)
        self.y = digits.target[rows]
        self.rng = np.random.default_rng(torch.initial_seed()) if train else None

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x = self.x[i]
        if self.rng is not None:
            x = x + self.rng.normal(0, 0.1, size=x.shape).astype(np.float32)
        return x, self.y[i]


def train_loader():
    return DataLoader(NoisyDigits(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(NoisyDigits(train=False), batch_size=100)


def build_model(hidden=96):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
