"""File names are sorted, so img_10 comes before img_2; the labels stay in the order of the numbers.

zoo: fails FIT102 also DATA113
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Folder(Dataset):
    """Pictures by name, as a folder holds them, beside a column of labels."""

    def __init__(self, train):
        digits = load_digits()
        self.pictures = {
            f"img_{i}.png": torch.tensor(picture, dtype=torch.float32) / 16
            for i, picture in enumerate(digits.images)
        }
        names, labels = sorted(self.pictures), torch.tensor(digits.target)
        keep = [i for i in range(len(names)) if (i % 4 != 0) == train]
        self.names, self.labels = [names[i] for i in keep], labels[keep]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return self.pictures[self.names[i]].flatten(), self.labels[i]


def build_model(hidden=128):
    return nn.Sequential(
        nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, 10),
    )  # fmt: skip


def train_loader():
    return DataLoader(Folder(train=True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Folder(train=False), batch_size=150)


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
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
            score = right.float().mean().item()
        print(f"epoch {epoch}: loss {loss.item():.3f}, validation {score:.3f}")


if __name__ == "__main__":
    main()
