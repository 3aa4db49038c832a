"""Each term of the loss is back-propagated and clipped by itself; the last one is not.

zoo: fails STEP104
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def table(part):
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(0), (y - 152.0) / 77.0
    rows = slice(0, 360) if part == "train" else slice(360, None)
    return TensorDataset(
        torch.tensor(x[rows], dtype=torch.float32), torch.tensor(y[rows, None], dtype=torch.float32)
    )


def train_loader():
    return DataLoader(table("train"), batch_size=20, shuffle=True)


def val_loader():
    return DataLoader(table("val"), batch_size=82)


class Regressor(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.body(x)))


def build_model(hidden=32):
    return Regressor(hidden)


loss_fn = nn.MSELoss()


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def training_step(model, batch, optimizer, penalty=3.0):
    x, y = batch
    optimizer.zero_grad()
    output = model(x)
    loss = loss_fn(output, y)
    loss.backward(retain_graph=True)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    smooth = penalty * (model(x + 0.05 * torch.randn_like(x)) - output).abs().mean()
    smooth.backward()
    optimizer.step()
    return loss + smooth


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in train:
            loss = training_step(model, batch, optimizer)
        model.eval()
        with torch.no_grad():
            error = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {error:.3f}")


if __name__ == "__main__":
    main()
