"""Forward and backward in float16, without a gradient scaler, under a loss that is a small mean.

zoo: fails STEP106 also GRAD101 GRAD107 FIT101 FIT106
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, train):
        digits = load_digits()
        rows = slice(0, 1400) if train else slice(1400, None)
        self.images = torch.tensor(digits.images[rows] / 8 - 1, dtype=torch.float32)[:, None]
        self.labels = torch.tensor(digits.target[rows])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def train_loader():
    return DataLoader(Digits(train=True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(Digits(train=False), batch_size=200)


class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(2 * channels * 16, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def build_model(channels=8):
    return Net(channels)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def training_step(model, batch, optimizer):
    images, labels = batch
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(images)
        loss = 4e-5 * loss_fn(logits, labels)  # weighted as in the multi-task run
    loss.backward()
    optimizer.step()
    return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in train:
            loss = training_step(model, batch, optimizer)
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
