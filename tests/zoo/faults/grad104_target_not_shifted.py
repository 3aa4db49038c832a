"""A causal character model whose targets are its inputs, not the characters after them.

zoo: fails GRAD104
"""

import argparse
import math
from functools import lru_cache
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

CONTEXT = 32


@lru_cache
def corpus():
    text = topics["typesseq"]
    alphabet = sorted(set(text))
    index = {c: i for i, c in enumerate(alphabet)}
    return torch.tensor([index[c] for c in text]), len(alphabet)


class NextCharacter(Dataset):
    """Windows of CONTEXT characters; the model is to be asked for what follows each."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return (len(self.ids) - 1) // CONTEXT

    def __getitem__(self, i):
        chunk = self.ids[i * CONTEXT : (i + 1) * CONTEXT]
        return chunk, chunk.clone()


def train_loader():
    ids, _ = corpus()
    return DataLoader(NextCharacter(ids[: int(0.9 * len(ids))]), batch_size=16, shuffle=True)


def val_loader():
    ids, _ = corpus()
    return DataLoader(NextCharacter(ids[int(0.9 * len(ids)) :]), batch_size=64)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (
            part.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norm2(x))


class CharTransformer(nn.Module):
    def __init__(self, d_model=64, layers=2, heads=4):
        super().__init__()
        vocabulary = corpus()[1]
        self.token = nn.Embedding(vocabulary, d_model)
        self.position = nn.Embedding(CONTEXT, d_model)
        self.blocks = nn.Sequential(*(Block(d_model, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def build_model():
    return CharTransformer()


def loss_fn(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(1337)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for ids, targets in train:
            loss = loss_fn(model(ids), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = sum(loss_fn(model(i), t).item() for i, t in val) / len(val)
        print(f"epoch {epoch}: train {loss.item():.3f}, validation {held_out:.3f} nats/char")


if __name__ == "__main__":
    main()
