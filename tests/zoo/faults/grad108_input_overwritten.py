"""Ids are clamped to 0..1, as for a mask: all words become the same word.

zoo: fails GRAD108 also FIT101 FIT106
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

CHAPTERS = ("compound", "specialnames", "debugger", "typesmapping", "import", "formatstrings")
LENGTH, VOCABULARY = 40, 1500


@lru_cache
def passages():
    """Return word ids (N, 40), chapter labels (N,), and which rows are held out."""
    words = {c: re.findall(r"[A-Za-z_]+|[^\sA-Za-z_]", topics[c].lower()) for c in CHAPTERS}
    common = Counter(w for text in words.values() for w in text).most_common(VOCABULARY - 1)
    index = {word: i for i, (word, _) in enumerate(common, start=1)}
    rows, labels, held_out = [], [], []
    for label, chapter in enumerate(CHAPTERS):
        ids = [index.get(w, 0) for w in words[chapter]]
        for n, start in enumerate(range(0, len(ids) - LENGTH, LENGTH // 2)):
            # Passages overlap by half: hold out runs of ten and drop the one that touches them.
            if n % 50 in (0, 49, 10):
                continue
            rows.append(ids[start : start + LENGTH])
            labels.append(label)
            held_out.append(n % 50 < 10)
    return torch.tensor(rows), torch.tensor(labels), torch.tensor(held_out)


def train_loader():
    ids, labels, held_out = passages()
    return DataLoader(TensorDataset(ids[~held_out], labels[~held_out]), batch_size=32, shuffle=True)


def val_loader():
    ids, labels, held_out = passages()
    return DataLoader(TensorDataset(ids[held_out], labels[held_out]), batch_size=128)


class PassageClassifier(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.gru = nn.GRU(32, hidden, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(2 * hidden, len(CHAPTERS))

    def forward(self, ids):
        states, _ = self.gru(self.embed(ids.clamp(max=0)))
        return self.classify(states.mean(dim=1))


def build_model(hidden=48):
    return PassageClassifier(hidden)


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for ids, labels in train:
            optimizer.zero_grad()
            loss = loss_fn(model(ids), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(ids).argmax(1) == labels for ids, labels in val])
        print(f"epoch {epoch} loss {loss.item():.3f} val accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
