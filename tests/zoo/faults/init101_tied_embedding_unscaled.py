"""Output layer tied to an embedding left at N(0, 1): logits start with a deviation of 11.

zoo: fails INIT101 also INIT102 FIT101
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
    def __init__(self, d_model=128):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, d_model)
        self.gru = nn.GRU(d_model, d_model, batch_first=True)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, VOCABULARY)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        states, _ = self.gru(self.embed(ids))
        return self.head(self.norm(states))


def build_model(d_model=128):
    return TiedLM(d_model)


def loss_fn(logits, targets):
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1))


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for ids, targets in loader:
            loss = loss_fn(model(ids), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = sum(loss_fn(model(i), t).item() for i, t in val) / len(val)
        print(f"epoch {epoch} train {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
