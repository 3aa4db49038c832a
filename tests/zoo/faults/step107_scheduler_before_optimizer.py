"""scheduler.step() comes before optimizer.step(): the first learning rate is never used.

zoo: fails STEP107
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def split(part):
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    x, y = (x_train, y_train) if part == "train" else (x_test, y_test)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def train_loader():
    return DataLoader(split("train"), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(split("test"), batch_size=256)


def build_model(hidden=64):
    return nn.Sequential(
        nn.Linear(64, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden),
        nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6 * len(train_loader()))


def training_step(model, batch, optimizer, scheduler):
    x, y = batch
    optimizer.zero_grad()
    loss = loss_fn(model(x), y)
    loss.backward()
    scheduler.step()
    optimizer.step()
    return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    for epoch in range(args.epochs):
        model.train()
        for batch in train:
            loss = training_step(model, batch, optimizer, scheduler)
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
