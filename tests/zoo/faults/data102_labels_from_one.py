"""Wine classes numbered 1 to 3, as in the original file, with three outputs: the loss raises.

zoo: fails DATA102 crashes
"""

import argparse

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

X, y = load_wine(return_X_y=True)
X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.25, stratify=y, random_state=3)
y_train, y_val = y_train + 1, y_val + 1  # as in wine.data
scaler = StandardScaler().fit(X_train)

train_set = TensorDataset(
    torch.from_numpy(scaler.transform(X_train)).float(), torch.from_numpy(y_train)
)
val_set = TensorDataset(torch.from_numpy(scaler.transform(X_val)).float(), torch.from_numpy(y_val))

train_loader = DataLoader(train_set, batch_size=16, shuffle=True)
val_loader = DataLoader(val_set, batch_size=64)
criterion = nn.CrossEntropyLoss()


def build_model():
    return nn.Linear(13, 3)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for features, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
        if epoch % 10 == 9:
            with torch.no_grad():
                hits = sum((model(f).argmax(1) == c).sum().item() for f, c in val_loader)
            print(f"epoch {epoch} loss {loss.item():.3f} accuracy {hits / len(val_set):.3f}")


if __name__ == "__main__":
    main()
