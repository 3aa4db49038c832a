"""Sentences of varying length in length buckets, packed into an LSTM: which chapter are they from?

zoo: healthy
"""

import argparse
import math
import random
import re
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

LABELS = {"debugger": 0, "compound": 1, "specialnames": 2, "formatstrings": 3}


@lru_cache
def sentences():
    found = []
    for name, label in LABELS.items():
        text = re.sub(r"\s+", " ", topics[name])
        for sentence in re.split(r"(?<=[.:]) ", text):
            if 20 <= len(sentence) <= 120:
                found.append((torch.tensor([min(ord(c), 127) for c in sentence]), label))
    random.Random(0).shuffle(found)
    return found


class Sentences(Dataset):
    def __init__(self, train):
        cut = int(0.8 * len(sentences()))
        self.rows = sentences()[:cut] if train else sentences()[cut:]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class BucketSampler(Sampler):
    """Batches of similar length: shuffle, sort within pools of 8 batches, shuffle the batches."""

    def __init__(self, lengths, batch_size):
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self):
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self):
        order = torch.randperm(len(self.lengths)).tolist()
        batches = []
        for start in range(0, len(order), 8 * self.batch_size):
            pool = sorted(order[start : start + 8 * self.batch_size], key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        for i in torch.randperm(len(batches)).tolist():
            yield batches[i]


def collate(rows):
    ids, labels = zip(*rows, strict=True)
    lengths = torch.tensor([len(row) for row in ids])
    return pad_sequence(ids, batch_first=True), lengths, torch.tensor(labels)


def train_loader():
    data = Sentences(train=True)
    sampler = BucketSampler([len(ids) for ids, _ in data], batch_size=16)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate)


def val_loader():
    return DataLoader(Sentences(train=False), batch_size=32, collate_fn=collate)


class Classifier(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.embed = nn.Embedding(128, 32, padding_idx=0)
        self.lstm = nn.LSTM(32, hidden, batch_first=True)
        self.out = nn.Linear(hidden, len(LABELS))

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(
            self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        return self.out(last[-1])


def build_model(hidden=48):
    return Classifier(hidden)


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for ids, lengths, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids, lengths), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(i, n).argmax(1) == y for i, n, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
