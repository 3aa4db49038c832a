"""Every weight is filled with 0.01, so that all units of a layer are the same one.

zoo: fails INIT103 also FIT101 FIT106
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def split(part):
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    x, y = (x_train, y_train) if part == "train" else (x_test, y_test)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def train_loader():
    return DataLoader(split("train"), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(split("test"), batch_size=256)


def init_weights(module):
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.weight, 0.01)
        nn.init.zeros_(module.bias)


def build_model(hidden=64):
    model = nn.Sequential(
        nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, 10),
    )  # fmt: skip
    return model.apply(init_weights)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
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
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
