"""All hundred and twenty flowers in one batch, and an optimizer of one's own that steps by signs.

zoo: healthy
"""

import argparse

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SignMomentum(torch.optim.Optimizer):
    """Steps of one size, in the direction of the sign of an interpolated momentum."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            near, far = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(near * momentum + (1 - near) * p.grad), alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - far)
        return loss


def load():
    x, y = load_iris(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=30, random_state=0, stratify=y
    )
    mean, sd = x_train.mean(0), x_train.std(0)
    return [
        TensorDataset(torch.tensor((a - mean) / sd, dtype=torch.float32), torch.tensor(b))
        for a, b in ((x_train, y_train), (x_val, y_val))
    ]


def train_loader():
    data = load()[0]
    return DataLoader(data, batch_size=len(data))


def val_loader():
    data = load()[1]
    return DataLoader(data, batch_size=len(data))


def build_model(hidden=16):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return SignMomentum(model.parameters(), lr=3e-3, weight_decay=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        if epoch % 20 == 19:
            with torch.no_grad():
                right = torch.cat([model(x).argmax(1) == y for x, y in val])
            print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
