"""Graph attention with a finite mask value: rows of padded nodes stay finite.

zoo: near GRAD106
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NODES = 16


def draw(kind, rng):
    n = rng.integers(8, NODES + 1)
    a = np.zeros((NODES, NODES), dtype=np.float32)
    if kind == 0:
        edges = [(i, (i + 1) % n) for i in range(n)]
    elif kind == 1:
        edges = [(0, i) for i in range(1, n)]
    elif kind == 2:
        edges = [(i, j) for i in range(n) for j in (i + 1, i + 4) if j < n]
    else:
        half = n // 2
        edges = [(i, j) for i in range(n) for j in range(i) if (i < half) == (j < half)]
    extra = [tuple(rng.integers(0, n, 2)) for _ in range(rng.integers(0, 3))]
    for i, j in [*edges, *extra]:
        a[i, j] = a[j, i] = 1
    order = np.r_[rng.permutation(n), np.arange(n, NODES)]
    mask = (np.arange(NODES) < n).astype(np.float32)
    return a[np.ix_(order, order)], mask


def make(n, seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 4, n)
    adjacency, masks = zip(*(draw(kind, rng) for kind in kinds), strict=True)
    return TensorDataset(
        torch.tensor(np.stack(adjacency)), torch.tensor(np.stack(masks)), torch.tensor(kinds)
    )


def train_loader():
    return DataLoader(make(800, 0), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(make(200, 1), batch_size=100)


class GraphNet(nn.Module):
    def __init__(self, hidden=32, layers=3):
        super().__init__()
        self.first = nn.Linear(2, hidden)
        self.convs = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in range(layers))
        self.out = nn.Linear(2 * hidden, 4)

    def forward(self, adjacency, mask):
        degree = adjacency.sum(-1, keepdim=True)
        allowed = (1 - adjacency) * -1e9
        x = self.first(torch.cat([degree / 4, mask.unsqueeze(-1)], dim=-1))
        for conv in self.convs:
            attention = (x @ x.transpose(1, 2) / x.shape[-1] ** 0.5 + allowed).softmax(-1)
            mean = attention @ x
            x = F.relu(conv(torch.cat([x, mean], dim=-1))) * mask.unsqueeze(-1)
        pooled = x.sum(1) / mask.sum(1, keepdim=True)
        return self.out(torch.cat([pooled, x.amax(1)], dim=-1))


def build_model(hidden=32):
    return GraphNet(hidden)


def loss_fn(logits, kinds):
    return F.cross_entropy(logits, kinds)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for adjacency, mask, kinds in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(adjacency, mask), kinds)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(a, m).argmax(1) == k for a, m, k in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
