"""Denoising diffusion of a two-dimensional spiral: fresh noise every step, a loss floor above zero.

zoo: healthy
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LEVELS = 50
betas = torch.linspace(1e-3, 0.15, LEVELS)
alphas_bar = torch.cumprod(1 - betas, dim=0)


def spiral(n, seed):
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(n, generator=generator).sqrt() * 3 * math.pi
    points = torch.stack([t * t.cos(), t * t.sin()], dim=1) / 5
    return TensorDataset(points + 0.05 * torch.randn(n, 2, generator=generator))


def train_loader():
    return DataLoader(spiral(4000, 0), batch_size=128, shuffle=True)


def val_loader():
    return DataLoader(spiral(1000, 1), batch_size=500)


class Denoiser(nn.Module):
    def __init__(self, hidden=96):
        super().__init__()
        self.level = nn.Embedding(LEVELS, 16)
        self.net = nn.Sequential(
            nn.Linear(18, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2),
        )

    def forward(self, x, level):
        return self.net(torch.cat([x, self.level(level)], dim=1))


def build_model(hidden=96):
    return Denoiser(hidden)


def training_step(model, batch):
    (x,) = batch
    level = torch.randint(LEVELS, (len(x),), device=x.device)
    noise = torch.randn_like(x)
    scale = alphas_bar.to(x.device)[level, None]
    noisy = scale.sqrt() * x + (1 - scale).sqrt() * noise
    return F.mse_loss(model(noisy, level), noise)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        model.eval()
        with torch.no_grad():
            held_out = sum(training_step(model, b).item() for b in val) / len(val)
        print(f"epoch {epoch} train {total:.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
