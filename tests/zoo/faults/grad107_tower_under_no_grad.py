"""One of two towers is called under no_grad, left over from debugging.

zoo: fails GRAD107 also GRAD101 FIT101
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Halves(Dataset):
    """(upper half, lower half, 1.0 if of the same class); pairs drawn once, from a seed."""

    def __init__(self, n, seed, train):
        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32)
        labels = torch.tensor(digits.target)
        rows = torch.arange(len(labels)) < 1400
        images, labels = (images[rows], labels[rows]) if train else (images[~rows], labels[~rows])
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(len(labels), (n,), generator=generator)
        second = torch.randint(len(labels), (n,), generator=generator)
        for i in range(0, n, 2):
            same = (labels == labels[first[i]]).nonzero().flatten()
            second[i] = same[torch.randint(len(same), (1,), generator=generator)]
        self.upper = images[first, :4].flatten(1)
        self.lower = images[second, 4:].flatten(1)
        self.same = (labels[first] == labels[second]).float()

    def __len__(self):
        return len(self.same)

    def __getitem__(self, i):
        return self.upper[i], self.lower[i], self.same[i]


def train_loader():
    return DataLoader(Halves(3000, 0, train=True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(Halves(600, 1, train=False), batch_size=200)


class Matcher(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.upper = nn.Sequential(nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.lower = nn.Sequential(nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.compare = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, upper, lower):
        v = self.lower(lower)
        with torch.no_grad():
            u = self.upper(upper)
        return self.compare(torch.cat([u * v, u - v], dim=1)).squeeze(1)


def build_model(hidden=64):
    return Matcher(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for upper, lower, same in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(upper, lower), same)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([(model(u, v) > 0) == (s > 0) for u, v, s in val])
        print(f"epoch {epoch} loss {loss.item():.3f} val accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
