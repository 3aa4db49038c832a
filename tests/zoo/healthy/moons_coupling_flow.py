"""The density of two moons by a normalising flow of affine couplings; no labels at all.

zoo: healthy
"""

import argparse
import math

import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import DataLoader


def points(n, seed):
    x, _ = make_moons(n, noise=0.07, random_state=seed)
    x = torch.tensor(x, dtype=torch.float32)
    return (x - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


def train_loader():
    return DataLoader(points(2000, 0), batch_size=100, shuffle=True)


def val_loader():
    return DataLoader(points(500, 1), batch_size=250)


class Coupling(nn.Module):
    def __init__(self, hidden, flip):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2),
        )
        nn.init.zeros_(self.net[-1].weight)  # begin as the identity
        nn.init.zeros_(self.net[-1].bias)
        self.flip = flip

    def forward(self, x):
        kept, moved = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        log_scale, shift = self.net(kept).chunk(2, 1)
        log_scale = torch.tanh(log_scale)
        moved = moved * log_scale.exp() + shift
        pair = (moved, kept) if self.flip else (kept, moved)
        return torch.cat(pair, 1), log_scale.squeeze(1)


class Flow(nn.Module):
    def __init__(self, hidden=32, layers=6):
        super().__init__()
        self.layers = nn.ModuleList([Coupling(hidden, flip=i % 2 == 1) for i in range(layers)])

    def forward(self, x):
        log_det = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, change = layer(x)
            log_det = log_det + change
        return x, log_det


def build_model(hidden=32):
    return Flow(hidden)


def training_step(model, x):
    z, log_det = model(x)
    log_prob = -0.5 * z.square().sum(1) - math.log(2 * math.pi) + log_det
    return -log_prob.mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=400, gamma=0.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    for epoch in range(args.epochs):
        for x in loader:
            loss = training_step(model, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            held_out = sum(training_step(model, x).item() for x in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
