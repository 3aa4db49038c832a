"""SGD with weight_decay=0.5, a dropout's number in the wrong place: the weights are pulled to zero.

zoo: warns STEP110 also FIT101 FIT106
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows]))


def train_loader():
    return DataLoader(load(slice(0, 1400)), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(load(slice(1400, None)), batch_size=100)


def build_model(hidden=48):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
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
