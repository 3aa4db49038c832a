"""A stream of lines that does not ask which worker it is: with two, every line comes twice.

zoo: fails DATA105
"""

import argparse
import pydoc_data.topics
import random
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

TOPICS = ("STRINGS", "OPERATORS", "CLASSES", "EXCEPTIONS")


def lines_of_topics():
    """The lines of the documentation's longest topics, each with the number of its topic."""
    topics = sorted(pydoc_data.topics.topics.values(), key=len)[-len(TOPICS) :]
    return [
        (line.strip().lower(), k)
        for k, text in enumerate(topics)
        for line in text.splitlines()
        if len(line.strip()) > 30
    ][::2]


class Lines(IterableDataset):
    """Lines as counts of letter pairs, shuffled in memory."""

    def __init__(self, lines):
        self.lines = lines

    def __iter__(self):
        order = list(range(len(self.lines)))
        random.shuffle(order)
        for i in order:
            text, topic = self.lines[i]
            pairs = [32 * (ord(a) % 32) + ord(b) % 32 for a, b in pairwise(text)]
            counts = torch.bincount(torch.tensor(pairs), minlength=32 * 32)
            yield counts / len(pairs) ** 0.5, topic


def train_loader():
    return DataLoader(Lines(lines_of_topics()), batch_size=64, num_workers=2)


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(1024, hidden), nn.ReLU(), nn.Linear(hidden, len(TOPICS)))


loss_fn = F.cross_entropy


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        total = right = 0
        for x, y in train:
            logits = model(x)
            loss = loss_fn(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += (logits.argmax(1) == y).sum().item()
            total += len(y)
        print(f"epoch {epoch}: {total} lines, {right / total:.2f} right")


if __name__ == "__main__":
    main()
