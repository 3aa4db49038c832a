"""Word vectors from the help pages: skip-gram with negative samples drawn in the loss.

zoo: healthy
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

WORDS, WINDOW, NEGATIVES = 500, 2, 5


@lru_cache
def corpus():
    text = " ".join(topics[name] for name in ("compound", "specialnames")).lower()
    words = re.findall(r"[a-z_]+", text)
    index = {w: i for i, (w, _) in enumerate(Counter(words).most_common(WORDS))}
    ids = torch.tensor([index[w] for w in words if w in index])
    return ids, torch.bincount(ids, minlength=WORDS).float()


def pairs(ids):
    centre, context = [], []
    for shift in range(1, WINDOW + 1):
        centre += [ids[:-shift], ids[shift:]]
        context += [ids[shift:], ids[:-shift]]
    return TensorDataset(torch.cat(centre), torch.cat(context))


def train_loader():
    ids, _ = corpus()
    return DataLoader(pairs(ids[: int(0.9 * len(ids))]), batch_size=256, shuffle=True)


def val_loader():
    ids, _ = corpus()
    return DataLoader(pairs(ids[int(0.9 * len(ids)) :]), batch_size=512)


class SkipGram(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.centre = nn.Embedding(WORDS, width)
        self.context = nn.Embedding(WORDS, width)
        nn.init.uniform_(self.centre.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.context.weight)
        self.register_buffer("frequency", corpus()[1] ** 0.75)

    def forward(self, centre, context):
        return (self.centre(centre).unsqueeze(1) * self.context(context)).sum(-1)


def build_model(width=32):
    return SkipGram(width)


def training_step(model, batch):
    centre, context = batch
    drawn = torch.multinomial(model.frequency, len(centre) * NEGATIVES, replacement=True)
    candidates = torch.cat([context.unsqueeze(1), drawn.view(len(centre), NEGATIVES)], 1)
    score = model(centre, candidates)
    return -(F.logsigmoid(score[:, 0]) + F.logsigmoid(-score[:, 1:]).sum(1)).mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = sum(training_step(model, batch).item() for batch in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
