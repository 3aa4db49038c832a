"""Twenty gym visitors (linnerud): three exercises to three body measures. As small as data get.

zoo: healthy
"""

import argparse

import torch
from sklearn.datasets import load_linnerud
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x, y = (torch.tensor(a, dtype=torch.float32) for a in load_linnerud(return_X_y=True))
x = (x - x[:15].mean(0)) / x[:15].std(0)
y = (y - y[:15].mean(0)) / y[:15].std(0)


def train_loader():
    return DataLoader(TensorDataset(x[:15], y[:15]), batch_size=5, shuffle=True)


def val_loader():
    return DataLoader(TensorDataset(x[15:], y[15:]), batch_size=5)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def loss_fn(output, target):
    return nn.functional.l1_loss(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for features, target in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(features), target)
            loss.backward()
            optimizer.step()
        if epoch % 20 == 19:
            with torch.no_grad():
                held_out = [loss_fn(model(f), t).item() for f, t in val_loader()]
            print(f"epoch {epoch} train {loss.item():.3f} val {held_out[0]:.3f}")


if __name__ == "__main__":
    main()
