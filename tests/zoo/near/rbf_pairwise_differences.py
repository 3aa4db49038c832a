"""A radial-basis network: (N, 1) inputs minus (N,) centres, N x N on purpose (both are 32).

zoo: near LOSS102
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CENTRES = 32


def samples(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(n, 1, generator=generator) - 3
    y = torch.sin(2 * x) + 0.3 * x + 0.05 * torch.randn(n, 1, generator=generator)
    return TensorDataset(x, y)


def train_loader():
    return DataLoader(samples(1024, 0), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(samples(256, 1), batch_size=32)


class RBF(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(-3, 3, CENTRES))
        self.log_width = nn.Parameter(torch.full((CENTRES,), math.log(0.3)))
        self.out = nn.Linear(CENTRES, 1)

    def forward(self, x):
        return self.out(torch.exp(-(((x - self.centres) / self.log_width.exp()) ** 2)))


def build_model():
    return RBF()


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
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
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} train {loss.item():.4f} validation {held_out:.4f}")


if __name__ == "__main__":
    main()
