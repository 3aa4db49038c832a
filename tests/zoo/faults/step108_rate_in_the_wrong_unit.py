"""A rate of 1e-7, read as "0.1 micro" from a table of settings: the weights stay where they are.

zoo: warns STEP108 also STEP109 FIT101 FIT106 STEP101
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = (x - x[:330].mean(0)) / x[:330].std(0), (y - y[:330].mean()) / y[:330].std()
    return TensorDataset(
        torch.tensor(x[rows], dtype=torch.float32),
        torch.tensor(y[rows], dtype=torch.float32).unsqueeze(1),
    )


def train_loader():
    return DataLoader(load(slice(0, 330)), batch_size=16, shuffle=True)


def val_loader():
    return DataLoader(load(slice(330, None)), batch_size=112)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, 1))


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-7)


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
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
