"""The data set makes its generator once: each worker gets a copy and draws the same shifts.

zoo: fails DATA106
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """8 x 8 digits; the training set shifted by up to one pixel and slightly noisy."""

    def __init__(self, train):
        data = load_digits()
        keep = (np.arange(len(data.target)) % 5 != 0) == train
        self.images = ((data.images[keep] - 4.88) / 6.02).astype(np.float32)
        self.labels = data.target[keep]
        self.rng = np.random.default_rng(0) if train else None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if self.rng is not None:
            image = np.roll(image, self.rng.integers(-1, 2, size=2), axis=(0, 1))
            image = image + 0.1 * self.rng.standard_normal(image.shape, dtype=np.float32)
        return torch.from_numpy(image).unsqueeze(0), int(self.labels[i])


def train_loader():
    return DataLoader(Digits(train=True), batch_size=64, shuffle=True, num_workers=2)


def val_loader():
    return DataLoader(Digits(train=False), batch_size=100)


def build_model(hidden=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


loss_fn = F.cross_entropy


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {loss.item():.3f}, {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
