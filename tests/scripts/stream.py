"""An IterableDataset without a length, and a bounded number of steps."""

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        while True:
            x = torch.randn(5, generator=generator)
            yield x, x.abs().sum()


torch.manual_seed(0)
loader = DataLoader(Stream(), batch_size=10)
model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loss_fn = nn.SmoothL1Loss()
for step, (x, y) in enumerate(loader):
    loss = loss_fn(model(x)[:, 0], y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step >= 10:
        break
