"""Orthogonalised momentum for hidden matrices, AdamW for the rest; a residual MLP with drop path.

zoo: healthy
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def orthogonal(g, steps=5):
    """Bring the singular values of ``g`` near 1 by a Newton-Schulz iteration."""
    x = g / (g.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        a = x @ x.T
        x = 1.5 * x - 0.5 * a @ x
    return x.T if tall else x


class OrthogonalMomentum(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                p.add_(orthogonal(buffer), alpha=-group["lr"])


def load(rows):
    x, y = load_digits(return_X_y=True)
    x = (x - 4.88) / 6.02
    return TensorDataset(torch.tensor(x[rows], dtype=torch.float32), torch.tensor(y[rows]))


def train_loader():
    return DataLoader(load(slice(0, 1400)), batch_size=64, shuffle=True)


def val_loader():
    return DataLoader(load(slice(1400, None)), batch_size=100)


class Residual(nn.Module):
    def __init__(self, hidden, drop):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)
        self.drop = drop

    def forward(self, x):
        change = self.down(torch.relu(self.up(self.norm(x))))
        if self.training and self.drop:
            keep = (torch.rand(len(x), 1, device=x.device) >= self.drop).float() / (1 - self.drop)
            change = keep * change
        return x + change


def build_model(hidden=48):
    return nn.Sequential(
        nn.Linear(64, hidden),
        *(Residual(hidden, 0.1 * i / 3) for i in range(4)),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, 10),
    )


loss_fn = nn.CrossEntropyLoss(label_smoothing=0.05)


def build_optimizer(model):
    inner = [p for block in model[1:-2] for p in block.parameters() if p.ndim == 2]
    theirs = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in theirs]
    return [OrthogonalMomentum(inner), torch.optim.AdamW(rest, lr=2e-3)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizers = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            loss = loss_fn(model(x), y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
