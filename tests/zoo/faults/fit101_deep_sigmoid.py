"""Twelve sigmoid layers with the default initialisation: the gradient is gone before the input.

zoo: fails FIT101 also FIT106 NORM101 INIT102 INIT104 GRAD105
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(train):
    digits = load_digits()
    x = torch.tensor((digits.data - 4.88) / 6.02, dtype=torch.float32)
    y = torch.tensor(digits.target)
    return TensorDataset(x[:1400], y[:1400]) if train else TensorDataset(x[1400:], y[1400:])


def train_loader():
    return DataLoader(rows(True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=397)


def build_model(hidden=64):
    layers = [nn.Linear(64, hidden), nn.Sigmoid()]
    for _ in range(11):
        layers += [nn.Linear(hidden, hidden), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


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
            accuracy = (model(x).argmax(1) == y).float().mean()
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
