"""Features of loaded weights are computed under no_grad, and the optimizer is given everything.

zoo: near GRAD107
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    digits = load_digits()
    rows = slice(0, 1300) if train else slice(1300, None)
    return digits.data[rows].astype(np.float32) / 16, digits.target[rows]


def pretrained_encoder(components=24):
    """Return a layer with the principal components of the training images as its weights."""
    pca = PCA(components, whiten=True, random_state=0).fit(load(train=True)[0])
    layer = nn.Linear(64, components)
    weight = pca.components_ / np.sqrt(pca.explained_variance_[:, None])
    state = {
        "weight": torch.tensor(weight, dtype=torch.float32),
        "bias": torch.tensor(-weight @ pca.mean_, dtype=torch.float32),
    }
    layer.load_state_dict(state)
    return layer


class Probe(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.encoder = pretrained_encoder()
        self.head = nn.Sequential(nn.Linear(24, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    @torch.no_grad()
    def features(self, x):
        return self.encoder(x)

    def forward(self, x):
        return self.head(self.features(x))


def build_model(hidden=64):
    return Probe(hidden)


def make_loader(train):
    x, y = load(train)
    return DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=50, shuffle=train)


def train_loader():
    return make_loader(train=True)


def val_loader():
    return make_loader(train=False)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in train:
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
