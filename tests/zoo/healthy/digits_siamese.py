"""Are two digits the same: a siamese network on pairs that are drawn anew in every epoch.

zoo: healthy
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, part):
        digits = load_digits()
        chosen = np.arange(len(digits.target)) % 5 == 0
        chosen = chosen if part == "val" else ~chosen
        self.images = torch.tensor(digits.images[chosen], dtype=torch.float32)[:, None] / 8 - 1
        self.labels = digits.target[chosen]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        same = bool(torch.rand(()) < 0.5)
        pool = np.flatnonzero((self.labels == self.labels[i]) == same)
        other = int(pool[int(torch.randint(len(pool), ()))])
        return self.images[i], self.images[other], torch.tensor(float(same))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 32),
        )
        self.head = nn.Linear(32, 1)

    def forward(self, a, b):
        return self.head((self.trunk(a) - self.trunk(b)).abs()).squeeze(1)


def build_model():
    return Siamese()


def train_loader():
    return DataLoader(Pairs("train"), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Pairs("val"), batch_size=128)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def training_step(model, batch):
    a, b, same = batch
    return nn.functional.binary_cross_entropy_with_logits(model(a, b), same)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in train_loader():
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = [training_step(model, batch).item() for batch in val_loader()]
        print(f"epoch {epoch} loss {loss.item():.3f} validation {np.mean(held_out):.3f}")


if __name__ == "__main__":
    main()
