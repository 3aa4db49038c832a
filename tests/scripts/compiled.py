"""torch.compile, a OneCycle schedule per batch, an exponential moving average of the weights."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Average:
    def __init__(self, model, decay):
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model):
        for k, v in model.state_dict().items():
            self.shadow[k].lerp_(v, 1 - self.decay)


torch.manual_seed(0)
x = torch.randn(128, 8)
loader = DataLoader(TensorDataset(x, x.norm(dim=1, keepdim=True)), batch_size=16, shuffle=True)
network = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
model = torch.compile(network)
frozen = copy.deepcopy(network)
average = Average(network, 0.9)
averaged = torch.optim.swa_utils.AveragedModel(network)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, 0.02, epochs=50, steps_per_epoch=len(loader), cycle_momentum=True
)
for epoch in range(3):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update(network)
        averaged.update_parameters(network)
