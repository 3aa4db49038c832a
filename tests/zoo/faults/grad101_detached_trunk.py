"""The features are detached before both heads: the trunk never learns.

zoo: fails GRAD101 also GRAD107 FIT101 FIT106
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def datasets():
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    ink = x.sum(1)
    ink = (ink - ink[:1400].mean()) / ink[:1400].std()
    x = (x - x[:1400].mean()) / x[:1400].std()
    y = torch.tensor(digits.target)
    return TensorDataset(x[:1400], y[:1400], ink[:1400]), TensorDataset(
        x[1400:], y[1400:], ink[1400:]
    )


def train_loader():
    return DataLoader(datasets()[0], batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(datasets()[1], batch_size=397)


class TwoHeads(nn.Module):
    def __init__(self, hidden=96):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.digit = nn.Linear(hidden, 10)
        self.ink = nn.Linear(hidden, 1)

    def forward(self, x):
        features = self.trunk(x).detach()
        return {"digit": self.digit(features), "ink": self.ink(features).squeeze(1)}


def build_model(hidden=96):
    return TwoHeads(hidden)


def training_step(model, batch):
    x, digit, ink = batch
    output = model(x)
    return F.cross_entropy(output["digit"], digit) + 0.5 * F.mse_loss(output["ink"], ink)


def build_optimizer(model):
    heads = [*model.digit.parameters(), *model.ink.parameters()]
    return torch.optim.AdamW(
        [{"params": model.trunk.parameters(), "lr": 1e-3}, {"params": heads, "lr": 3e-3}]
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x, digit, ink = next(iter(val))
            out = model(x)
            accuracy = (out["digit"].argmax(1) == digit).float().mean()
            print(f"{epoch} accuracy {accuracy:.3f} ink mse {F.mse_loss(out['ink'], ink):.3f}")


if __name__ == "__main__":
    main()
