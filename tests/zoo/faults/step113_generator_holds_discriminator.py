"""A GAN of digits whose generator's optimizer is given the whole network, discriminator included.

zoo: fails STEP113
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

NOISE = 16


def train_loader():
    images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    return DataLoader(images, batch_size=64, shuffle=True, drop_last=True)


class GAN(nn.Module):
    def __init__(self, width=96):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(NOISE, width), nn.LeakyReLU(0.2), nn.Linear(width, 64), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, images):
        return self.discriminator(images)

    def sample(self, n, device=None):
        return self.generator(torch.randn(n, NOISE, device=device))


def build_model(width=96):
    return GAN(width)


def build_optimizer(model):
    return [
        torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.9)),
        torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.9)),
    ]


def training_step(model, images, optimizer):
    critic, artist = optimizer
    made = model.sample(len(images), images.device)
    real, fake = model(images), model(made.detach())
    loss_d = F.softplus(-real).mean() + F.softplus(fake).mean()
    critic.zero_grad()
    loss_d.backward()
    critic.step()
    loss_g = F.softplus(-model(made)).mean()
    artist.zero_grad()
    loss_g.backward()
    artist.step()
    return loss_d


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizers = build_optimizer(model)
    model.train()
    for epoch in range(args.epochs):
        for images in loader:
            loss = training_step(model, images, optimizers)
        made = model.sample(64)
        print(f"epoch {epoch} critic {loss.item():.3f} mean {made.mean():.2f} sd {made.std():.2f}")


if __name__ == "__main__":
    main()
