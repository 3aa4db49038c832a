"""Raw logits given to nll_loss, which expects log-probabilities: the loss falls without bound.

zoo: fails LOSS101 also INIT101 FIT101 FIT106
"""

import argparse
import io
import textwrap
import tokenize
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

PAD = -100
KINDS = {
    tokenize.NAME: 1,
    tokenize.NUMBER: 2,
    tokenize.STRING: 3,
    tokenize.OP: 4,
    tokenize.COMMENT: 5,
}


@lru_cache
def lines():
    """Return (character codes, tags) per source line of the standard library's textwrap module."""
    source = Path(textwrap.__file__).read_text(encoding="ascii", errors="replace")
    text = source.splitlines(keepends=True)
    tags = [[0] * len(line) for line in text]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, start), (last, end) = token.start, token.end
        for r in range(row, last + 1):
            if r > len(text):
                continue
            first, stop = start if r == row else 0, end if r == last else len(text[r - 1])
            for c in range(first, min(stop, len(text[r - 1]))):
                tags[r - 1][c] = KINDS.get(token.type, 0)
    pairs = zip(text, tags, strict=True)
    return [
        (torch.tensor([min(ord(c), 127) for c in line]), torch.tensor(tag))
        for line, tag in pairs
        if line.strip()
    ]


def collate(rows):
    ids, tags = zip(*rows, strict=True)
    return (
        pad_sequence(ids, batch_first=True, padding_value=0),
        pad_sequence(tags, batch_first=True, padding_value=PAD),
    )


def train_loader():
    rows = [pair for i, pair in enumerate(lines()) if i % 5]
    return DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)


def val_loader():
    rows = [pair for i, pair in enumerate(lines()) if i % 5 == 0]
    return DataLoader(rows, batch_size=32, collate_fn=collate)


class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.embed = nn.Embedding(128, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, 6)

    def forward(self, ids):
        states, _ = self.lstm(self.embed(ids))
        return self.out(states)


def build_model(hidden=32):
    return Tagger(hidden)


def loss_fn(logits, tags):
    return F.nll_loss(logits.transpose(1, 2), tags, ignore_index=PAD)


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
        model.train()
        for ids, tags in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(ids), tags)
            loss.backward()
            optimizer.step()
        model.eval()
        right = total = 0
        with torch.no_grad():
            for ids, tags in val:
                real = tags != PAD
                right += (model(ids).argmax(-1) == tags)[real].sum().item()
                total += real.sum().item()
        print(f"epoch {epoch} loss {loss.item():.3f} val tag accuracy {right / total:.3f}")


if __name__ == "__main__":
    main()
