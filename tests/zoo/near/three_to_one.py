"""Malignant and benign, of which three quarters are benign: mild imbalance, watched by accuracy.

zoo: near DATA110 GEN105 FIT110 INIT102
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.concatenate([np.flatnonzero(y == 0)[:119], np.flatnonzero(y == 1)]))
    train, val = kept[:360], kept[360:]
    scaler = StandardScaler().fit(x[train])
    return [
        TensorDataset(
            torch.tensor(scaler.transform(x[rows]), dtype=torch.float32),
            torch.tensor(y[rows], dtype=torch.float32),
        )
        for rows in (train, val)
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=24, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=58)


class Classifier(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(30, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(1)


def build_model(hidden=24):
    return Classifier(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def metric(output, target):
    return ((output > 0) == (target > 0)).float().mean().item()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
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
            found = sum(metric(model(x), y) for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {found:.3f}")


if __name__ == "__main__":
    main()
