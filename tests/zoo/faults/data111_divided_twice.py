"""Images already scaled to [0, 1] are divided by 255 once more.

zoo: warns DATA111 also STEP109 FIT101 FIT106
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    data = load_digits()
    keep = (np.arange(len(data.target)) % 5 != 0) == train
    images = data.images[keep] / 16  # in [0, 1]
    images = torch.tensor(images / 255, dtype=torch.float32).unsqueeze(1)
    return TensorDataset(images, torch.tensor(data.target[keep]))


def train_loader():
    return DataLoader(load(train=True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(load(train=False), batch_size=100)


def build_model(width=64):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


loss_fn = F.cross_entropy


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {loss.item():.3f}, {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
