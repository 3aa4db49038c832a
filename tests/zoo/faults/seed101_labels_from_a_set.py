"""Classes are numbered in the order of a set of strings, which is another in every process.

Within one process the order is always the same, so two runs side by side do not show it.

zoo: fails SEED101
"""

import argparse

import torch
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    iris = load_iris()
    named = [str(iris.target_names[i]) for i in iris.target]
    number = {name: i for i, name in enumerate(set(named))}
    x = torch.tensor((iris.data - iris.data.mean(0)) / iris.data.std(0), dtype=torch.float32)
    y = torch.tensor([number[name] for name in named])
    keep = (torch.arange(150) % 5 != 0) == train
    return TensorDataset(x[keep], y[keep])


def train_loader():
    return DataLoader(load(train=True), batch_size=10, shuffle=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=30)


def build_model(hidden=16):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
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
