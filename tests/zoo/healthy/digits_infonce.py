"""Contrastive representation learning (InfoNCE) from two noisy, shifted views of each digit.

zoo: healthy
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class TwoViews(Dataset):
    def __init__(self, train=True):
        images = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32).unsqueeze(1)
        self.images = images[:1500] if train else images[1500:]

    def __len__(self):
        return len(self.images)

    def view(self, image):
        shift = torch.randint(-1, 2, (2,)).tolist()
        return torch.roll(image, shift, dims=(1, 2)) + 0.1 * torch.randn_like(image)

    def __getitem__(self, i):
        return self.view(self.images[i]), self.view(self.images[i])


def train_loader():
    return DataLoader(TwoViews(), batch_size=64, shuffle=True, drop_last=True)


def val_loader():
    return DataLoader(TwoViews(train=False), batch_size=64, drop_last=True)


def build_model(width=32):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.GroupNorm(4, 2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * width, 32),
    )


def training_step(model, batch, temperature=0.2):
    first, second = batch
    a, b = F.normalize(model(first), dim=1), F.normalize(model(second), dim=1)
    similarity = a @ b.T / temperature
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, loader, val = build_model().to(device), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            loss = training_step(model, [view.to(device) for view in batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            held_out = [training_step(model, [v.to(device) for v in b]).item() for b in val]
        print(f"epoch {epoch} train {loss.item():.3f} val {sum(held_out) / len(held_out):.3f}")


if __name__ == "__main__":
    main()
