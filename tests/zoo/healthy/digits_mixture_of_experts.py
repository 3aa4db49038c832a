"""A top-2 mixture of experts on digits, with the usual load-balancing term.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EXPERTS, TOP = 4, 2


class MoE(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.router = nn.Linear(d, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))
            for _ in range(EXPERTS)
        )

    def forward(self, x):
        probabilities = self.router(x).softmax(-1)
        weight, chosen = probabilities.topk(TOP, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        output = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            row, slot = (chosen == e).nonzero(as_tuple=True)
            if len(row):
                output = output.index_add(0, row, expert(x[row]) * weight[row, slot, None])
        load = F.one_hot(chosen, EXPERTS).float().mean((0, 1))
        self.balance_loss = EXPERTS * (load * probabilities.mean(0)).sum()
        return x + output


class Net(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.embed = nn.Linear(64, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.moe = MoE(hidden)
        self.out = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.out(self.moe(self.norm(self.embed(x))))


def build_model(hidden=48):
    return Net(hidden)


def _rows(train):
    digits = load_digits()
    x = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train_rows = torch.arange(len(y)) % 4 != 0
    return TensorDataset(x[train_rows == train], y[train_rows == train])


def train_loader():
    return DataLoader(_rows(True), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(_rows(False), batch_size=150)


def training_step(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y) + 0.01 * model.moe.balance_loss


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
