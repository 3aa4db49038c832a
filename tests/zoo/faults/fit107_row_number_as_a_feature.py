"""Returns of an online shop, with an embedding of the order number: each occurs once an epoch.

zoo: warns FIT107 also GEN101 GRAD101
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ORDERS = 1600


def orders():
    rng = np.random.default_rng(2)
    price, size = rng.lognormal(3, 0.7, ORDERS), rng.integers(0, 6, ORDERS)
    returns = rng.random(ORDERS) < 1 / (1 + np.exp(-0.4 * (np.log(price) - 3) - 0.2 * (size - 3)))
    x = np.column_stack([(np.log(price) - 3) / 0.7, (size - 2.5) / 1.7])
    return (
        torch.arange(ORDERS),
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(returns, dtype=torch.float32),
    )


def train_loader():
    return DataLoader(TensorDataset(*(c[:1200] for c in orders())), batch_size=24, shuffle=True)


def val_loader():
    return DataLoader(TensorDataset(*(c[1200:] for c in orders())), batch_size=100)


class Returns(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.order = nn.Embedding(ORDERS, 512)
        self.net = nn.Sequential(nn.Linear(514, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, number, x):
        return self.net(torch.cat([self.order(number), x], dim=1)).squeeze(1)


def build_model(hidden=64):
    return Returns(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        total = 0.0
        for number, x, returned in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(number, x), returned)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        with torch.no_grad():
            held_out = sum(loss_fn(model(n, x), r).item() for n, x, r in val) / len(val)
        print(f"epoch {epoch} loss {total:.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
