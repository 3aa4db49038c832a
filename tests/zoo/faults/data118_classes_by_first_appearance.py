"""Each split numbers its classes in the order in which they first appear.

zoo: fails DATA118 also GEN101 FIT102
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Folders(Dataset):
    """Pictures by the name of their class, numbered in the order of first appearance."""

    def __init__(self, train):
        digits = load_digits()
        rows = slice(0, 1300) if train else slice(1300, None)
        names = [f"digit {n}" for n in digits.target[rows]]
        self.pictures = torch.tensor(digits.images[rows] / 8 - 1, dtype=torch.float32)[:, None]
        self.classes = list(dict.fromkeys(names))
        self.labels = [self.classes.index(name) for name in names]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.pictures[i], self.labels[i]


def train_loader():
    return DataLoader(Folders(train=True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(Folders(train=False), batch_size=100)


def build_model(channels=8):
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * channels, 10),
    )  # fmt: skip


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    torch.manual_seed(0)
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
