"""Attention between the rows of a digit, written by hand: the softmax runs over the queries.

zoo: warns GRAD110
"""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def _datasets():
    digits = load_digits()
    images = torch.tensor((digits.images - 4.9) / 6.0, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target))
    return random_split(data, [1437, 360], generator=torch.Generator().manual_seed(42))


def train_loader():
    return DataLoader(_datasets()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(_datasets()[1], batch_size=120)


class Attention(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        batch, rows, width = x.shape
        split = self.qkv(x).view(batch, rows, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        weights = F.softmax(scores, dim=2)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, rows, width))


class RowAttention(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, 8, width))
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = self.embed(x) + self.position
        x = x + self.attention(self.norm(x))
        return self.head(self.mlp(x).mean(1))


def build_model(width=32):
    return RowAttention(width)


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {right / 360:.3f}")


if __name__ == "__main__":
    main()
