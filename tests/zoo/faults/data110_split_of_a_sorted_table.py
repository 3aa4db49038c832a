"""Wine samples lie sorted by cultivar, and the last fifth is cut off for validation.

zoo: fails DATA110
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def split():
    x, y = load_wine(return_X_y=True)
    cut = int(0.7 * len(y))
    x = (x - x[:cut].mean(0)) / x[:cut].std(0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return TensorDataset(x[:cut], y[:cut]), TensorDataset(x[cut:], y[cut:])


def train_loader():
    return DataLoader(split()[0], batch_size=16, shuffle=True)


def val_loader():
    return DataLoader(split()[1], batch_size=54)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(13, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
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
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right / len(val.dataset):.3f}")


if __name__ == "__main__":
    main()
