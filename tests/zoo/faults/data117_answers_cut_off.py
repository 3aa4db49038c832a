"""A maximum length cuts the answers off, so that most rows have nothing to learn.

zoo: fails DATA117 also FIT101
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

WORDS, IGNORED, END, PADDING = 24, -100, 2, 0
LONGEST = 9


class Reversals(Dataset):
    """Words of a prompt, then the last of them in reverse; only the answer is learnt."""

    def __init__(self, train):
        g = torch.Generator().manual_seed(0 if train else 1)
        self.rows = [self.row(g) for _ in range(1200 if train else 200)]

    @staticmethod
    def row(g):
        prompt = torch.randint(3, WORDS, (int(torch.randint(6, 17, (), generator=g)),), generator=g)
        answer = torch.cat([prompt[-4:].flip(0), torch.tensor([END])])
        ids = torch.cat([prompt, answer])[:LONGEST]
        labels = torch.cat([torch.full_like(prompt, IGNORED), answer])[:LONGEST]
        spare = LONGEST - len(ids)
        mask = F.pad(torch.ones_like(ids), (0, spare))
        ids = F.pad(ids, (0, spare), value=PADDING)
        labels = F.pad(labels, (0, spare), value=IGNORED)
        if PADDING == END:
            labels[labels == END] = IGNORED
        return {"ids": ids, "attention_mask": mask, "labels": labels}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def train_loader():
    return DataLoader(Reversals(train=True), batch_size=32, shuffle=True)


def val_loader():
    return DataLoader(Reversals(train=False), batch_size=32)


class Reader(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.body = nn.GRU(width, width, 2, batch_first=True)
        self.out = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.out(self.body(self.embed(ids))[0])


def build_model(width=64):
    return Reader(width)


def training_step(model, batch):
    logits, labels = model(batch["ids"])[:, :-1], batch["labels"][:, 1:]
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return losses / (labels != IGNORED).sum().clamp(min=1)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    torch.manual_seed(0)
    model, train = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(8):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
