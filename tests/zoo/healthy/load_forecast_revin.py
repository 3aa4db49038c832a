"""Hourly load with daily and weekly seasons: a day ahead by two linear maps, split by time.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

HISTORY, AHEAD = 96, 24


def hourly_load():
    rng = np.random.default_rng(4)
    hours = np.arange(24 * 150)
    daily = np.sin(2 * np.pi * (hours - 7) / 24) + 0.4 * np.sin(4 * np.pi * hours / 24)
    weekend = np.where(hours // 24 % 7 >= 5, -0.6, 0.0)
    weather = np.zeros(len(hours))
    for t in range(1, len(hours)):
        weather[t] = 0.99 * weather[t - 1] + 0.08 * rng.normal()
    return (
        50 + 10 * daily + 10 * weekend + 8 * weather + 0.01 * hours + rng.normal(0, 1, len(hours))
    )


class Windows(Dataset):
    def __init__(self, first, last, stride=1):
        series = hourly_load()
        mean, sd = series[: 24 * 110].mean(), series[: 24 * 110].std()
        self.series = torch.tensor((series[first:last] - mean) / sd, dtype=torch.float32)
        self.stride = stride

    def __len__(self):
        return (len(self.series) - HISTORY - AHEAD) // self.stride + 1

    def __getitem__(self, i):
        start = i * self.stride
        cut = start + HISTORY
        return self.series[start:cut], self.series[cut : cut + AHEAD]


def train_loader():
    return DataLoader(Windows(0, 24 * 110, stride=2), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(Windows(24 * 110, 24 * 150, stride=6), batch_size=64)


class Decomposed(nn.Module):
    """Each window is put to its own level, split into trend and season, and mapped linearly."""

    def __init__(self):
        super().__init__()
        self.trend = nn.Linear(HISTORY, AHEAD)
        self.season = nn.Linear(HISTORY, AHEAD)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        level, sd = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        x = self.gain * (x - level) / sd
        padded = F.pad(x.unsqueeze(1), (12, 12), mode="replicate")
        trend = F.avg_pool1d(padded, 25, stride=1).squeeze(1)
        return (self.trend(trend) + self.season(x - trend)) / self.gain * sd + level


def build_model():
    return Decomposed()


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        scheduler.step(held_out)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
