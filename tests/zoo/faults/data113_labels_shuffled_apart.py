"""Biopsies and diagnoses are both shuffled before the split, each with a permutation of its own.

zoo: warns DATA113
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load_split(part):
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    x, y = rng.permutation(x), rng.permutation(y)
    mean, std = x[:455].mean(0), x[:455].std(0)
    rows = slice(0, 455) if part == "train" else slice(455, None)
    return TensorDataset(
        torch.tensor((x[rows] - mean) / std, dtype=torch.float32),
        torch.tensor(y[rows], dtype=torch.float32),
    )


def train_loader():
    return DataLoader(load_split("train"), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load_split("val"), batch_size=114)


class Classifier(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.body(x).squeeze(1)


def build_model(hidden=32):
    return Classifier(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
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
            right = sum(((model(x) > 0) == (y > 0.5)).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right / len(val.dataset):.3f}")


if __name__ == "__main__":
    main()
