"""The data set shifts the labels, and the model shifts them again.

zoo: fails GRAD109
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, Dataset

TEXT = load_wine().DESCR
CHARACTERS = sorted(set(TEXT))
LENGTH = 32


class Pieces(Dataset):
    """Pieces of a text, as input and as labels."""

    def __init__(self, train):
        ids = torch.tensor([CHARACTERS.index(c) for c in TEXT])
        cut = int(0.9 * len(ids))
        self.ids = ids[:cut] if train else ids[cut:]

    def __len__(self):
        return (len(self.ids) - LENGTH - 1) // 3

    def __getitem__(self, i):
        piece = self.ids[3 * i : 3 * i + LENGTH + 1]
        return {"input_ids": piece[:-1], "labels": piece[1:]}


def train_loader():
    return DataLoader(Pieces(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(Pieces(train=False), batch_size=32)


class Reader(nn.Module):
    """Predicts the next character; given labels, it shifts them and returns the loss."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, len(CHARACTERS))

    def forward(self, input_ids, labels=None):
        logits = self.out(self.body(self.embed(input_ids))[0])
        if labels is None:
            return logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def build_model(width=64):
    return Reader(width)


def training_step(model, batch):
    return model(**batch)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(8):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = sum(model(**batch).item() for batch in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
