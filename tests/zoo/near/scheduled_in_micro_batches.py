"""A schedule made for the number of micro-batches is stepped with each of them.

zoo: near STEP105 STEP112
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, ACCUMULATED = 8, 4


def rows(train):
    digits = load_digits()
    part = slice(0, 1400) if train else slice(1400, None)
    x = torch.tensor(digits.data[part] / 8 - 1, dtype=torch.float32)
    return TensorDataset(x, torch.tensor(digits.target[part]))


def train_loader():
    return DataLoader(rows(True), batch_size=10, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


def build_model(hidden=64):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    planned = EPOCHS * len(train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: max(0.0, 1 - n / planned))
    for epoch in range(EPOCHS):
        model.train()
        for i, (x, y) in enumerate(train, 1):
            (loss_fn(model(x), y) / ACCUMULATED).backward()
            if i % ACCUMULATED == 0:
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
