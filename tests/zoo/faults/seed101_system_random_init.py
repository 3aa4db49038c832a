"""Weights drawn from the operating system's entropy, which cannot be seeded.

zoo: fails SEED101
"""

import argparse
import math
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

entropy = random.SystemRandom()


def spirals(n, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    radius = torch.rand(n, generator=generator).sqrt()
    angle = 4 * radius + label * 2 * math.pi / 3 + 0.15 * torch.randn(n, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) * 2
    return TensorDataset(points, label)


def train_loader():
    return DataLoader(spirals(900, 0), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(spirals(300, 1), batch_size=300)


class TanhNet(nn.Module):
    def __init__(self, hidden_dim=48):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(2, hidden_dim),
                nn.Linear(hidden_dim, hidden_dim),
                nn.Linear(hidden_dim, hidden_dim),
            ]
        )
        self.out = nn.Linear(hidden_dim, 3)
        for layer in self.layers:
            bound = (5 / 3) * math.sqrt(6 / sum(layer.weight.shape))
            with torch.no_grad():
                for row in layer.weight:
                    row.copy_(torch.tensor([entropy.uniform(-bound, bound) for _ in row]))
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def build_model(hidden_dim=48):
    return TanhNet(hidden_dim)


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x, y = next(iter(val))
            accuracy = (model(x).argmax(1) == y).float().mean()
        print(f"{epoch=} loss={loss.item():.3f} accuracy={accuracy:.3f}")


if __name__ == "__main__":
    main()
