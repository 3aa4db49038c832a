"""The collate function sorts the sentences by length, and leaves the labels where they were.

zoo: fails DATA103
"""

import argparse
import random
import re
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

LABELS = {"debugger": 0, "compound": 1, "specialnames": 2, "formatstrings": 3}


@lru_cache
def sentences():
    found = []
    for name, label in LABELS.items():
        text = re.sub(r"\s+", " ", topics[name])
        for sentence in re.split(r"(?<=[.:]) ", text):
            if 20 <= len(sentence) <= 100:
                found.append((torch.tensor([min(ord(c), 127) for c in sentence]), label))
    random.Random(0).shuffle(found)
    return found


def collate(rows):
    ids = sorted((row for row, _ in rows), key=len, reverse=True)  # as packing wants it
    lengths = torch.tensor([len(row) for row in ids])
    return pad_sequence(ids, batch_first=True), lengths, torch.tensor([y for _, y in rows])


def train_loader():
    rows = sentences()[: int(0.8 * len(sentences()))]
    return DataLoader(rows, batch_size=24, shuffle=True, collate_fn=collate)


def val_loader():
    rows = sentences()[int(0.8 * len(sentences())) :]
    return DataLoader(rows, batch_size=48, collate_fn=collate)


class Classifier(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.embed = nn.Embedding(128, 24, padding_idx=0)
        self.gru = nn.GRU(24, hidden, batch_first=True)
        self.out = nn.Linear(hidden, len(LABELS))

    def forward(self, ids, lengths):
        _, last = self.gru(pack_padded_sequence(self.embed(ids), lengths.cpu(), batch_first=True))
        return self.out(last[-1])


def build_model(hidden=32):
    return Classifier(hidden)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for ids, lengths, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids, lengths), labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = torch.cat([model(i, n).argmax(1) == y for i, n, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
