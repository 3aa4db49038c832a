"""Brightness is changed in the stored pictures themselves, so that they fade as they are read.

zoo: fails DATA116 also DATA107 DATA111 FIT101 FIT103 FIT106 SEED101
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, train):
        digits = load_digits()
        rows = slice(0, 1400) if train else slice(1400, None)
        self.pictures = (digits.images[rows] / 16).astype(np.float32)
        self.labels = digits.target[rows].astype(np.int64)
        self.train = train

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        picture = self.pictures[i]
        if self.train:
            picture *= np.random.uniform(0.6, 1.0)
            picture += np.random.normal(0.0, 0.02)
        return torch.tensor(picture)[None], self.labels[i]


def train_loader():
    return DataLoader(Digits(train=True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(Digits(train=False), batch_size=200)


def build_model(hidden=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    torch.manual_seed(0)
    np.random.seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for pictures, labels in train:
            optimizer.zero_grad()
            loss = loss_fn(model(pictures), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
