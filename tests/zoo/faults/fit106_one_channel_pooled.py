"""Convolutions that end in one channel, averaged to one number, for ten classes; no width argument.

zoo: warns FIT106 also FIT101
"""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """8 x 8 digits; with ``augment`` shifted by up to one pixel and slightly noisy."""

    def __init__(self, train, augment):
        data = load_digits()
        keep = (np.arange(len(data.target)) % 5 != 0) == train
        self.images = torch.tensor(data.images[keep], dtype=torch.float32).unsqueeze(1)
        self.labels = torch.tensor(data.target[keep])
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = (self.images[i] - 4.88) / 6.02
        if self.augment:
            dx, dy = random.randint(-1, 1), random.randint(-1, 1)
            image = torch.roll(image, (dy, dx), dims=(1, 2))
            image = image + 0.05 * torch.randn_like(image)
        return image, self.labels[i]


def train_loader():
    return DataLoader(Digits(train=True, augment=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(Digits(train=False, augment=False), batch_size=100)


def build_model():
    channels = 12
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.GroupNorm(4, channels),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.GroupNorm(4, channels),
        nn.SiLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.GroupNorm(4, 2 * channels),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1, 10),
    )


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def evaluate(model, loader):
    model.eval()
    correct = total = 0
    with torch.inference_mode():
        for images, labels in loader:
            correct += (model(images).argmax(dim=1) == labels).sum().item()
            total += len(labels)
    return correct / total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
        print(f"epoch {epoch}: validation accuracy {evaluate(model, val):.3f}")


if __name__ == "__main__":
    main()
