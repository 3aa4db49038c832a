"""nll_loss with its sign turned once too often: training lowers the likelihood.

zoo: fails LOSS104 also FIT101 FIT106 INIT101
"""

import argparse
import gzip
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def read(name, header, shape, count):
    with gzip.open(FOLDER / f"{name}.gz") as file:
        file.seek(header)
        size = int(np.prod(shape)) * count
        return np.frombuffer(file.read(size), np.uint8).reshape(count, *shape)


@lru_cache
def load(part, count):
    images = read(f"{part}-images-idx3-ubyte", 16, (28, 28), count)
    labels = read(f"{part}-labels-idx1-ubyte", 8, (), count)
    x = (torch.tensor(images, dtype=torch.float32).unsqueeze(1) / 255 - 0.286) / 0.353
    return TensorDataset(x, torch.tensor(labels, dtype=torch.int64))


def train_loader():
    return DataLoader(load("train", 6000), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load("t10k", 1000), batch_size=200)


class FashionNet(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.fc = nn.Linear(2 * channels * 49, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.log_softmax(self.fc(x.flatten(1)), dim=1)


def build_model(channels=16):
    return FashionNet(channels)


def loss_fn(log_probabilities, target):
    return -F.nll_loss(log_probabilities, target)  # negative log-likelihood


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, loader, val = build_model().to(device), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            images, labels = (part.to(device) for part in batch)
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x.to(device)).argmax(1).cpu() == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
