"""Wines by their raw columns, up to 1680 in size, straight into a hidden layer of tanh.

zoo: warns INIT105 also DATA111 INIT101 INIT102 FIT101 FIT106 STEP109 STEP108
"""

import argparse

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_wine(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    x_train, x_val, y_train, y_val = (torch.tensor(part) for part in parts)
    return TensorDataset(x_train.float(), y_train), TensorDataset(x_val.float(), y_val)


def train_loader():
    return DataLoader(load()[0], batch_size=16, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=45)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(13, hidden), nn.Tanh(), nn.Linear(hidden, 3))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
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
