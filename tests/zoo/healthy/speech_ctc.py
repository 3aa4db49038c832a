"""Symbols from noisy frames, aligned by CTC: packed sequences, targets of all rows in one tensor.

zoo: healthy
"""

import argparse

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

SYMBOLS, FEATURES = 12, 13


class Utterances(Dataset):
    """Every symbol holds for some frames as a pattern of its own, with noise."""

    def __init__(self, count, seed):
        patterns = torch.randn(SYMBOLS, FEATURES, generator=torch.Generator().manual_seed(99))
        draw = torch.Generator().manual_seed(seed)
        self.items = []
        for _ in range(count):
            length = int(torch.randint(3, 7, (), generator=draw))
            symbols = torch.randint(1, SYMBOLS, (length,), generator=draw)
            held = torch.randint(3, 6, (length,), generator=draw)
            frames = patterns[symbols].repeat_interleave(held, 0)
            noise = torch.randn(frames.shape, generator=draw)
            self.items.append((frames + 0.3 * noise, symbols))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(rows):
    frames, symbols = zip(*rows, strict=True)
    frame_counts = torch.tensor([len(each) for each in frames])
    symbol_counts = torch.tensor([len(each) for each in symbols])
    return pad_sequence(frames, True), torch.cat(symbols), frame_counts, symbol_counts


class Recogniser(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(FEATURES, 48, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, SYMBOLS)

    def forward(self, frames, counts):
        packed = pack_padded_sequence(frames, counts.cpu(), True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.gru(packed)[0], True)
        return self.head(hidden).log_softmax(-1)


def build_model():
    return Recogniser()


def train_loader():
    return DataLoader(Utterances(256, 0), batch_size=32, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(Utterances(64, 1), batch_size=32, collate_fn=collate)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def training_step(model, batch):
    frames, symbols, frame_counts, symbol_counts = batch
    log_probabilities = model(frames, frame_counts).transpose(0, 1)
    return nn.functional.ctc_loss(log_probabilities, symbols, frame_counts, symbol_counts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
