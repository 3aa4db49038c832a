"""A wide network, 40 rows of which some are labelled wrongly, nothing that holds it back.

zoo: warns GEN101 also FIT107
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def noisy(labels):
    """Return ``labels``, a fifth of them wrong, as careless annotators leave them."""
    generator = torch.Generator().manual_seed(3)
    wrong = torch.rand(len(labels), generator=generator) < 0.2
    others = torch.randint(0, 10, (len(labels),), generator=generator)
    return torch.where(wrong, others, torch.tensor(labels)).numpy()


def load(rows):
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(noisy(y)[rows])


def build_model(hidden=512):
    return nn.Sequential(
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(slice(0, 40))), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(slice(1400, None))), batch_size=100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader, val = train_dataloader(), val_dataloader()
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
