"""Finding the eights among all digits, one in ten: focal loss, and F1 is what is watched.

zoo: healthy
"""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset


class Eights(Dataset):
    def __init__(self, augment):
        digits = load_digits()
        self.images = torch.tensor((digits.images - 4.88) / 6.02, dtype=torch.float32)
        self.is_eight = torch.tensor(digits.target == 8, dtype=torch.float32)
        self.augment = augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i].unsqueeze(0)
        if self.augment:
            image = torch.roll(image, torch.randint(-1, 2, (2,)).tolist(), dims=(1, 2))
        return image, self.is_eight[i : i + 1]


def split():
    return torch.randperm(1797, generator=torch.Generator().manual_seed(3)).split([1437, 360])


def train_loader():
    return DataLoader(
        Subset(Eights(augment=True), split()[0].tolist()), batch_size=32, shuffle=True
    )


def val_loader():
    return DataLoader(Subset(Eights(augment=False), split()[1].tolist()), batch_size=90)


class Detector(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.out = nn.Linear(8 * width, 1)
        nn.init.constant_(self.out.bias, -math.log(9))  # one in ten

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.out(x.flatten(1))


def build_model(width=16):
    return Detector(width)


def loss_fn(logits, target, gamma=2.0, alpha=0.75):
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    surprise = (1 - torch.exp(-entropy)) ** gamma
    weight = torch.where(target > 0, alpha, 1 - alpha)
    return (weight * surprise * entropy).mean()


def metric(logits, target):
    found, there = logits > 0, target > 0
    return 2 * (found & there).sum().item() / max((found.sum() + there.sum()).item(), 1)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
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
            outputs = [(model(x), y) for x, y in val]
        f1 = metric(*(torch.cat(column) for column in zip(*outputs, strict=True)))
        print(f"epoch {epoch} loss {loss.item():.4f} F1 {f1:.3f}")


if __name__ == "__main__":
    main()
