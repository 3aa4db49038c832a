"""The output (N, C, H, W) is viewed as (-1, C) for the loss: rows of neighbouring pixels.

zoo: fails LOSS109 also FIT101 FIT102
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

INK, BRIGHT = 8, 15


def rows(train):
    images = torch.tensor(load_digits().images, dtype=torch.float32)
    kinds = (images > INK).long() + (images > BRIGHT).long()
    part = slice(0, 1400) if train else slice(1400, None)
    return TensorDataset(images[part, None] / 8 - 1, kinds[part])


def train_loader():
    return DataLoader(rows(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


def build_model(width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 3, 1),
    )


def loss_fn(output, target):
    return F.cross_entropy(output.view(-1, 3), target.view(-1))


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
