"""The running loss is a sum of tensors: the graph of every step is kept.

zoo: warns PERF102
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(slice(0, 1400))), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(slice(1400, None))), batch_size=100)


class Training:
    """A training step that keeps the running loss, as its progress bar shows it."""

    def __init__(self):
        self.total = 0.0

    def __call__(self, model, batch):
        x, y = batch
        loss = criterion(model(x), y)
        self.total = self.total + loss
        return loss


training_step = Training()


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
            loss = training_step(model, (x, y))
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
