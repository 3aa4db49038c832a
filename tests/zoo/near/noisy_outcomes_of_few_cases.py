"""Customers in twelve kinds who buy or do not: identical inputs have different labels, by nature.

zoo: near FIT101 FIT106 DATA108 DATA115
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def customers(n, seed):
    rng = np.random.default_rng(seed)
    region, tier = rng.integers(0, 4, n), rng.integers(0, 3, n)
    logit = np.array([-1.0, 0.2, 0.8, -0.3])[region] + np.array([-0.8, 0.0, 1.2])[tier]
    bought = rng.random(n) < 1 / (1 + np.exp(-logit))
    x = np.concatenate([np.eye(4)[region], np.eye(3)[tier]], axis=1)
    return TensorDataset(
        torch.tensor(x, dtype=torch.float32), torch.tensor(bought, dtype=torch.float32)
    )


def train_loader():
    return DataLoader(customers(3000, 0), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(customers(1000, 1), batch_size=250)


class Propensity(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)


def build_model(hidden=32):
    return Propensity(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        with torch.no_grad():
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} log loss {total:.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
