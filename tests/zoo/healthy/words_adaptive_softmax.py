"""Next word over a thousand words with an adaptive softmax; an LSTM with dropout between layers.

zoo: healthy
"""

import argparse
import re
from collections import Counter
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH, WORDS = 16, 1000


@lru_cache
def rows():
    text = " ".join(topics[name] for name in ("compound", "debugger", "specialnames")).lower()
    words = re.findall(r"[a-z_]+|\d+|[^\w\s]", text)
    index = {w: i for i, (w, _) in enumerate(Counter(words).most_common(WORDS - 1), start=1)}
    ids = torch.tensor([index.get(word, 0) for word in words])
    count = (len(ids) - 1) // LENGTH
    return ids[: count * LENGTH].view(count, LENGTH), ids[1 : count * LENGTH + 1].view(
        count, LENGTH
    )


def part(first, last):
    x, y = rows()
    cut = slice(int(first * len(x)), int(last * len(x)))
    return TensorDataset(x[cut], y[cut])


def train_loader():
    return DataLoader(part(0, 0.9), batch_size=20, shuffle=True)


def val_loader():
    return DataLoader(part(0.9, 1), batch_size=40)


class LanguageModel(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.embed = nn.Embedding(WORDS, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=2, dropout=0.2, batch_first=True)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(hidden, WORDS, cutoffs=[100, 400])

    def forward(self, ids):
        return self.lstm(self.embed(ids))[0]


def build_model(hidden=64):
    return LanguageModel(hidden)


def training_step(model, batch):
    ids, following = batch
    states = model(ids)
    return model.softmax(states.flatten(0, 1), following.flatten()).loss


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
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = sum(training_step(model, batch).item() for batch in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
