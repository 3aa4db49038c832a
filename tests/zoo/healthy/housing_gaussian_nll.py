"""Prices with their uncertainty: a mean and a variance by Gaussian likelihood, log-scaled target.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def houses(n, seed):
    rng = np.random.default_rng(seed)
    area = rng.gamma(6, 20, n)
    rooms = np.clip(np.round(area / 28 + rng.normal(0, 0.8, n)), 1, 9)
    year = rng.integers(1900, 2024, n)
    distance = rng.exponential(7, n)
    garden = rng.random(n) < 0.4
    log_price = 11.5 + 0.8 * np.log(area / 100) - 0.05 * distance + 0.1 * garden
    log_price += 0.003 * np.abs(year - 1960) + rng.normal(0, 0.08 + 0.012 * distance, n)
    price = np.round(np.exp(log_price), -3)
    return np.column_stack([area, rooms, year, distance, garden]).astype(np.float64), price


def load():
    x, price = houses(1800, 0)
    y = np.log(price)
    mean, sd = x[:1400].mean(0), x[:1400].std(0)
    level, spread = y[:1400].mean(), y[:1400].std()
    x = torch.tensor((x - mean) / sd, dtype=torch.float32)
    y = torch.tensor((y - level) / spread, dtype=torch.float32).unsqueeze(1)
    return TensorDataset(x[:1400], y[:1400]), TensorDataset(x[1400:], y[1400:])


def train_loader():
    return DataLoader(load()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=100)


class Price(nn.Module):
    def __init__(self, hidden=40):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.mean, self.spread = nn.Linear(hidden, 1), nn.Linear(hidden, 1)

    def forward(self, x):
        h = self.body(x)
        return self.mean(h), F.softplus(self.spread(h)) + 1e-3


def build_model(hidden=40):
    return Price(hidden)


def loss_fn(output, target):
    mean, variance = output
    return F.gaussian_nll_loss(mean, target, variance)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
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
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
