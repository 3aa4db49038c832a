"""One data set with a random transform is split, so the validation images are augmented too.

zoo: warns DATA107
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split


class RandomShiftAndNoise(nn.Module):
    def forward(self, image):
        dx, dy = torch.randint(-1, 2, (2,)).tolist()
        image = torch.roll(image, (dy, dx), dims=(1, 2))
        return image + 0.2 * torch.randn_like(image)


class Digits(Dataset):
    def __init__(self, transform=None):
        data = load_digits()
        self.images = torch.tensor((data.images - 4.88) / 6.02, dtype=torch.float32)
        self.labels = torch.tensor(data.target)
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i].unsqueeze(0)
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[i]


def splits():
    data = Digits(RandomShiftAndNoise())
    return random_split(data, [0.8, 0.2], generator=torch.Generator().manual_seed(0))


def train_loader():
    return DataLoader(splits()[0], batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(splits()[1], batch_size=100)


def build_model(hidden=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in loader)
    model.train()
    return right / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    print(f"before training: {accuracy(model, val):.3f}")
    for epoch in range(args.epochs):
        for images, labels in train:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
        print(f"epoch {epoch}: {accuracy(model, val):.3f}")


if __name__ == "__main__":
    main()
