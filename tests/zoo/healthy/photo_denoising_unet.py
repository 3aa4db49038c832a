"""Noise taken off patches of two photographs: a tiny U-Net predicts what to subtract, L1 loss.

zoo: healthy
"""

import argparse
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIDE = 16


@lru_cache
def photos():
    return [
        torch.tensor(p / 255, dtype=torch.float32).permute(2, 0, 1)
        for p in load_sample_images().images
    ]


class Patches(Dataset):
    """Random patches of the left three quarters to train on, a fixed grid of the rest to test."""

    def __init__(self, train, n=600):
        self.train, self.n = train, n
        self.grid = [
            (p, y, x)
            for p in range(2)
            for y in range(0, 427 - SIDE, 40)
            for x in range(500, 640 - SIDE, 40)
        ]

    def __len__(self):
        return self.n if self.train else len(self.grid)

    def __getitem__(self, i):
        if self.train:
            p = i % 2
            y, x = int(torch.randint(0, 427 - SIDE, (1,))), int(torch.randint(0, 480 - SIDE, (1,)))
        else:
            p, y, x = self.grid[i]
        clean = photos()[p][:, y : y + SIDE, x : x + SIDE]
        if self.train and torch.rand(1) < 0.5:
            clean = clean.flip(2)
        noise = (
            torch.randn_like(clean)
            if self.train
            else torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
        )
        return clean + 0.15 * noise, clean


def train_loader():
    return DataLoader(Patches(train=True), batch_size=16, shuffle=True)


def val_loader():
    return DataLoader(Patches(train=False), batch_size=40)


class UNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.down1 = nn.Conv2d(3, width, 3, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x):
        first = F.leaky_relu(self.down1(x), 0.1)
        second = F.leaky_relu(self.down2(first), 0.1)
        second = F.leaky_relu(self.middle(second), 0.1)
        return x - self.out(torch.cat([first, self.up(second)], 1))


def build_model(width=8):
    return UNet(width)


loss_fn = nn.L1Loss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for noisy, clean in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(noisy), clean)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            mse = sum(F.mse_loss(model(n), c).item() for n, c in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.4f} PSNR {-10 * torch.tensor(mse).log10():.2f}")


if __name__ == "__main__":
    main()
