"""A top-level script without a main guard; the per-epoch scheduler is never reached by an audit."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
x = torch.randn(128, 1, 8, 8)
y = (x.mean((1, 2, 3)) > 0).long()
train_loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, drop_last=True)
images, labels = next(iter(train_loader))
print(images.shape)

model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

for epoch in range(2):
    for images, labels in train_loader:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
