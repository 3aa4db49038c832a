"""A wrapper around the loader that draws one batch ahead, and a second loader read along."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Ahead:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        held = None
        for batch in self.loader:
            if held is not None:
                yield held
            held = batch
        yield held


torch.manual_seed(0)
x = torch.randn(128, 6)
labelled = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
unlabelled = DataLoader(TensorDataset(torch.randn(128, 6)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for epoch in range(2):
    for (inputs, labels), (others,) in zip(Ahead(labelled), unlabelled, strict=True):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss = loss + 0.01 * model(others).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
