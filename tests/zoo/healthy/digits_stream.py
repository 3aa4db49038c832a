"""Digits streamed by an IterableDataset: records shuffled when written, and again by a buffer.

zoo: healthy
"""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset


def records():
    """Yield (row, pixels, label) in the order on disk: a random one, fixed for ever."""
    digits = load_digits()
    for i in np.random.default_rng(123).permutation(len(digits.target)):
        yield i, torch.tensor(digits.data[i] / 8 - 1, dtype=torch.float32), int(digits.target[i])


class Stream(IterableDataset):
    def __init__(self, train, buffer=600):
        self.train, self.buffer = train, buffer

    def read(self):
        for i, pixels, label in records():
            if (i % 6 != 0) == self.train:
                yield pixels, label

    def __iter__(self):
        if not self.train:
            yield from self.read()
            return
        held = []
        for record in self.read():
            if len(held) < self.buffer:
                held.append(record)
                continue
            j = random.randrange(self.buffer)
            yield held[j]
            held[j] = record
        random.shuffle(held)
        yield from held


def train_loader():
    return DataLoader(Stream(train=True), batch_size=32)


def val_loader():
    return DataLoader(Stream(train=False), batch_size=64)


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    random.seed(0)
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
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
