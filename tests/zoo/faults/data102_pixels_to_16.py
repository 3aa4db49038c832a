"""Pixels from 0 to 16 as targets of a binary cross-entropy: the division by 16 is missing.

zoo: fails DATA102 also INIT101 FIT101 FIT106
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class VAE(nn.Module):
    def __init__(self, hidden=128, code=8):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.mu, self.logvar = nn.Linear(hidden, code), nn.Linear(hidden, code)
        self.decode = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, 64))

    def forward(self, x):
        h = self.encode(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.decode(z), mu, logvar


def build_model():
    return VAE()


def loss_fn(output, x):
    logits, mu, logvar = output
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (reconstruction + divergence) / len(x)


def _split(train):
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    return TensorDataset(x[:1500] if train else x[1500:])


def train_loader():
    return DataLoader(_split(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(_split(False), batch_size=297)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader, val = train_loader(), val_loader()
    for epoch in range(args.epochs):
        model.train()
        losses = []
        for (x,) in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            (x,) = next(iter(val))
            score = loss_fn(model(x), x)
        print(f"epoch {epoch}: -ELBO {sum(losses) / len(losses):.2f}, validation {score:.2f}")


if __name__ == "__main__":
    main()
