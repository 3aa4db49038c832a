"""Every layer of a deep perceptron is drawn with a standard deviation of 0.01, as in 2012.

zoo: warns INIT104 also NORM101 FIT101 FIT106 GRAD105 INIT103 GRAD101
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
            torch.tensor(b, dtype=torch.float32).unsqueeze(1),
        )
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(load()[0], batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(load()[1], batch_size=143)


def build_model(hidden=64):
    layers = [nn.Linear(30, hidden), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(hidden, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return model


loss_fn = nn.BCEWithLogitsLoss()


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
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
            right = torch.cat([(model(x) > 0) == (y > 0) for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
