"""A small network learns from a forest's probabilities and from the labels: distillation.

zoo: healthy
"""

import argparse
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEMPERATURE, SHARE = 2.0, 0.7


@lru_cache
def load():
    x, y = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.2, random_state=0)
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0).fit(x_train, y_train)
    taught = forest.predict_proba(x_train)
    train = TensorDataset(
        torch.tensor(x_train / 16, dtype=torch.float32),
        torch.tensor(taught, dtype=torch.float32),
        torch.tensor(y_train),
    )
    val = TensorDataset(
        torch.tensor(x_val / 16, dtype=torch.float32),
        torch.tensor(forest.predict_proba(x_val), dtype=torch.float32),
        torch.tensor(y_val),
    )
    return train, val


def train_loader():
    return DataLoader(load()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=90)


def build_model(hidden=32):
    return nn.Sequential(nn.Linear(64, hidden), nn.GELU(), nn.Linear(hidden, 10))


def training_step(model, batch):
    x, taught, y = batch
    logits = model(x)
    softened = torch.softmax(torch.log(taught + 1e-4) / TEMPERATURE, dim=1)
    soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), softened, reduction="batchmean")
    return SHARE * TEMPERATURE**2 * soft + (1 - SHARE) * F.cross_entropy(logits, y)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, _, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
