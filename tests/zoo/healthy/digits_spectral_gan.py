"""A small GAN of digits: hinge losses, a spectrally normalised discriminator, one step each.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader

NOISE = 16


def train_loader():
    images = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32).unsqueeze(1)
    return DataLoader(images, batch_size=64, shuffle=True, drop_last=True)


class GAN(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(NOISE, 4 * width * 4),
            nn.ReLU(),
            nn.Unflatten(1, (4 * width, 2, 2)),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            spectral_norm(nn.Conv2d(1, width, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            spectral_norm(nn.Linear(8 * width, 1)),
        )

    def forward(self, images):
        return self.discriminator(images)

    def sample(self, n, device=None):
        return self.generator(torch.randn(n, NOISE, device=device))


def build_model(width=16):
    return GAN(width)


def build_optimizer(model):
    return [
        torch.optim.Adam(model.discriminator.parameters(), lr=4e-4, betas=(0.5, 0.9)),
        torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.9)),
    ]


def training_step(model, images, optimizer):
    critic, artist = optimizer
    made = model.sample(len(images), images.device)
    loss_d = F.relu(1 - model(images)).mean() + F.relu(1 + model(made.detach())).mean()
    critic.zero_grad()
    loss_d.backward()
    critic.step()
    loss_g = -model(made).mean()
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
