"""Where does a ray come from? Several answers are right: a mixture density network.

zoo: healthy
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rays(n, seed):
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(n, 1, generator=generator)
    x = t + 0.3 * torch.sin(2 * math.pi * t) + 0.05 * torch.randn(n, 1, generator=generator)
    return TensorDataset((x - 0.5) / 0.3, (t - 0.5) / 0.3)


def train_loader():
    return DataLoader(rays(1500, 0), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rays(500, 1), batch_size=250)


class MixtureDensity(nn.Module):
    def __init__(self, hidden=48, components=4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.share = nn.Linear(hidden, components)
        self.mean = nn.Linear(hidden, components)
        self.log_sd = nn.Linear(hidden, components)

    def forward(self, x):
        h = self.body(x)
        return self.share(h).log_softmax(1), self.mean(h), self.log_sd(h).clamp(-4, 2)


def build_model(hidden=48):
    return MixtureDensity(hidden)


def loss_fn(output, target):
    log_share, mean, log_sd = output
    each = -0.5 * ((target - mean) / log_sd.exp()) ** 2 - log_sd - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_share + each, dim=1).mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, t in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), t)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        with torch.no_grad():
            held_out = sum(loss_fn(model(x), t).item() for x, t in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
