"""Iris by L-BFGS on the full batch: the loader yields one batch per epoch.

zoo: healthy
"""

import argparse

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def data(part):
    x, y = load_iris(return_X_y=True)
    split = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    mean, std = split[0].mean(0), split[0].std(0)
    x, y = split[part], split[2 + part]
    return TensorDataset(torch.tensor((x - mean) / std).float(), torch.tensor(y))


def train_loader():
    train = data(0)
    return DataLoader(train, batch_size=len(train), shuffle=True)


def val_loader():
    return DataLoader(data(1), batch_size=30)


def build_model(hidden=10):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def loss_fn(output, target):
    return nn.functional.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=10)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
        with torch.no_grad():
            x, y = next(iter(val))
            accuracy = (model(x).argmax(1) == y).float().mean()
        print(f"epoch {epoch} loss {loss.item():.4f} accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
