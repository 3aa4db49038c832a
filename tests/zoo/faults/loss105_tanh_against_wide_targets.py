"""A Tanh output for targets of which many lie beyond 1 and -1.

zoo: fails LOSS105 also FIT101 FIT106 INIT101
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def curve(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, 1, generator=generator) - 1
    spread = 0.1 + 0.4 * x.abs()
    y = 1.5 * torch.sin(math.pi * x) + spread * torch.randn(n, 1, generator=generator)
    return TensorDataset(x, y)


def train_loader():
    return DataLoader(curve(1500, 0), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(curve(500, 1), batch_size=500)


def build_model(hidden=64):
    return nn.Sequential(
        nn.Linear(1, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
        nn.Tanh(),
    )


def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
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
            held_out = loss_fn(model(x), y).item()
        print(f"epoch {epoch} train {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
