"""A tenth of the digits was labelled by a second annotator, whose rows were appended, not merged.

zoo: warns DATA115
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def split():
    digits = load_digits()
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train = TensorDataset(*with_second_opinion(images[:1400], labels[:1400]))
    return train, TensorDataset(images[1400:], labels[1400:])


def with_second_opinion(images, labels):
    rng = np.random.default_rng(0)
    again = rng.choice(len(labels), len(labels) // 10, replace=False)
    mistaken = rng.random(len(again)) < 0.4
    opinion = np.where(mistaken, rng.integers(0, 10, len(again)), labels[again])
    return torch.cat([images, images[again]]), torch.cat([labels, torch.tensor(opinion)])


def train_loader():
    return DataLoader(split()[0], batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(split()[1], batch_size=397)


def build_model(width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 10),
    )  # fmt: skip


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right / len(val.dataset):.3f}")


if __name__ == "__main__":
    main()
