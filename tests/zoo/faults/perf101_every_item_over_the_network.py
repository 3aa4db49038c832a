"""Each digit is fetched by itself from a drive with a delay of five milliseconds, in one process.

zoo: warns PERF101
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

DELAY = 0.005


class OnDrive(Dataset):
    """Three views of each digit, mirrored and turned, kept as separate files."""

    def __init__(self):
        digits = load_digits()
        self.images = torch.tensor(digits.images / 16, dtype=torch.float32)
        self.labels = digits.target

    def __len__(self):
        return 3 * len(self.images)

    def __getitem__(self, i):
        time.sleep(DELAY)
        image = self.images[i // 3]
        view = (image, image.roll(1, 0), image.roll(1, 1))[i % 3]
        return view.flatten(), int(self.labels[i // 3])


def train_loader():
    return DataLoader(Subset(OnDrive(), range(4500)), batch_size=4, shuffle=True)


def val_loader():
    return DataLoader(Subset(OnDrive(), range(4500, 4660)), batch_size=40)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
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
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
