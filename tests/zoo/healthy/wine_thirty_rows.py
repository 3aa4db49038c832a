"""Thirty wines to learn from, four at a time: a small network with strong weight decay.

zoo: healthy
"""

import argparse

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_wine(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, train_size=30, random_state=5, stratify=y
    )
    mean, sd = x_train.mean(0), x_train.std(0)
    return [
        TensorDataset(torch.tensor((a - mean) / sd, dtype=torch.float32), torch.tensor(b))
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=4, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=148)


def build_model(hidden=12):
    return nn.Sequential(nn.Linear(13, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 3))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
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
        if epoch % 10 == 9:
            with torch.no_grad():
                right = torch.cat([model(x).argmax(1) == y for x, y in val])
            print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
