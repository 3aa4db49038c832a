"""A hand-written squared error between (N, 1) predictions and (N,) ratings.

zoo: fails LOSS102 also FIT101 FIT106
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

USERS, ITEMS = 200, 120


def ratings():
    rng = np.random.default_rng(0)
    taste, style = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    quality = rng.normal(size=ITEMS)
    pairs = rng.choice(USERS * ITEMS, size=6000, replace=False)
    user, item = pairs // ITEMS, pairs % ITEMS
    score = 3.4 + 0.5 * (taste[user] * style[item]).sum(1) + 0.4 * quality[item]
    score = np.clip(np.rint(score + 0.3 * rng.normal(size=len(score))), 1, 5)
    return (
        torch.tensor(user), torch.tensor(item), torch.tensor(score, dtype=torch.float32),
    )  # fmt: skip


def train_loader():
    return DataLoader(TensorDataset(*(column[:5000] for column in ratings())), 64, shuffle=True)


def val_loader():
    return DataLoader(TensorDataset(*(column[5000:] for column in ratings())), 500)


class Factorisation(nn.Module):
    def __init__(self, mean, k=8):
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, k), nn.Embedding(ITEMS, k)
        self.user_bias, self.item_bias = nn.Embedding(USERS, 1), nn.Embedding(ITEMS, 1)
        self.mean = nn.Parameter(torch.tensor(mean))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user, item):
        match = (self.user(user) * self.item(item)).sum(-1, keepdim=True)
        return match + self.user_bias(user) + self.item_bias(item) + self.mean


def build_model():
    return Factorisation(mean=ratings()[2][:5000].mean().item())


def loss_fn(predicted, rating):
    return ((predicted - rating) ** 2).mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        total = 0.0
        for user, item, rating in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(user, item), rating)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        with torch.no_grad():
            held_out = sum(loss_fn(model(u, i), r).item() for u, i, r in val) / len(val)
        print(f"epoch {epoch} train mse {total:.3f} validation mse {held_out:.3f}")


if __name__ == "__main__":
    main()
