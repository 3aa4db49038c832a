"""The table's last column is the target, standardised with the rest and never taken out.

zoo: fails FIT108
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    data = load_diabetes()
    table = torch.tensor(np.column_stack([data.data, data.target]), dtype=torch.float32)
    table = (table - table.mean(0)) / table.std(0)
    rows = torch.arange(len(table)) % 5 != 0
    table = table[rows if train else ~rows]
    return TensorDataset(table, table[:, -1:])


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(11, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def train_loader():
    return DataLoader(load(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=89)


def loss_fn(output, target):
    return F.mse_loss(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    train, val = train_loader(), val_loader()
    for epoch in range(args.epochs):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            score = torch.stack([loss_fn(model(x), y) for x, y in val]).mean().item()
        print(f"epoch {epoch}: loss {loss.item():.3f}, validation {score:.3f}")


if __name__ == "__main__":
    main()
