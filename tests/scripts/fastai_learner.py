"""fastai: a Learner with fastai's own loaders and optimizer."""

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

torch.manual_seed(0)
x = torch.randn(128, 12)
y = x[:, :3].argmax(1)
items = list(zip(x, y, strict=True))
train = DataLoader(items[:96], bs=16, shuffle=True)
valid = DataLoader(items[96:], bs=16)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
learner = Learner(DataLoaders(train, valid), model, loss_func=CrossEntropyLossFlat(), lr=0.02)
learner.fit(2)
