"""The teacher is a part of the distiller, whose parameters all go to the optimizer.

zoo: warns LOSS108
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEMPERATURE = 3.0


def rows(train):
    x, y = load_digits(return_X_y=True)
    part = slice(0, 1400) if train else slice(1400, None)
    return TensorDataset(torch.tensor(x[part] / 8 - 1, dtype=torch.float32), torch.tensor(y[part]))


def train_loader():
    return DataLoader(rows(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


def perceptron(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Distiller(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.student, self.teacher = perceptron(hidden), perceptron(256)

    def forward(self, x):
        return self.student(x)


def build_model(hidden=32):
    distiller = Distiller(hidden)
    teacher = distiller.teacher
    x, y = rows(True).tensors
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    teacher.zero_grad()
    return distiller


def training_step(model, batch):
    x, y = batch
    student, teacher = model(x), model.teacher(x)
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=1),
        F.softmax(teacher / TEMPERATURE, dim=1),
        reduction="batchmean",
    )
    return 0.5 * F.cross_entropy(student, y) + TEMPERATURE**2 * soft


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
