"""An autoencoder whose code is a single number, to lay the digits out on a line: lossy on purpose.

zoo: near FIT106 FIT101
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

images = torch.tensor(load_digits().images / 16, dtype=torch.float32).unsqueeze(1)
held_out = torch.arange(len(images)) % 6 == 0


def train_loader():
    return DataLoader(images[~held_out], batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(images[held_out], batch_size=64)


class Autoencoder(nn.Module):
    def __init__(self, channels=16, code=1):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 4, code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 2 * channels * 4),
            nn.Unflatten(1, (2 * channels, 2, 2)),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


def build_model():
    return Autoencoder()


def loss_fn(reconstruction, image):
    return nn.functional.mse_loss(reconstruction, image)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader = train_loader()
    batches = iter(loader)
    for step in range(1, args.steps + 1):
        try:
            batch = next(batches)
        except StopIteration:
            batches = iter(loader)
            batch = next(batches)
        model.train()
        optimizer.zero_grad()
        loss = loss_fn(model(batch), batch)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            model.eval()
            with torch.no_grad():
                val = sum(loss_fn(model(b), b).item() for b in val_loader()) / len(val_loader())
            print(f"step {step}: train {loss.item():.4f}, validation {val:.4f}")


if __name__ == "__main__":
    main()
