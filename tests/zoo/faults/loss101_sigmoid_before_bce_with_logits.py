"""The network ends in a sigmoid and the loss applies another.

zoo: fails LOSS101 also FIT101 FIT106 INIT101
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FREQUENCIES = np.array([0.03, 0.05, 0.08, 0.13, 0.21, 0.34])


def make_clips(n, seed):
    rng = np.random.default_rng(seed)
    present = rng.random((n, len(FREQUENCIES))) < 0.35
    t = np.arange(256)
    phase = rng.uniform(0, 2 * np.pi, (n, len(FREQUENCIES), 1))
    gain = rng.uniform(0.5, 1.5, (n, len(FREQUENCIES), 1)) * present[:, :, None]
    clips = (gain * np.sin(2 * np.pi * FREQUENCIES[None, :, None] * t + phase)).sum(1)
    clips += 0.3 * rng.normal(size=clips.shape)
    return TensorDataset(
        torch.tensor(clips[:, None], dtype=torch.float32),
        torch.tensor(present, dtype=torch.float32),
    )


def train_loader():
    return DataLoader(make_clips(1200, seed=0), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(make_clips(300, seed=1), batch_size=100)


def build_model(channels=32):
    return nn.Sequential(
        nn.Conv1d(1, channels, 31, stride=4),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 9, stride=2),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(channels, len(FREQUENCIES)),
        nn.Sigmoid(),
    )


def loss_fn(logits, present):
    return nn.functional.binary_cross_entropy_with_logits(logits, present)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)


def train(model, optimizer, loader):
    model.train()
    for clips, present in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(clips), present)
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    np.random.seed(0)
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader, val = train_loader(), val_loader()
    for epoch in range(args.epochs):
        loss = train(model, optimizer, loader)
        model.eval()
        with torch.no_grad():
            exact = torch.cat([((model(c) > 0.5) == (p > 0)).float() for c, p in val])
        print(f"epoch {epoch} loss {loss:.3f} val label accuracy {exact.mean():.3f}")


if __name__ == "__main__":
    main()
