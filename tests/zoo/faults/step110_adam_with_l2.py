"""Adam with weight_decay=0.1, which is an L2 penalty there and not AdamW's decay.

zoo: warns STEP110
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load_split(part):
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.2, random_state=0)
    mean, std = x_train.mean(0), x_train.std(0)
    x, y = (x_train, y_train) if part == "train" else (x_val, y_val)
    return TensorDataset(
        torch.tensor((x - mean) / std, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    )


def train_loader():
    return DataLoader(load_split("train"), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load_split("val"), batch_size=128)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
        )

    def forward(self, x):
        return self.net(x).flatten()


def build_model():
    return Classifier()


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--clip", type=float, default=1.0)
    args = parser.parse_args()
    torch.manual_seed(1)
    model = build_model()
    optimizer = build_optimizer(model)
    train, val = train_loader(), val_loader()
    for epoch in range(1, args.epochs + 1):
        model.train()
        for x, y in train:
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x, y = next(iter(val))
            accuracy = ((model(x) > 0) == (y > 0.5)).float().mean().item()
        print(f"epoch {epoch}: last loss {loss.item():.3f}, validation accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
