"""The sampler seeds the global generator when an epoch begins, so every epoch is the first one.

zoo: warns SEED102 also DATA104
zoo script: warns DATA104 also SEED102
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset


def load(rows):
    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x[rows] - 4.88) / 6.02, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(y[rows]))


class Reproducible(Sampler):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        torch.manual_seed(1234)
        return iter(torch.randperm(len(self.data)).tolist())


def train_loader():
    data = load(slice(0, 1400))
    return DataLoader(data, batch_size=50, sampler=Reproducible(data))


def val_loader():
    return DataLoader(load(slice(1400, None)), batch_size=100)


def build_model(hidden=48):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
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
