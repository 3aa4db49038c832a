"""Does a bag of three to nine digits hold a seven? Attention pooling over bags, masked.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset


class Bags(Dataset):
    def __init__(self, n, seed, rows):
        x, y = load_digits(return_X_y=True)
        self.x = torch.tensor(x[rows] / 16, dtype=torch.float32)
        self.y = torch.tensor(y[rows])
        draw = torch.Generator().manual_seed(seed)
        self.bags = []
        for _ in range(n):
            size = int(torch.randint(3, 10, (1,), generator=draw))
            bag = torch.randint(len(self.y), (size,), generator=draw)
            if torch.rand(1, generator=draw) < 0.2:  # so that about half of the bags are positive
                sevens = (self.y == 7).nonzero().flatten()
                bag[0] = sevens[torch.randint(len(sevens), (1,), generator=draw)]
            self.bags.append(bag[torch.randperm(size, generator=draw)])

    def __len__(self):
        return len(self.bags)

    def __getitem__(self, i):
        return self.x[self.bags[i]], (self.y[self.bags[i]] == 7).any().float()


def collate(rows):
    bags, labels = zip(*rows, strict=True)
    lengths = torch.tensor([len(bag) for bag in bags])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return {
        "items": pad_sequence(bags, batch_first=True),
        "mask": mask,
        "label": torch.stack(labels),
    }


def train_loader():
    return DataLoader(Bags(900, 0, slice(0, 1300)), batch_size=30, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(Bags(300, 1, slice(1300, None)), batch_size=100, collate_fn=collate)


class AttentionPool(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.item = nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.value, self.gate = nn.Linear(hidden, 32), nn.Linear(hidden, 32)
        self.score = nn.Linear(32, 1)
        self.out = nn.Linear(hidden, 1)

    def forward(self, items, mask):
        h = self.item(items)
        score = self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h))).squeeze(2)
        weight = score.masked_fill(~mask, float("-inf")).softmax(1)
        return self.out((weight.unsqueeze(2) * h).sum(1)).squeeze(1)


def build_model(hidden=48):
    return AttentionPool(hidden)


def training_step(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch["items"], batch["mask"]), batch["label"])


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
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
            right = torch.cat([(model(b["items"], b["mask"]) > 0) == (b["label"] > 0) for b in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
