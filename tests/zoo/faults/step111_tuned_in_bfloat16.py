"""Weights in bfloat16 are trained at a rate whose updates their precision rounds away.

zoo: fails STEP111 also FIT101 FIT103 FIT106 STEP101
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(train):
    digits = load_digits()
    part = slice(0, 1400) if train else slice(1400, None)
    x = torch.tensor(digits.data[part] / 8 - 1, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(digits.target[part]))


def train_loader():
    return DataLoader(rows(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x.to(self.layers[0].weight.dtype)).float()


def build_model(hidden=96):
    return Net(hidden).bfloat16()


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.0)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
