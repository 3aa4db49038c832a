"""A linear law learned by a network of two hidden units: narrow, and wide enough.

zoo: near FIT106
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SLOPES = torch.tensor([1.5, -2.0, 0.7, 0.0])


def law(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    y = x @ SLOPES + 0.02 * torch.randn(n, generator=generator)
    return TensorDataset(x, y[:, None] / 2.6)


def train_loader():
    return DataLoader(law(1000, 0), batch_size=20, shuffle=True)


def val_loader():
    return DataLoader(law(200, 1), batch_size=200)


def build_model(hidden=2):
    return nn.Sequential(nn.Linear(4, hidden), nn.LeakyReLU(0.5), nn.Linear(hidden, 1))


def loss_fn(output, target):
    return F.mse_loss(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
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
            print(f"epoch {epoch} train {loss.item():.4f} validation {loss_fn(model(x), y):.4f}")


if __name__ == "__main__":
    main()
