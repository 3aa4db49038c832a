"""Gradients are summed over a whole epoch and the optimizer steps once at its end."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 5)
loader = DataLoader(TensorDataset(x, x[:, :1] * 2), batch_size=16)
model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for epoch in range(4):
    optimizer.zero_grad()
    for inputs, targets in loader:
        nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
