"""Hourly rain: torch.where hides sqrt(negative) in the forward pass, not in the backward pass.

zoo: fails GRAD106 also FIT101 FIT106 INIT101
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def hours(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    wet = x[:, 0] + 0.5 * x[:, 1] > 0.3
    amount = np.where(wet, np.exp(0.5 * x[:, 2] - 0.3 * x[:, 3]), 0.0)
    return TensorDataset(
        torch.tensor(x, dtype=torch.float32), torch.tensor(amount, dtype=torch.float32)
    )


def train_loader():
    return DataLoader(hours(1500, 0), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(hours(300, 1), batch_size=300)


class RainNet(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.amount = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.amount(self.trunk(x)).squeeze(1)


def build_model(hidden=48):
    return RainNet(hidden)


def loss_fn(predicted, amount):
    both = (predicted > 0) & (amount > 0)
    error = torch.where(both, predicted.sqrt() - amount.sqrt(), torch.zeros_like(amount))
    return F.mse_loss(predicted, amount) + 0.1 * error.pow(2).mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
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
            print(f"epoch {epoch} train {loss.item():.3f} validation {loss_fn(model(x), y):.3f}")


if __name__ == "__main__":
    main()
