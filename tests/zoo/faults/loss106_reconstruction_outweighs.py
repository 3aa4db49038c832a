"""A classifier with a helping reconstruction, summed over pixels: it does nearly all the pulling.

zoo: warns LOSS106 also FIT101 FIT106 STEP109
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    x, y = load_digits(return_X_y=True)
    return TensorDataset(
        torch.tensor((x[rows] - 4.88) / 6.02, dtype=torch.float32), torch.tensor(y[rows])
    )


def train_loader():
    return DataLoader(load(slice(0, 1400)), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(load(slice(1400, None)), batch_size=100)


class WithDecoder(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 16))
        self.head = nn.Linear(16, 10)
        self.decoder = nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 64))

    def forward(self, x):
        code = self.encoder(x)
        return self.head(code), self.decoder(code)


def build_model(hidden=48):
    return WithDecoder(hidden)


def training_step(model, batch):
    x, y = batch
    logits, restored = model(x)
    helping = (restored - x).square().sum() / 2
    return F.cross_entropy(logits, y) + helping


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
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
            right = torch.cat([model(x)[0].argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.1f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
