"""Plain SGD at a rate that was meant for a normalised loss: the loss grows until it is NaN.

zoo: fails FIT104 also GRAD106 STEP109
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    x, y = load_diabetes(return_X_y=True)
    x, y = (torch.tensor(v, dtype=torch.float32) for v in (x, y))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    rows = torch.arange(len(x)) % 5 != 0
    rows = rows if train else ~rows
    return TensorDataset(x[rows], y[rows, None])


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def train_loader():
    return DataLoader(load(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=89)


def loss_fn(output, target):
    return F.mse_loss(output, target)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=3.0, momentum=0.9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
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
