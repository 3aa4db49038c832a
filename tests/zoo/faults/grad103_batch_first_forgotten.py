"""batch_first is missing: attention runs over the images of a batch instead of over patches.

zoo: fails GRAD103 also FIT101
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

WARMUP = 40


def _datasets():
    digits = load_digits()
    data = TensorDataset(
        torch.tensor((digits.images - 4.9) / 6.0, dtype=torch.float32).unsqueeze(1),
        torch.tensor(digits.target),
    )
    return random_split(data, [1437, 360], generator=torch.Generator().manual_seed(42))


def train_loader():
    return DataLoader(_datasets()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(_datasets()[1], batch_size=120)


class ViT(nn.Module):
    def __init__(self, d_model=48):
        super().__init__()
        self.patch = nn.Conv2d(1, d_model, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, d_model))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, d_model))
        layer = nn.TransformerEncoderLayer(
            d_model,
            4,
            2 * d_model,
            dropout=0.1,
            activation="gelu",
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, 10))

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1) + self.position
        return self.head(self.encoder(tokens).mean(dim=1))


def build_model(d_model=48):
    return ViT(d_model)


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (WARMUP / (step + 1)) ** 0.5)
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
