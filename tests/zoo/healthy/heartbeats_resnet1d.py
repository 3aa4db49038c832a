"""Heart beats of three kinds, one of them rare, on a wandering baseline: a small 1-d ResNet.

zoo: healthy
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

KINDS = ("normal", "ventricular", "atrial")


def bump(t, centre, width, height):
    return height * np.exp(-0.5 * ((t - centre) / width) ** 2)


class Beats(Dataset):
    """One lead, 96 samples a beat, standardised beat by beat; training beats are jittered."""

    def __init__(self, n, seed, train):
        rng = np.random.default_rng(seed)
        self.kind = rng.choice(3, n, p=[0.7, 0.2, 0.1])
        self.train = train
        t = np.linspace(0, 1, 96)
        self.signal = np.empty((n, 96), dtype=np.float32)
        for i, kind in enumerate(self.kind):
            shift, gain = rng.normal(0, 0.02), rng.uniform(0.7, 1.4)
            if kind == 1:  # broad, no P wave
                beat = bump(t, 0.45 + shift, 0.06, 1.6) - bump(t, 0.62 + shift, 0.07, 0.6)
            else:
                early = 0.08 if kind == 2 else 0.0
                beat = bump(t, 0.25 + early + shift, 0.025, 0.2 if kind == 0 else -0.15)
                beat = beat + bump(t, 0.45 + shift, 0.012, 1.3) - bump(t, 0.48 + shift, 0.012, 0.3)
                beat = beat + bump(t, 0.7 + shift, 0.05, 0.35)
            wander = 0.3 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * t + rng.random()))
            self.signal[i] = gain * beat + wander + 0.06 * rng.normal(size=96)

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, i):
        x = torch.from_numpy(self.signal[i])
        x = (x - x.mean()) / (x.std() + 1e-6)
        if self.train:
            x = torch.roll(x, int(torch.randint(-4, 5, (1,)))) * (0.9 + 0.2 * torch.rand(1))
        return x.unsqueeze(0), int(self.kind[i])


def train_loader():
    return DataLoader(Beats(900, 0, train=True), batch_size=32, shuffle=True, drop_last=True)


def val_loader():
    return DataLoader(Beats(400, 1, train=False), batch_size=100)


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv1d(inside, outside, 7, stride=stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(outside)
        self.conv2 = nn.Conv1d(outside, outside, 7, padding=3, bias=False)
        self.bn2 = nn.BatchNorm1d(outside)
        self.skip = nn.Conv1d(inside, outside, 1, stride=stride, bias=False)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


def build_model(channels=12):
    return nn.Sequential(
        Block(1, channels, 2),
        Block(channels, channels, 2),
        Block(channels, 2 * channels, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(2 * channels, len(KINDS)),
    )


loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]))


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, epochs=args.epochs, steps_per_epoch=len(loader)
    )
    for epoch in range(args.epochs):
        model.train()
        for x, kind in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), kind)
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        seen = torch.zeros(3, 3, dtype=torch.long)
        with torch.no_grad():
            for x, kind in val:
                for truth, guess in zip(kind, model(x).argmax(1), strict=True):
                    seen[truth, guess] += 1
        recall = seen.diag() / seen.sum(1)
        print(
            f"epoch {epoch} loss {loss.item():.3f} recall {[round(r, 2) for r in recall.tolist()]}"
        )


if __name__ == "__main__":
    main()
