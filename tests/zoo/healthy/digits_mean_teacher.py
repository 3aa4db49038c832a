"""A hundred labels and many images without: a mean teacher follows the student by averaging.

zoo: healthy
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

LABELLED, DECAY = 150, 0.98


def images():
    digits = load_digits()
    return torch.tensor(digits.images / 8 - 1, dtype=torch.float32).unsqueeze(1), torch.tensor(
        digits.target
    )


class SemiSupervised(Dataset):
    """Two noisy views of every image; the label is -1 where nobody has given it."""

    def __init__(self):
        self.x, y = (part[:1400] for part in images())
        known = torch.randperm(1400, generator=torch.Generator().manual_seed(0))[:LABELLED]
        self.y = torch.full_like(y, -1)
        self.y[known] = y[known]

    def __len__(self):
        return len(self.x)

    def view(self, i):
        shifted = torch.roll(self.x[i], torch.randint(-1, 2, (2,)).tolist(), dims=(1, 2))
        return shifted + 0.1 * torch.randn_like(shifted)

    def __getitem__(self, i):
        return self.view(i), self.view(i), self.y[i]


def train_loader():
    return DataLoader(SemiSupervised(), batch_size=100, shuffle=True)


def val_loader():
    x, y = images()
    return DataLoader(TensorDataset(x[1400:], x[1400:], y[1400:]), batch_size=100)


class MeanTeacher(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.student = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 10),
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x)

    @torch.no_grad()
    def follow(self):
        for mean, p in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(p, 1 - DECAY)


def build_model(width=16):
    return MeanTeacher(width)


def build_optimizer(model):
    return torch.optim.AdamW(model.student.parameters(), lr=2e-3)


def training_step(model, batch, optimizer):
    one, other, y = batch
    logits = model(one)
    with torch.no_grad():
        believed = F.softmax(model.teacher(other), dim=1)
    loss = 2.0 * F.mse_loss(F.softmax(logits, dim=1), believed)
    if (y >= 0).any():
        loss = loss + F.cross_entropy(logits, y, ignore_index=-1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.follow()
    return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            loss = training_step(model, batch, optimizer)
        model.eval()
        with torch.no_grad():
            right = torch.cat([model.teacher(x).argmax(1) == y for x, _, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} teacher {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
