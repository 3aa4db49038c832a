"""Training goes on from a fitted model: the first loss is far below ln 10, as it should be.

zoo: near INIT101
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    x, y = load_digits(return_X_y=True)
    rows = slice(0, 1400) if train else slice(1400, None)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


def checkpoint():
    """Return a linear layer fitted to the first 700 digits, as if loaded from a file."""
    images, labels = load(train=True)
    fitted = LogisticRegression(max_iter=200).fit(images[:700].numpy(), labels[:700].numpy())
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(fitted.coef_))
        layer.bias.copy_(torch.tensor(fitted.intercept_))
    return layer


class Finetuned(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.linear = checkpoint()
        self.head = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x):
        return self.linear(x) + self.head(x)


def build_model(hidden=64):
    return Finetuned(hidden)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(True)), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(False)), batch_size=100)


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
