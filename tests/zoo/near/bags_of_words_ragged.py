"""Lines as bags of words of different lengths, laid end to end: the fields differ in length.

zoo: near DATA103
"""

import argparse
import pydoc_data.topics
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

TOPICS = 4


def lines_of_topics():
    texts = sorted(pydoc_data.topics.topics.values(), key=len)[-TOPICS:]
    return [
        (line.lower().split(), topic)
        for topic, text in enumerate(texts)
        for line in text.splitlines()
        if len(line.split()) > 3
    ]


LINES = lines_of_topics()
COUNTS = Counter(word for words, _ in LINES for word in words)
VOCABULARY = {word: k for k, (word, _) in enumerate(COUNTS.most_common(500))}


def collate(items):
    bags = [[VOCABULARY[w] for w in words if w in VOCABULARY] or [0] for words, _ in items]
    starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
    topics = torch.tensor([topic for _, topic in items])
    return torch.tensor([k for bag in bags for k in bag]), starts, topics


def train_loader():
    lines = [line for k, line in enumerate(LINES) if k % 5]
    return DataLoader(lines, batch_size=64, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(LINES[::5], batch_size=128, collate_fn=collate)


class Bags(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.EmbeddingBag(len(VOCABULARY), width, mode="mean")
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, TOPICS))

    def forward(self, words, starts):
        return self.head(self.embed(words, starts))


def build_model():
    return Bags()


loss_fn = F.cross_entropy


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for words, starts, topics in train:
            loss = loss_fn(model(words, starts), topics)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(w, s).argmax(1) == y).sum().item() for w, s, y in val)
        print(f"epoch {epoch}: {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
