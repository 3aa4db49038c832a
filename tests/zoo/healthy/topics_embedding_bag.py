"""Which help topic does a snippet of a dozen words come from? A bag of hashed words, ragged.

zoo: healthy
"""

import argparse
import random
import re
import zlib
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import DataLoader

TOPICS = ("debugger", "compound", "specialnames", "formatstrings", "typesseq", "execmodel")
BUCKETS = 2048


@lru_cache
def snippets():
    found, draw = [], random.Random(1)
    for label, name in enumerate(TOPICS):
        words = re.findall(r"[a-z]{2,}", topics[name].lower())
        at = 0
        while at < len(words):
            count = draw.randint(6, 18)
            ids = [zlib.crc32(word.encode()) % BUCKETS for word in words[at : at + count]]
            found.append((ids, label))
            at += count
    draw.shuffle(found)
    return found


def collate(rows):
    ids = torch.tensor([i for row, _ in rows for i in row])
    lengths = torch.tensor([0] + [len(row) for row, _ in rows[:-1]])
    return ids, lengths.cumsum(0), torch.tensor([label for _, label in rows])


def train_loader():
    rows = snippets()[: int(0.8 * len(snippets()))]
    return DataLoader(rows, batch_size=32, shuffle=True, collate_fn=collate)


def val_loader():
    rows = snippets()[int(0.8 * len(snippets())) :]
    return DataLoader(rows, batch_size=64, collate_fn=collate)


class FastText(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.bag = nn.EmbeddingBag(BUCKETS, width, mode="mean", sparse=False)
        self.out = nn.Linear(width, len(TOPICS))

    def forward(self, ids, offsets):
        return self.out(self.bag(ids, offsets))


def build_model(width=32):
    return FastText(width)


loss_fn = nn.CrossEntropyLoss()


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
        for ids, offsets, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids, offsets), labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = torch.cat([model(i, o).argmax(1) == y for i, o, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
