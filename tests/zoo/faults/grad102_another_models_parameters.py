"""The optimizer holds the parameters of a second model: nothing that is trained ever moves.

zoo: fails GRAD102 also STEP101 FIT101 FIT106
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Iris(Dataset):
    def __init__(self, train):
        x, y = load_iris(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(y))
        train_rows, val_rows = order[:120], order[120:]
        rows = train_rows if train else val_rows
        self.x = ((x - x[train_rows].mean(0)) / x[train_rows].std(0))[rows].astype(np.float32)
        self.y = y[rows]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"sepal": self.x[i, :2], "petal": self.x[i, 2:], "labels": self.y[i]}


def train_loader():
    return DataLoader(Iris(train=True), batch_size=8, shuffle=True)


def val_loader():
    return DataLoader(Iris(train=False), batch_size=30)


class Flower(nn.Module):
    def __init__(self):
        super().__init__()
        self.sepal, self.petal = nn.Linear(2, 16), nn.Linear(2, 16)
        self.out = nn.Linear(32, 3)

    def forward(self, sepal, petal):
        joined = torch.cat([self.sepal(sepal), self.petal(petal)], dim=-1)
        return self.out(F.gelu(joined))


def build_model():
    return Flower()


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.RMSprop(build_model().parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--accumulate", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for i, batch in enumerate(loader, start=1):
            labels = batch.pop("labels")
            loss = loss_fn(model(**batch), labels) / args.accumulate
            loss.backward()
            if i % args.accumulate == 0 or i == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            batch = next(iter(val))
            labels = batch.pop("labels")
            accuracy = (model(**batch).argmax(1) == labels).float().mean()
        print(f"epoch {epoch}: validation accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
