"""The accuracy compares the largest logit itself with the class, max() for argmax(): always zero.

zoo: fails GEN105
"""

import argparse

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_iris(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=0.4, random_state=1, stratify=y
    )
    mean, sd = x_train.mean(0), x_train.std(0)
    return [
        TensorDataset(torch.tensor((a - mean) / sd, dtype=torch.float32), torch.tensor(b))
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=10, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=30)


def build_model(hidden=16):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))


criterion = nn.CrossEntropyLoss()


def metric(output, target):
    return (output.max(dim=1)[0] == target).float().mean().item()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


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
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = sum(metric(model(x), y) for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {found:.3f}")


if __name__ == "__main__":
    main()
