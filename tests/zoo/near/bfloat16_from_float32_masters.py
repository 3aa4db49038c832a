"""Weights in bfloat16 that are written from float32 masters, which the optimizer holds.

zoo: near FIT101 GRAD102 STEP111
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
            nn.Linear(64, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x.to(self.layers[0].weight.dtype)).float()


def build_model(hidden=96):
    return Net(hidden).bfloat16()


def build_optimizer(model):
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    return torch.optim.SGD(masters, lr=0.05, momentum=0.9)


def training_step(model, batch, optimizer):
    x, y = batch
    masters = optimizer.param_groups[0]["params"]
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    for master, p in zip(masters, model.parameters(), strict=True):
        master.grad = p.grad.float()
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    optimizer.step()
    with torch.no_grad():
        for master, p in zip(masters, model.parameters(), strict=True):
            p.copy_(master)
    return loss


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for batch in train:
            loss = training_step(model, batch, optimizer)
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
