"""SGD with a learning rate of 5e-8 where 5e-2 was meant.

zoo: fails FIT101
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def splits():
    x, y = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    mean, std = x_train.mean(), x_train.std()
    return [
        TensorDataset(torch.tensor((a - mean) / std, dtype=torch.float32), torch.tensor(b))
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    return DataLoader(splits()[0], batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(splits()[1], batch_size=256)


def build_model(hidden=128):
    return nn.Sequential(
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.SGD(
        model.parameters(), lr=5e-8, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def build_scheduler(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)


@torch.no_grad()
def accuracy(model, loader, device):
    model.eval()
    right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = build_model().to(device)
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    train, val = train_loader(), val_loader()
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for batch in train:
            x, y = (part.to(device) for part in batch)
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        scheduler.step()
        print(
            f"epoch {epoch} loss {total / len(train.dataset):.4f} "
            f"val accuracy {accuracy(model, val, device):.4f}"
        )


if __name__ == "__main__":
    main()
