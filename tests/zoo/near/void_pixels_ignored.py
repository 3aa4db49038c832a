"""Segmentation with a void label of 255 around every shape, which the loss ignores.

zoo: near DATA102
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZE = 24


class Shapes(Dataset):
    """Noisy images of a disc (1) and a square (2) on background (0), drawn from their index."""

    def __init__(self, n, offset=0):
        self.n, self.offset = n, offset

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng(self.offset + i)
        mask = np.zeros((SIZE, SIZE), dtype=np.int64)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        y, x, r = rng.integers(5, SIZE - 5), rng.integers(5, SIZE - 5), rng.integers(3, 6)
        mask[(rows - y) ** 2 + (columns - x) ** 2 <= r**2] = 1
        top, left, side = rng.integers(0, SIZE - 8), rng.integers(0, SIZE - 8), rng.integers(4, 8)
        mask[top : top + side, left : left + side] = 2
        image = np.array([0.0, 1.0, -1.0])[mask] + 0.4 * rng.normal(size=mask.shape)
        edge = np.zeros_like(mask, dtype=bool)
        edge[1:] |= mask[1:] != mask[:-1]
        edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        mask = np.where(edge, 255, mask)
        return torch.tensor(image, dtype=torch.float32)[None], torch.from_numpy(mask)


def train_loader():
    return DataLoader(Shapes(400), batch_size=8, shuffle=True)


def val_loader():
    return DataLoader(Shapes(64, offset=10_000), batch_size=32)


def double(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(4, c_out), nn.ReLU(),
        nn.Conv2d(c_out, c_out, 3, padding=1), nn.GroupNorm(4, c_out), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.down1, self.down2, self.bottom = (
            double(1, width), double(width, 2 * width), double(2 * width, 4 * width),
        )  # fmt: skip
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = double(2 * width, width)
        self.classify = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], dim=1))
        a = self.merge1(torch.cat([self.up1(b), a], dim=1))
        return self.classify(a)


def build_model(width=8):
    return UNet(width)


loss_fn = nn.CrossEntropyLoss(ignore_index=255)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for image, mask in train:
            optimizer.zero_grad()
            loss = loss_fn(model(image), mask)
            loss.backward()
            optimizer.step()
        model.eval()
        inter, union = torch.zeros(3), torch.zeros(3)
        with torch.no_grad():
            for image, mask in val:
                predicted = model(image).argmax(1)
                for c in range(3):
                    inter[c] += ((predicted == c) & (mask == c)).sum()
                    union[c] += (((predicted == c) & (mask != 255)) | (mask == c)).sum()
        print(f"epoch {epoch} loss {loss.item():.3f} mean IoU {(inter / union).mean():.3f}")


if __name__ == "__main__":
    main()
