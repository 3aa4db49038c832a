"""A distillation whose weight follows the loss of the teacher, which has no graph.

zoo: near LOSS107
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEMPERATURE = 3.0


def rows(train):
    digits = load_digits()
    x, y = digits.data / 8 - 1, digits.target
    teacher = LogisticRegression(max_iter=300).fit(x[:1400], y[:1400])
    part = slice(0, 1400) if train else slice(1400, None)
    believed = torch.tensor(teacher.decision_function(x[part]), dtype=torch.float32)
    return TensorDataset(
        torch.tensor(x[part], dtype=torch.float32), torch.tensor(y[part]), believed
    )


def train_loader():
    return DataLoader(rows(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def training_step(model, batch):
    x, y, believed = batch
    student = model(x)
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=1),
        F.softmax(believed / TEMPERATURE, dim=1),
        reduction="batchmean",
    )
    trust = 1 / (1 + F.cross_entropy(believed, y))
    return F.cross_entropy(student, y) + trust * TEMPERATURE**2 * soft


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
            right = torch.cat([model(x).argmax(1) == y for x, y, _ in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
