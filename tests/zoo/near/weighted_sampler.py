"""Imbalanced digits drawn with replacement by a WeightedRandomSampler: no epoch covers the data.

zoo: near DATA104 DATA110
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

rng = np.random.default_rng(0)
digits = load_digits()
keep = rng.random(len(digits.target)) < 1 / (1 + digits.target)
X, y = digits.data[keep] / 16, digits.target[keep]
X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
counts = np.bincount(y_train, minlength=10)


def train_loader():
    data = TensorDataset(torch.tensor(X_train, dtype=torch.float32), torch.tensor(y_train))
    sampler = WeightedRandomSampler((1 / counts[y_train]).tolist(), num_samples=len(data))
    return DataLoader(data, batch_size=32, sampler=sampler)


def val_loader():
    data = TensorDataset(torch.tensor(X_val, dtype=torch.float32), torch.tensor(y_val))
    return DataLoader(data, batch_size=len(data))


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            images, labels = next(iter(val))
            f1 = f1_score(labels, model(images).argmax(1), average="macro")
        print(f"epoch {epoch}: loss {loss.item():.3f}, macro F1 {f1:.3f}")


if __name__ == "__main__":
    main()
