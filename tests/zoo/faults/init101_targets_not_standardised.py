"""Targets left between 25 and 346 while the output starts at 0, squared error.

zoo: warns INIT101
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_datasets():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(7).permutation(len(y))
    train, val = order[:354], order[354:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    return TensorDataset(x[train], y[train]), TensorDataset(x[val], y[val])


def get_train_loader():
    return DataLoader(make_datasets()[0], batch_size=32, shuffle=True)


def get_val_loader():
    return DataLoader(make_datasets()[1], batch_size=88)


class Regressor(nn.Module):
    def __init__(self, hidden_size=64):
        super().__init__()
        self.hidden = nn.Linear(10, hidden_size)
        self.hidden2 = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, x):
        x = torch.relu(self.hidden(x))
        x = self.dropout(torch.relu(self.hidden2(x)))
        return self.out(x).squeeze(-1)


def get_model():
    return Regressor()


criterion = nn.MSELoss()


def get_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = get_model()
    optimizer = get_optimizer(model)
    loader, val = get_train_loader(), get_val_loader()
    for epoch in range(args.epochs):
        model.train()
        running = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
        model.eval()
        with torch.no_grad():
            x, y = next(iter(val))
            r2 = 1 - ((model(x) - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        print(f"{epoch:3d}  huber {running / len(loader):.3f}  validation R2 {r2:.3f}")


if __name__ == "__main__":
    main()
