"""Relations as translations between entities: margin ranking against corrupted tails.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ENTITIES, RELATIONS, FACTS = 120, 4, 1800


def facts():
    """Triples that hold in a hidden geometry: the tail is near to head plus relation."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(ENTITIES, 3, generator=generator)
    shift = 0.8 * torch.randn(RELATIONS, 3, generator=generator)
    head = torch.randint(ENTITIES, (FACTS,), generator=generator)
    relation = torch.randint(RELATIONS, (FACTS,), generator=generator)
    near = torch.cdist(place[head] + shift[relation], place).topk(3, largest=False).indices
    tail = near[torch.arange(FACTS), torch.randint(3, (FACTS,), generator=generator)]
    return torch.stack([head, relation, tail], dim=1)


def train_loader():
    return DataLoader(TensorDataset(facts()[:1500]), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(TensorDataset(facts()[1500:]), batch_size=100)


class TransE(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.entities = nn.Embedding(ENTITIES, width)
        self.relations = nn.Embedding(RELATIONS, width)
        for table in (self.entities, self.relations):
            nn.init.uniform_(table.weight, -6 / width**0.5, 6 / width**0.5)

    def forward(self, head, relation, tail):
        head, tail = (F.normalize(self.entities(which), dim=-1) for which in (head, tail))
        return (head + self.relations(relation) - tail).norm(p=1, dim=-1)


def build_model(width=32):
    return TransE(width)


def training_step(model, batch):
    head, relation, tail = batch[0].T
    corrupted = torch.randint(ENTITIES, tail.shape, device=tail.device)
    true, false = model(head, relation, tail), model(head, relation, corrupted)
    return F.margin_ranking_loss(false, true, torch.ones_like(true), margin=1.0)


def build_optimizer(model):
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = sum(training_step(model, batch).item() for batch in val) / len(val)
        print(f"epoch {epoch} loss {loss.item():.3f} validation {held_out:.3f}")


if __name__ == "__main__":
    main()
