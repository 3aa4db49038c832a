"""A random projection kept as a plain tensor: no checkpoint holds it, each run draws another.

zoo: fails MODE105
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def days(n=2000):
    rng = np.random.default_rng(5)
    day = rng.permutation(n)
    weekday, season = day % 7, 2 * np.pi * day / 365
    temperature = 10 + 8 * np.sin(season) + 3 * rng.normal(size=n)
    rate = np.exp(1.0 + 0.6 * (weekday >= 5) + 0.5 * np.sin(season) + 0.04 * (temperature - 10))
    columns = [np.eye(7)[weekday], np.sin(season), np.cos(season), (temperature - 10) / 6.4]
    x = np.column_stack(columns)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(rng.poisson(rate)).float()


def train_loader():
    x, y = days()
    return DataLoader(TensorDataset(x[:1600], y[:1600]), batch_size=64, shuffle=True)


def val_loader():
    x, y = days()
    return DataLoader(TensorDataset(x[1600:], y[1600:]), batch_size=400)


class RateModel(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.projection = torch.randn(10, 40) / 10**0.5  # random features
        self.net = nn.Sequential(
            nn.Linear(40, hidden),
            nn.ELU(),
            nn.Linear(hidden, hidden),
            nn.ELU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x):
        return self.net(x @ self.projection.to(x.device))[:, 0]


def build_model(hidden=32):
    return RateModel(hidden)


loss_fn = nn.PoissonNLLLoss(log_input=True)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        model.eval()
        with torch.no_grad():
            x, y = next(iter(val))
            print(f"epoch {epoch} train {total:.3f} validation {loss_fn(model(x), y):.3f}")


if __name__ == "__main__":
    main()
