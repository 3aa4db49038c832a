"""No DataLoader: slices of a permuted tensor, loss outside of the model, numpy at the start."""

import numpy as np
import torch
from torch import nn

rng = np.random.RandomState(0)
X = torch.from_numpy(rng.randn(200, 6).astype("float32"))
Y = (X.sum(1) > 0).float()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
for epoch in range(5):
    order = torch.randperm(len(X))
    for i in range(0, len(X), 20):
        xb, yb = X[order[i : i + 20]], Y[order[i : i + 20]]
        optimizer.zero_grad()
        loss = criterion(net(xb).squeeze(1), yb)
        loss.backward()
        optimizer.step()
