"""A word language model that carries its hidden state on: the order must not be random.

zoo: near DATA104
"""

import argparse
import re
from collections import Counter
from functools import lru_cache
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

COLUMNS, LENGTH, VOCABULARY = 16, 20, 600


@lru_cache
def text():
    words = re.findall(r"\w+|[^\w\s]", (topics["specialnames"] + topics["compound"]).lower())
    index = {w: i for i, (w, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), start=1)}
    return torch.tensor([index.get(word, 0) for word in words])


class Contiguous(Dataset):
    """Item i is the i-th stretch of each of COLUMNS parallel columns of the text."""

    def __init__(self, ids, columns=COLUMNS):
        rows = len(ids) // columns
        self.ids = ids[: rows * columns].view(columns, rows)

    def __len__(self):
        return (self.ids.shape[1] - 1) // LENGTH

    def __getitem__(self, i):
        start = i * LENGTH
        return self.ids[:, start : start + LENGTH], self.ids[:, start + 1 : start + LENGTH + 1]


def train_loader():
    return DataLoader(Contiguous(text()[:13000]), batch_size=None)


def val_loader():
    return DataLoader(Contiguous(text()[13000:]), batch_size=None)


class StatefulLM(nn.Module):
    def __init__(self, d_model=64):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, d_model)
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        self.head = nn.Linear(d_model, VOCABULARY)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.state = None

    def forward(self, ids):
        if self.state is not None and self.state[0].shape[1] != len(ids):
            self.state = None
        output, state = self.lstm(self.embed(ids), self.state)
        self.state = tuple(part.detach() for part in state)
        return self.head(output)


def build_model(d_model=64):
    return StatefulLM(d_model)


def loss_fn(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        model.state = None
        for ids, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
        model.eval()
        model.state = None
        with torch.no_grad():
            held_out = sum(loss_fn(model(i), t).item() for i, t in val) / len(val)
        print(f"epoch {epoch} train {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
