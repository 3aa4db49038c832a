"""Two networks, two optimizers, three backward passes per batch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(160, 2) * 0.5 + 2), batch_size=16, shuffle=True)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
criterion = nn.BCEWithLogitsLoss()
opt_d = torch.optim.Adam(discriminator.parameters(), lr=0.002)
opt_g = torch.optim.Adam(generator.parameters(), lr=0.002)
for epoch in range(2):
    for (real,) in loader:
        discriminator.zero_grad()
        criterion(discriminator(real), torch.ones(len(real), 1)).backward()
        fake = generator(torch.randn(len(real), 4))
        criterion(discriminator(fake.detach()), torch.zeros(len(real), 1)).backward()
        opt_d.step()
        generator.zero_grad()
        criterion(discriminator(fake), torch.ones(len(real), 1)).backward()
        opt_g.step()
