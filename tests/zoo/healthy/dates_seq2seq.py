"""Dates as people write them into ISO form: a GRU reads, another writes, with teacher forcing.

zoo: healthy
"""

import argparse
import datetime
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

PAD, BEGIN = 0, 1
FORMS = ("%d %B %Y", "%B %d, %Y", "%d/%m/%y", "%a %d %b %Y")


def encode(text):
    return torch.tensor([ord(c) - 30 for c in text])  # a space is 2


class Dates(Dataset):
    def __init__(self, n, seed):
        draw = random.Random(seed)
        self.pairs = []
        for _ in range(n):
            day = datetime.date(1990, 1, 1) + datetime.timedelta(days=draw.randrange(14000))
            self.pairs.append((day.strftime(draw.choice(FORMS)).lower(), day.isoformat()))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        written, iso = self.pairs[i]
        return encode(written), encode(iso)


def collate(rows):
    written, iso = zip(*rows, strict=True)
    return pad_sequence(written, batch_first=True, padding_value=PAD), torch.stack(iso)


def train_loader():
    return DataLoader(Dates(1200, 0), batch_size=32, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(Dates(300, 1), batch_size=100, collate_fn=collate)


class Seq2Seq(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.embed = nn.Embedding(96, 32, padding_idx=PAD)
        self.encoder = nn.GRU(32, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = nn.GRU(32, hidden, batch_first=True)
        self.attend = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(3 * hidden, 96)

    def forward(self, written, before):
        states, last = self.encoder(self.embed(written))
        start = torch.tanh(self.bridge(torch.cat([last[0], last[1]], 1))).unsqueeze(0)
        queries, _ = self.decoder(self.embed(before), start)
        scores = self.attend(queries) @ states.transpose(1, 2)
        scores = scores.masked_fill((written == PAD).unsqueeze(1), float("-inf"))
        context = scores.softmax(2) @ states
        return self.out(torch.cat([queries, context], 2))


def build_model(hidden=48):
    return Seq2Seq(hidden)


def training_step(model, batch):
    written, iso = batch
    before = torch.cat([torch.full_like(iso[:, :1], BEGIN), iso[:, :-1]], 1)
    logits = model(written, before)
    return F.cross_entropy(logits.flatten(0, 1), iso.flatten())


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
