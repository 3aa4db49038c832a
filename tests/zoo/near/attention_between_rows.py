"""Rows of a table attend to each other, as in SAINT: a prediction depends on the rest of its batch.

zoo: near GRAD103
"""

import argparse

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def table(part):
    x, y = load_wine(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=y
    )
    mean, std = x_train.mean(0), x_train.std(0)
    x, y = (x_train, y_train) if part == "train" else (x_val, y_val)
    return TensorDataset(torch.tensor((x - mean) / std, dtype=torch.float32), torch.tensor(y))


def train_loader():
    return DataLoader(table("train"), batch_size=19, shuffle=True)


def val_loader():
    return DataLoader(table("val"), batch_size=45)


class Saint(nn.Module):
    """Embeds each of 13 columns; attends over the columns of a row, then over the rows."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(13, d) / 4)
        self.bias = nn.Parameter(torch.zeros(13, d))
        self.columns = nn.TransformerEncoderLayer(d, 2, 2 * d, 0.1, batch_first=True)
        self.rows = nn.TransformerEncoderLayer(13 * d, 4, 2 * d, 0.1, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3))

    def forward(self, x):
        h = self.columns(x[..., None] * self.weight + self.bias)
        rows, columns, d = h.shape
        h = self.rows(h.reshape(1, rows, columns * d)).reshape(rows, columns, d)
        return self.head(h.mean(1))


def build_model(width=16):
    return Saint(width)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in train:
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
