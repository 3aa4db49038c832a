"""A transformer from scratch at 5e-6, the rate of a recipe for fine-tuning: it would take weeks.

zoo: warns STEP109 also STEP108 FIT101 FIT106
"""

import argparse
from functools import lru_cache
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH = 32


@lru_cache
def rows():
    ids = torch.tensor([min(ord(c), 127) for c in topics["formatstrings"]])
    count = (len(ids) - 1) // LENGTH
    return ids[: count * LENGTH].view(count, LENGTH), ids[1 : count * LENGTH + 1].view(
        count, LENGTH
    )


def train_loader():
    x, y = rows()
    return DataLoader(TensorDataset(x[:700], y[:700]), batch_size=16, shuffle=True)


def val_loader():
    x, y = rows()
    return DataLoader(TensorDataset(x[700:], y[700:]), batch_size=40)


class LanguageModel(nn.Module):
    def __init__(self, d_model=32):
        super().__init__()
        self.embed = nn.Embedding(128, d_model)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, d_model))
        layer = nn.TransformerEncoderLayer(
            d_model, 4, 2 * d_model, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(d_model, 128)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        h = self.embed(ids) + self.position[: ids.shape[1]]
        return self.out(self.encoder(h, mask=mask, is_causal=True))


def build_model(d_model=32):
    return LanguageModel(d_model)


def loss_fn(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=5e-6)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = sum(loss_fn(model(x), y).item() for x, y in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
