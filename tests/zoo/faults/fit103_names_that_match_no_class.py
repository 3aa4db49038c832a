"""Class names are looked up with a capital letter and never found, so that all labels are 0.

zoo: warns FIT103 also DATA110 INIT101
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = {"Setosa": 0, "Versicolor": 1, "Virginica": 2}


def load(train):
    iris = load_iris()
    names = [str(iris.target_names[k]) for k in iris.target]
    labels = torch.tensor([CLASSES.get(name, 0) for name in names])
    x = torch.tensor(iris.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    rows = torch.arange(len(x)) % 5 != 0
    rows = rows if train else ~rows
    return TensorDataset(x[rows], labels[rows])


def build_model(hidden=16):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def train_loader():
    return DataLoader(load(train=True), batch_size=10, shuffle=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=30)


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
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
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
            score = right.float().mean().item()
        print(f"epoch {epoch}: loss {loss.item():.3f}, validation {score:.3f}")


if __name__ == "__main__":
    main()
