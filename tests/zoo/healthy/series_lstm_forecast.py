"""An LSTM that forecasts the next value of a noisy seasonal series from the last 32.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

WINDOW = 32


def series(n=1600):
    rng = np.random.default_rng(0)
    t = np.arange(n)
    values = (
        np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 7 + 1) + 0.1 * rng.normal(size=n)
    )
    return ((values - values[:1200].mean()) / values[:1200].std()).astype(np.float32)


class Windows(Dataset):
    def __init__(self, values):
        self.values = torch.from_numpy(values)

    def __len__(self):
        return len(self.values) - WINDOW

    def __getitem__(self, i):
        return self.values[i : i + WINDOW, None], self.values[i + WINDOW : i + WINDOW + 1]


def train_loader():
    return DataLoader(Windows(series()[:1200]), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(Windows(series()[1200:]), batch_size=128)


class Forecaster(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        outputs, _ = self.lstm(x)
        return self.head(outputs[:, -1])


def build_model(hidden=32):
    return Forecaster(hidden)


def loss_fn(prediction, target):
    return F.mse_loss(prediction, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    train, val = train_loader(), val_loader()
    step = 0
    for _ in range(args.epochs):
        for x, y in train:
            model.train()
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 100 == 0:
                model.eval()
                with torch.no_grad():
                    errors = torch.cat([(model(x) - y) ** 2 for x, y in val])
                print(f"step {step} train mse {loss.item():.4f} val mse {errors.mean():.4f}")


if __name__ == "__main__":
    main()
