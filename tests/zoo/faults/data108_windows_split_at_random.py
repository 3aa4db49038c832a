"""A series cut into windows that overlap, and the windows dealt at random to both sides.

zoo: warns DATA108
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

LENGTH = 30


def windows():
    rng = np.random.default_rng(0)
    series = np.cumsum(rng.normal(size=1500)) * 0.1
    series = (series - series.mean()) / series.std()
    cut = np.lib.stride_tricks.sliding_window_view(series, LENGTH + 1).copy()
    data = torch.tensor(cut, dtype=torch.float32)
    return random_split(
        TensorDataset(data[:, :LENGTH], data[:, LENGTH:]),
        [1176, 294],
        generator=torch.Generator().manual_seed(0),
    )


def train_loader():
    return DataLoader(windows()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(windows()[1], batch_size=98)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(LENGTH, hidden), nn.ReLU(), nn.Linear(hidden, 1))


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
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
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.4f} validation {held_out:.4f}")


if __name__ == "__main__":
    main()
