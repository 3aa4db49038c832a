"""Adversarial training (FGSM): each step begins with a backward pass to the inputs."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.rand(128, 1, 8, 8)
y = (x.mean((1, 2, 3)) > 0.5).long()
loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=0.003)

for epoch in range(2):
    for images, labels in loader:
        images = images.clone().requires_grad_(True)
        F.cross_entropy(net(images), labels).backward()
        worse = (images + 0.01 * images.grad.sign()).clamp(0, 1).detach()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(worse), labels)
        loss.backward()
        optimizer.step()
