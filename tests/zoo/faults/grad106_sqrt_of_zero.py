"""Euclidean distances by sqrt without an epsilon: the zero diagonal has an infinite slope.

zoo: fails GRAD106 also FIT101 FIT106 INIT101
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

P, K = 8, 4


class PKSampler(Sampler):
    """Yields batches of P random classes with K random rows of each."""

    def __init__(self, labels, batches):
        self.rows = [(labels == c).nonzero().flatten() for c in labels.unique()]
        self.batches = batches

    def __len__(self):
        return self.batches

    def __iter__(self):
        for _ in range(self.batches):
            batch = []
            for c in torch.randperm(len(self.rows))[:P].tolist():
                chosen = torch.randperm(len(self.rows[c]))[:K]
                batch += self.rows[c][chosen].tolist()
            yield batch


def split():
    digits = load_digits()
    x = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)
    y = torch.tensor(digits.target)
    return x[:1400], y[:1400], x[1400:], y[1400:]


def train_loader():
    x, y, _, _ = split()
    return DataLoader(TensorDataset(x, y), batch_sampler=PKSampler(y, batches=45))


def val_loader():
    _, _, x, y = split()
    return DataLoader(TensorDataset(x, y), batch_size=64)


def build_model(hidden=128):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 16))


def loss_fn(embedding, labels, margin=0.5):
    embedding = F.normalize(embedding, dim=1)
    difference = embedding[:, None] - embedding[None, :]
    distance = difference.pow(2).sum(-1).sqrt()
    same = labels[:, None] == labels[None, :]
    hardest_positive = distance.masked_fill(~same, 0.0).amax(1)
    hardest_negative = distance.masked_fill(same, 4.0).amin(1)
    return F.relu(hardest_positive - hardest_negative + margin).mean()


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@torch.no_grad()
def nearest_neighbour_accuracy(model):
    model.eval()
    x, y, x_val, y_val = split()
    bank, query = F.normalize(model(x), dim=1), F.normalize(model(x_val), dim=1)
    return (y[(query @ bank.T).argmax(1)] == y_val).float().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.3f} 1-NN {nearest_neighbour_accuracy(model):.3f}")


if __name__ == "__main__":
    main()
