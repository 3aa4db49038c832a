"""An accuracy of one's own that rounds logits, not probabilities: perfect predictions are wrong.

zoo: fails GEN105
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load():
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=y
    )
    scaler = StandardScaler().fit(x_train)
    return [
        TensorDataset(
            torch.tensor(scaler.transform(a), dtype=torch.float32),
            torch.tensor(b, dtype=torch.float32),
        )
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=48)


class Classifier(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)


def build_model(hidden=24):
    return Classifier(hidden)


loss_fn = nn.BCEWithLogitsLoss()


def accuracy(output, target):
    return (output.round() == target).float().mean().item()


metrics = {"accuracy": accuracy}


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = sum(accuracy(model(x), y) for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {found:.3f}")


if __name__ == "__main__":
    main()
