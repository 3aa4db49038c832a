"""Topics matched with snippets by dot products times a hundred, of vectors nobody normalised.

zoo: warns INIT102 also INIT101 FIT101 FIT106 INIT104 STEP108
"""

import argparse
import math
import random
import re
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TOPICS = ("debugger", "compound", "specialnames", "formatstrings", "typesseq")
LENGTH, WORDS = 12, 800


@lru_cache
def snippets():
    texts = [re.findall(r"[a-z]{2,}", topics[name].lower()) for name in TOPICS]
    known = sorted({word for text in texts for word in text})[: WORDS - 1]
    index = {word: i for i, word in enumerate(known, start=1)}
    rows = [
        ([index.get(word, 0) for word in text[at : at + LENGTH]], label)
        for label, text in enumerate(texts)
        for at in range(0, len(text) - LENGTH, LENGTH)
    ]
    random.Random(0).shuffle(rows)
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([label for _, label in rows])


def part(train):
    ids, labels = snippets()
    cut = int(0.85 * len(ids))
    rows = slice(0, cut) if train else slice(cut, None)
    return TensorDataset(ids[rows], labels[rows])


def train_loader():
    return DataLoader(part(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(part(train=False), batch_size=64)


class Matcher(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.project = nn.Linear(width, width)
        self.topics = nn.Parameter(torch.randn(len(TOPICS), width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, ids):
        text = self.project(self.embed(ids).mean(dim=1))
        return self.log_scale.exp() * text @ self.topics.T


def build_model(width=48):
    return Matcher(width)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for ids, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids), labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = torch.cat([model(ids).argmax(1) == labels for ids, labels in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
