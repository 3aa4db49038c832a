"""ExponentialLR meant per epoch and stepped per batch: the rate is gone within one epoch.

zoo: healthy
zoo script: fails STEP105 also STEP108

Handed over as functions it is healthy: only the loop steps the schedule too often.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 8


def load_data():
    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train, val = train_test_split(range(len(labels)), test_size=0.2, random_state=1)
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    return TensorDataset(images[train], labels[train]), TensorDataset(images[val], labels[val])


def train_loader():
    return DataLoader(load_data()[0], batch_size=64, shuffle=True, drop_last=True)


def val_loader():
    return DataLoader(load_data()[1], batch_size=128)


def block(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class Net(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.features = nn.Sequential(
            block(1, width), block(width, width), nn.MaxPool2d(2), block(width, 2 * width)
        )
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = self.features(x).mean(dim=(2, 3))
        return self.fc(self.drop(x))


def build_model(width=24):
    return Net(width)


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, val = train_loader(), val_loader()
    model = build_model().to(device)
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            loss = loss_fn(model(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            hits = [(model(x.to(device)).argmax(1).cpu() == y).float() for x, y in val]
        print(f"[{epoch}] loss={loss.item():.3f} val_acc={torch.cat(hits).mean():.3f}")


if __name__ == "__main__":
    main()
