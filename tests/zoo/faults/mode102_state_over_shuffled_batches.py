"""Digits read row by row by a GRU that goes on from where it left the batch before, of others.

zoo: warns MODE102 also GEN105
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    digits = load_digits()
    x = torch.tensor(digits.images[rows] / 8 - 1, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(digits.target[rows]))


def train_loader():
    return DataLoader(load(slice(0, 1400)), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(load(slice(1400, 1750)), batch_size=50)


class Reader(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.gru = nn.GRU(8, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 10)
        self.state = None

    def forward(self, rows):
        states, self.state = self.gru(rows, self.state)
        self.state = self.state.detach()
        return self.out(states[:, -1])


def build_model(hidden=48):
    return Reader(hidden)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
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
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
