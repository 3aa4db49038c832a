"""Loan applications: categorical columns, skewed amounts, missing values; one in eight defaults.

zoo: healthy
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

HOME = ["rent", "own", "mortgage", "unknown"]
PURPOSE = ["car", "debt", "house", "medical", "education", "other"]


def applications(n, seed):
    rng = np.random.default_rng(seed)
    income = rng.lognormal(10.4, 0.5, n)
    amount = income * rng.beta(2, 6, n)
    age = rng.integers(18, 75, n).astype(float)
    employed = np.clip(rng.exponential(6, n), 0, age - 17)
    home = rng.choice(len(HOME), n, p=[0.4, 0.25, 0.3, 0.05])
    purpose = rng.choice(len(PURPOSE), n, p=[0.2, 0.3, 0.1, 0.1, 0.1, 0.2])
    logit = (
        -3.4 + 3.5 * amount / income - 0.12 * employed + 0.5 * (home == 0) + 0.8 * (purpose == 3)
    )
    default = rng.random(n) < 1 / (1 + np.exp(-logit))
    income[rng.random(n) < 0.15] = np.nan  # not everybody says what they earn
    employed[rng.random(n) < 0.05] = np.nan
    return (
        np.column_stack([income, amount, age, employed]),
        np.column_stack([home, purpose]),
        default,
    )


class Applications(Dataset):
    def __init__(self, n, seed, statistics=None):
        numbers, self.categories, self.default = applications(n, seed)
        numbers[:, :2] = np.log(numbers[:, :2])
        if statistics is None:
            statistics = np.nanmedian(numbers, 0), np.nanstd(numbers, 0)
        self.statistics = statistics
        missing = np.isnan(numbers)
        filled = np.where(missing, statistics[0], numbers)
        scaled = (filled - statistics[0]) / statistics[1]
        self.numbers = np.concatenate([scaled, missing[:, [0, 3]]], axis=1).astype(np.float32)

    def __len__(self):
        return len(self.default)

    def __getitem__(self, i):
        return self.numbers[i], self.categories[i], np.float32(self.default[i])


def train_loader():
    return DataLoader(Applications(2400, 0), batch_size=64, shuffle=True)


def val_loader():
    statistics = Applications(2400, 0).statistics
    return DataLoader(Applications(800, 1, statistics), batch_size=200)


class Tabular(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.embed = nn.ModuleList([nn.Embedding(len(HOME), 3), nn.Embedding(len(PURPOSE), 4)])
        self.drop = nn.Dropout(0.1)
        self.layers = nn.Sequential(
            nn.Linear(6 + 7, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Dropout(0.2),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, 1),
        )

    def forward(self, numbers, categories):
        columns = [e(categories[:, k]) for k, e in enumerate(self.embed)]
        return self.layers(torch.cat([numbers, self.drop(torch.cat(columns, 1))], 1)).squeeze(1)


def build_model(hidden=48):
    return Tabular(hidden)


criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for numbers, categories, default in loader:
            optimizer.zero_grad()
            loss = criterion(model(numbers, categories), default)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            scores = [(model(n, c), d) for n, c, d in val]
        score, default = (torch.cat(column) for column in zip(*scores, strict=True))
        auc = (score[default > 0][:, None] > score[default == 0][None]).float().mean()
        print(f"epoch {epoch} loss {loss.item():.3f} AUC {auc:.3f}")


if __name__ == "__main__":
    main()
