"""A frozen backbone with BatchNorm, put in train mode with the rest: its statistics drift.

zoo: warns MODE106
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(train):
    x, y = load_digits(return_X_y=True)
    rows = slice(0, 1400) if train else slice(1400, None)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


def pretrained_backbone(components=24):
    """Return a linear layer that projects pixels on whitened principal components."""
    images, _ = load(train=True)
    pca = PCA(components, whiten=True, random_state=0).fit(images.numpy())
    weight = torch.tensor(pca.components_ / pca.explained_variance_[:, None] ** 0.5)
    layer = nn.Linear(64, components)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(-weight.float() @ torch.tensor(pca.mean_, dtype=torch.float32))
    return layer


class Finetuned(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.backbone = nn.Sequential(pretrained_backbone(), nn.BatchNorm1d(24))
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.head = nn.Sequential(nn.Linear(24, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


def build_model(hidden=64):
    return Finetuned(hidden)


def build_optimizer(model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=2e-3)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(True)), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(False)), batch_size=100)


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
