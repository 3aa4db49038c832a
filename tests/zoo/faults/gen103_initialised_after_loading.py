"""The initialisation runs after the weights are loaded, and undoes it.

zoo: fails GEN103
"""

import argparse
import io
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(rows):
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.trunk(x))


@lru_cache
def checkpoint():
    """Return the file of a network that was fitted to tell even digits from odd ones."""
    x, y = load(slice(0, 700))
    fitted = MLPClassifier((96, 64), max_iter=30, tol=0.1, random_state=0).fit(x, y % 2)
    model = Net(2)
    layers = [model.trunk[0], model.trunk[2]]
    with torch.no_grad():
        for layer, weight, bias in zip(layers, fitted.coefs_, fitted.intercepts_, strict=False):
            layer.weight.copy_(torch.tensor(weight.T))
            layer.bias.copy_(torch.tensor(bias))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": 30}, file)
    return file.getvalue()


def build_model():
    model = Net(10)
    state = torch.load(io.BytesIO(checkpoint()))["model"]
    del state["head.weight"], state["head.bias"]
    model.load_state_dict(state, strict=False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(slice(0, 1400))), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(slice(1400, None))), batch_size=100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader, val = train_dataloader(), val_dataloader()
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
