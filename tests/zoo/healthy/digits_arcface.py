"""Digits by an additive angular margin: normalised features against normalised class centres.

zoo: healthy
"""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MARGIN, SCALE = 0.3, 16.0


def load(train):
    digits = load_digits()
    x = torch.tensor(digits.images / 16 - 0.5, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(digits.target)
    keep = torch.arange(len(y)) % 4 != 0
    keep = keep if train else ~keep
    return TensorDataset(x[keep], y[keep])


def train_loader():
    return DataLoader(load(train=True), batch_size=64, shuffle=True, drop_last=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=150)


class ArcFace(nn.Module):
    def __init__(self, width=20, features=32):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Flatten(),
            nn.Linear(16 * width, features),
        )
        self.centres = nn.Parameter(torch.empty(10, features))
        nn.init.xavier_uniform_(self.centres)

    def forward(self, x):
        return F.normalize(self.trunk(x)) @ F.normalize(self.centres).T


def build_model(width=20):
    return ArcFace(width)


def loss_fn(cosine, target):
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    with_margin = cosine * math.cos(MARGIN) - sine * math.sin(MARGIN)
    chosen = F.one_hot(target, 10).bool()
    return F.cross_entropy(SCALE * torch.where(chosen, with_margin, cosine), target)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
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
