"""Drawn shapes kept in one dataset per class and concatenated: batches hold one class each.

zoo: fails DATA104 also NORM101
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

NAMES = ("disc", "square", "cross", "ring")


class Folder(Dataset):
    """All images of one class, as torchvision's ImageFolder would list them."""

    def __init__(self, label, n, seed):
        self.label, self.n, self.seed = label, n, seed

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, self.label, i])
        y, x = np.mgrid[:16, :16]
        cy, cx, r = rng.integers(5, 11), rng.integers(5, 11), rng.integers(3, 6)
        d = np.hypot(y - cy, x - cx)
        drawn = {
            "disc": d <= r,
            "square": np.maximum(abs(y - cy), abs(x - cx)) <= r - 1,
            "cross": (np.minimum(abs(y - cy), abs(x - cx)) == 0) & (d <= r),
            "ring": abs(d - r) < 0.8,
        }[NAMES[self.label]]
        image = drawn - 0.2 + 0.2 * rng.normal(size=drawn.shape)
        return torch.tensor(image, dtype=torch.float32)[None], self.label


def dataset(n, seed):
    return ConcatDataset([Folder(label, n, seed) for label in range(len(NAMES))])


def train_loader():
    return DataLoader(dataset(200, 0), batch_size=32)


def val_loader():
    return DataLoader(dataset(40, 1), batch_size=80)


class ShapeNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc = nn.Linear(32 * width, len(NAMES))

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.fc(x.flatten(1))


def build_model(width=16):
    return ShapeNet(width)


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
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
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
