"""The average of the weights that is validated leaves out the running statistics.

zoo: near MODE108
zoo script: fails MODE108
"""

import copy

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(train):
    wine = load_wine()
    x = torch.tensor((wine.data - wine.data.mean(0)) / wine.data.std(0), dtype=torch.float32)
    order = torch.randperm(178, generator=torch.Generator().manual_seed(0))
    order = order[:130] if train else order[130:]
    return TensorDataset(x[order], torch.tensor(wine.target)[order])


def train_loader():
    return DataLoader(rows(True), batch_size=13, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=48)


def build_model(hidden=48):
    return nn.Sequential(
        nn.Linear(13, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(hidden, 3),
    )  # fmt: skip


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


@torch.no_grad()
def validated(model, val):
    model.eval()
    return sum(loss_fn(model(x), y).item() for x, y in val) / len(val)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    average = copy.deepcopy(model).requires_grad_(False)
    for epoch in range(20):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for mean, p in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(p, 0.05)
        print(f"epoch {epoch} {validated(model, val):.3f} average {validated(average, val):.3f}")


if __name__ == "__main__":
    main()
