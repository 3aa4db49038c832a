"""Papers that cite each other, four fields, a few labels: a graph network, one batch of all nodes.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FIELDS, NODES = 4, 400


def graph():
    """A graph whose edges prefer the same field, with sparse words that hint at it."""
    rng = np.random.default_rng(0)
    field = rng.integers(0, FIELDS, NODES)
    same = field[:, None] == field[None]
    edges = np.triu(rng.random((NODES, NODES)) < np.where(same, 0.03, 0.005), 1)
    adjacency = torch.tensor(edges | edges.T, dtype=torch.float32) + torch.eye(NODES)
    degree = adjacency.sum(1)
    words = rng.random((NODES, 60)) < 0.03 + 0.1 * (np.arange(60)[None] // 15 == field[:, None])
    return (
        torch.tensor(words, dtype=torch.float32),
        adjacency / torch.sqrt(degree[:, None] * degree[None]),
        torch.tensor(field),
    )


def split():
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, NODES, dtype=torch.bool)
    mask[0, order[:120]] = True
    mask[1, order[120:]] = True
    return mask


def train_loader():
    words, adjacency, field = graph()
    return [(words, adjacency, field, split()[0])]


def val_loader():
    words, adjacency, field = graph()
    return [(words, adjacency, field, split()[1])]


class GCN(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.first = nn.Linear(60, hidden)
        self.second = nn.Linear(hidden, FIELDS)

    def forward(self, words, adjacency):
        h = F.relu(adjacency @ self.first(F.dropout(words, 0.3, self.training)))
        return adjacency @ self.second(F.dropout(h, 0.5, self.training))


def build_model(hidden=32):
    return GCN(hidden)


def training_step(model, batch):
    words, adjacency, field, mask = batch
    return F.cross_entropy(model(words, adjacency)[mask], field[mask])


def build_optimizer(model):
    return torch.optim.Adam(
        [
            {"params": model.first.parameters(), "weight_decay": 5e-4},
            {"params": model.second.parameters(), "weight_decay": 0.0},
        ],
        lr=0.01,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=150)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    (batch,), (held_out,) = train_loader(), val_loader()
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        loss = training_step(model, batch)
        loss.backward()
        optimizer.step()
        model.eval()
        if epoch % 30 == 29:
            words, adjacency, field, mask = held_out
            with torch.no_grad():
                right = (model(words, adjacency).argmax(1) == field)[mask].float().mean()
            print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right:.3f}")


if __name__ == "__main__":
    main()
