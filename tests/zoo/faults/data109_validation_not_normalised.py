"""The transform of the validation digits stops at [0, 1]: only training is normalised.

zoo: fails DATA109
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


def to_unit(image):
    return image / 16


def normalise(image):
    return (image / 16 - 0.305) / 0.376


class Digits(Dataset):
    def __init__(self, rows, transform):
        digits = load_digits()
        self.images = torch.tensor(digits.images[rows], dtype=torch.float32).unsqueeze(1)
        self.labels = torch.tensor(digits.target[rows])
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def train_loader():
    return DataLoader(Digits(slice(0, 1400), normalise), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Digits(slice(1400, None), to_unit), batch_size=199)


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
