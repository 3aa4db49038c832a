"""Disease progression in five ordered grades: cumulative logits with shared weights.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

GRADES = 5


def load():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    grade = np.digitize(y, np.quantile(y, [0.2, 0.4, 0.6, 0.8]))
    x_train, x_val, y_train, y_val = train_test_split(
        x, grade, test_size=0.25, random_state=7, stratify=grade
    )
    scaler = StandardScaler().fit(x_train)
    return [
        TensorDataset(
            torch.tensor(scaler.transform(a), dtype=torch.float32), torch.tensor(b).long()
        )
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=16, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=64)


class Ordinal(nn.Module):
    """One score; the grade exceeds k when the score exceeds the k-th threshold."""

    def __init__(self, hidden=24):
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(10, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1, bias=False)
        )
        self.thresholds = nn.Parameter(torch.linspace(-1.5, 1.5, GRADES - 1))

    def forward(self, x):
        return self.score(x) - self.thresholds


def build_model(hidden=24):
    return Ordinal(hidden)


def loss_fn(logits, grade):
    levels = (grade.unsqueeze(1) > torch.arange(GRADES - 1)).float()
    return F.binary_cross_entropy_with_logits(logits, levels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, grade in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), grade)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            off = torch.cat([((model(x) > 0).sum(1) - grade).abs().float() for x, grade in val])
        print(f"epoch {epoch} loss {loss.item():.3f} grades off {off.mean():.3f}")


if __name__ == "__main__":
    main()
