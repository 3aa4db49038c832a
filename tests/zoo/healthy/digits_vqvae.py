"""An autoencoder of digits whose code is the nearest of 32 learned vectors, straight through.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(part):
    images = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]
    return TensorDataset(images[:1400] if part == "train" else images[1400:])


def train_loader():
    return DataLoader(load("train"), batch_size=40, shuffle=True)


def val_loader():
    return DataLoader(load("val"), batch_size=200)


class VQVAE(nn.Module):
    def __init__(self, channels, codes=32):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, channels, 4, 2, 1), nn.ReLU(), nn.Conv2d(channels, 8, 3, padding=1)
        )
        self.codes = nn.Embedding(codes, 8)
        nn.init.uniform_(self.codes.weight, -0.5, 0.5)
        self.decode = nn.Sequential(
            nn.Conv2d(8, channels, 3, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x):
        z = self.encode(x).movedim(1, -1)
        nearest = torch.cdist(z.flatten(0, 2), self.codes.weight).argmin(1)
        q = self.codes(nearest).view_as(z)
        straight = z + (q - z).detach()
        return self.decode(straight.movedim(-1, 1)), z, q


def build_model(channels=16):
    return VQVAE(channels)


def loss_fn(output, x):
    rebuilt, z, q = output
    codebook = F.mse_loss(q, z.detach())
    commitment = F.mse_loss(z, q.detach())
    return F.mse_loss(rebuilt, x) + codebook + 0.25 * commitment


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for (x,) in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), x)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            error = sum(F.mse_loss(model(x)[0], x).item() for (x,) in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.4f} validation {error:.4f}")


if __name__ == "__main__":
    main()
