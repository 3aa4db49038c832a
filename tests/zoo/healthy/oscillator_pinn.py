"""A damped oscillator from a few noisy measurements and its differential equation.

zoo: healthy
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DAMPING, STIFFNESS = 0.4, 4.0


def truth(t):
    omega = math.sqrt(STIFFNESS - DAMPING**2 / 4)
    return torch.exp(-DAMPING * t / 2) * torch.cos(omega * t)


def train_loader():
    generator = torch.Generator().manual_seed(0)
    t = 3 * torch.rand(320, 1, generator=generator)
    measured = truth(t) + 0.03 * torch.randn(320, 1, generator=generator)
    return DataLoader(TensorDataset(t, measured), batch_size=32, shuffle=True)


def val_loader():
    t = torch.linspace(0, 3, 100).unsqueeze(1)
    return DataLoader(TensorDataset(t, truth(t)), batch_size=100)


class Curve(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )

    def forward(self, t):
        return self.net(t / 1.5 - 1)


def build_model(hidden=32):
    return Curve(hidden)


def residual(model, t):
    """How far the curve is from obeying its equation at each of the times ``t``."""
    with torch.enable_grad():
        t = t.detach().requires_grad_(True)
        x = model(t)
        v = torch.autograd.grad(x.sum(), t, create_graph=True)[0]
        a = torch.autograd.grad(v.sum(), t, create_graph=True)[0]
    return a + DAMPING * v + STIFFNESS * x


def training_step(model, batch):
    t, measured = batch
    data = (model(t) - measured).square().mean()
    physics = residual(model, t).square().mean()
    return data + 0.05 * physics


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            error = sum((model(t) - x).square().mean().item() for t, x in val)
        print(f"epoch {epoch} loss {loss.item():.4f} error {error:.5f}")


if __name__ == "__main__":
    main()
