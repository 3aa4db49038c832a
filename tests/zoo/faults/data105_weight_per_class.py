"""Rare classes are to come more often, but the sampler is given a weight per class, not per row.

It draws the numbers 0 to 9, and so the same ten rows over and over.

zoo: fails DATA105
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler


def load(train):
    data = load_digits()
    keep = (np.arange(len(data.target)) % 5 != 0) == train
    if train:  # half of the large digits are missing
        keep &= (data.target < 5) | (np.arange(len(data.target)) % 2 == 0)
    x = torch.tensor((data.data[keep] - 4.88) / 6.02, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(data.target[keep]))


def train_loader():
    data = load(train=True)
    weights = 1.0 / torch.bincount(data.tensors[1])
    return DataLoader(data, batch_size=32, sampler=WeightedRandomSampler(weights, len(data)))


def val_loader():
    return DataLoader(load(train=False), batch_size=128)


def build_model(hidden=64):
    return nn.Sequential(
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


loss_fn = F.cross_entropy


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
