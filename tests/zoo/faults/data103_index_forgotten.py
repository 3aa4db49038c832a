"""Every item is the first image, with a label of its own: the index was forgotten in one place.

zoo: fails DATA103 also DATA111 FIT101
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, train):
        data = load_digits()
        keep = (np.arange(len(data.target)) % 5 != 0) == train
        self.images = [image.astype(np.float32) / 16 for image in data.images[keep]]
        self.labels = data.target[keep].tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[0])
        return image.unsqueeze(0), self.labels[index]


def train_loader():
    return DataLoader(Digits(train=True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Digits(train=False), batch_size=100)


def build_model(hidden=48):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        losses = []
        for images, labels in train:
            loss = loss_fn(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in val)
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
