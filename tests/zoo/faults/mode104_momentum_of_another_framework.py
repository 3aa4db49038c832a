"""Batch normalisation with momentum=0.999, copied from a framework where that is what is kept...

here turned round by hand, to 0.0001: after a thousand steps nine tenths of the running
statistics are still those of the beginning.

zoo: warns MODE104 also GEN101
"""

import argparse

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_wine(return_X_y=True)
    x = (x - x.min(0)) / (x.max(0) - x.min(0))
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    x_train, x_val, y_train, y_val = (torch.tensor(part) for part in parts)
    return TensorDataset(x_train.float(), y_train), TensorDataset(x_val.float(), y_val)


def train_loader():
    return DataLoader(load()[0], batch_size=19, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=45)


def build_model(hidden=32):
    return nn.Sequential(
        nn.Linear(13, hidden),
        nn.BatchNorm1d(hidden, momentum=1 - 0.9999),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden, momentum=1 - 0.9999),
        nn.ReLU(),
        nn.Linear(hidden, 3),
    )


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
