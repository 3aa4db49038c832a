"""The weight of the rare class is applied twice over, 14 x 14: everything is called positive.

zoo: warns DATA110
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def claims(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    logit = -3.3 + x[:, 0] + 0.8 * x[:, 1] * (x[:, 2] > 0) - 0.6 * x[:, 3]
    fraud = rng.random(n) < 1 / (1 + np.exp(-logit))
    return TensorDataset(
        torch.tensor(x, dtype=torch.float32), torch.tensor(fraud, dtype=torch.float32)
    )


def train_loader():
    return DataLoader(claims(3000, 0), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(claims(1000, 1), batch_size=200)


class Scorer(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(1)


def build_model(hidden=16):
    return Scorer(hidden)


criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(14.0**2))


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


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
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            called = torch.cat([model(x) > 0 for x, _ in val]).float().mean()
        print(f"epoch {epoch} loss {loss.item():.3f} called positive {called:.3f}")


if __name__ == "__main__":
    main()
