"""Batches are dictionaries made by a collate function; masked tokens; a model of keywords."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Reviews(Dataset):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(3)
        self.lengths = torch.randint(3, 9, (n,), generator=generator)
        self.tokens = [torch.randint(1, 30, (int(k),), generator=generator) for k in self.lengths]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"tokens": self.tokens[i], "label": int((self.tokens[i] > 15).float().mean() > 0.5)}


def collate(items):
    tokens = nn.utils.rnn.pad_sequence([item["tokens"] for item in items], batch_first=True)
    return {
        "input_ids": tokens,
        "mask": (tokens > 0).long(),
        "labels": torch.tensor([item["label"] for item in items]),
        "text": ["..." for _ in items],
    }


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.out = nn.Linear(16, 2)

    def forward(self, input_ids, mask):
        hidden = self.embedding(input_ids) * mask[..., None]
        return self.out(hidden.sum(1) / mask.sum(1, keepdim=True))


def main():
    torch.manual_seed(0)
    loader = DataLoader(Reviews(160), batch_size=16, shuffle=True, collate_fn=collate)
    model = Bag()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(2):
        for batch in loader:
            logits = model(input_ids=batch["input_ids"], mask=batch["mask"])
            loss = F.cross_entropy(logits, batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


main()
