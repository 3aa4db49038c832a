"""An encoder, a decoder and a head, called one by one; a summed loss with a part of its own."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(128, 10)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
encoder = nn.Sequential(nn.Linear(10, 24), nn.ReLU())
decoder = nn.Linear(24, 10)
head = nn.Linear(24, 2)
parameters = [*encoder.parameters(), *decoder.parameters(), *head.parameters()]
optimizer = torch.optim.Adam(parameters, lr=0.01)
for epoch in range(2):
    for inputs, labels in loader:
        hidden = encoder(inputs)
        reconstruction = decoder(hidden)
        loss = F.cross_entropy(head(hidden), labels) + 0.1 * (reconstruction - inputs).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
