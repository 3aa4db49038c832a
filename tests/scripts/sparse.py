"""Sparse gradients of an embedding, which only an optimizer of their own takes."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16, sparse=True)
        self.head = nn.Linear(16, 2)

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


torch.manual_seed(0)
ids = torch.randint(50, (128, 6))
loader = DataLoader(TensorDataset(ids, (ids[:, 0] > 24).long()), batch_size=16, shuffle=True)
model = Bag()
optimizers = [
    torch.optim.SparseAdam(model.embed.parameters(), lr=0.01),
    torch.optim.AdamW(model.head.parameters(), lr=0.01),
]
for epoch in range(2):
    for batch, labels in loader:
        loss = nn.functional.cross_entropy(model(batch), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
