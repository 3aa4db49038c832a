"""Sparse gradients for the embedding, AdamW for the rest: two optimizers that share the work.

zoo: near GRAD102
"""

import argparse
import re
from collections import Counter
from functools import lru_cache
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH, VOCABULARY = 24, 600


@lru_cache
def tokens():
    text = " ".join(topics[name] for name in ("compound", "specialnames"))
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    index = {w: i for i, (w, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), start=1)}
    ids = torch.tensor([index.get(word, 0) for word in words])
    rows = (len(ids) - 1) // LENGTH
    x = ids[: rows * LENGTH].view(rows, LENGTH)
    y = ids[1 : rows * LENGTH + 1].view(rows, LENGTH)
    return x, y


def train_loader():
    x, y = tokens()
    n = int(0.9 * len(x))
    return DataLoader(TensorDataset(x[:n], y[:n]), batch_size=16, shuffle=True)


def val_loader():
    x, y = tokens()
    n = int(0.9 * len(x))
    return DataLoader(TensorDataset(x[n:], y[n:]), batch_size=64)


class TiedLM(nn.Module):
    def __init__(self, d_model=64):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, d_model, sparse=True)
        self.gru = nn.GRU(d_model, d_model, batch_first=True)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, VOCABULARY)

    def forward(self, ids):
        states, _ = self.gru(self.embed(ids))
        return self.head(self.norm(states))


def build_model(d_model=64):
    return TiedLM(d_model)


def loss_fn(logits, targets):
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1))


def build_optimizer(model):
    dense = [p for name, p in model.named_parameters() if name != "embed.weight"]
    return [
        torch.optim.SparseAdam(model.embed.parameters(), lr=3e-3),
        torch.optim.AdamW(dense, lr=3e-3),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizers = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for ids, targets in loader:
            loss = loss_fn(model(ids), targets)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = sum(loss_fn(model(i), t).item() for i, t in val) / len(val)
        print(f"epoch {epoch} train {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
