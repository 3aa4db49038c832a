"""Forecast from overlapping windows by dilated causal convolutions; the split is in time.

zoo: healthy
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

LENGTH, AHEAD, SPLIT = 48, 6, 2000


def series():
    t = np.arange(2500)
    noise = np.random.default_rng(0).normal(size=len(t))
    values = np.sin(t / 7) + 0.5 * np.sin(t / 31) + 0.1 * noise
    past = values[:SPLIT]
    return torch.tensor((values - past.mean()) / past.std(), dtype=torch.float32)


class Windows(Dataset):
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values) - LENGTH - AHEAD

    def __getitem__(self, i):
        window = self.values[i : i + LENGTH + AHEAD]
        return window[None, :LENGTH], window[LENGTH:]


class Causal(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv1d(1, channels, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, dilation=2**i) for i in range(4)
        )
        self.head = nn.Linear(channels, AHEAD)

    def forward(self, x):
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            x = x + torch.relu(layer(nn.functional.pad(x, (2 ** (i + 1), 0))))
        return self.head(x[:, :, -1])


def build_model(channels=24):
    return Causal(channels)


def train_loader():
    return DataLoader(Windows(series()[:SPLIT]), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Windows(series()[SPLIT:]), batch_size=128)


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = [loss_fn(model(x), y).item() for x, y in val_loader()]
        print(f"epoch {epoch} loss {loss.item():.4f} validation {np.mean(held_out):.4f}")


if __name__ == "__main__":
    main()
