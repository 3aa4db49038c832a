"""Time to failure with censoring: Cox's partial likelihood of a small network, within each batch.

zoo: healthy
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def patients(n, seed):
    rng = np.random.default_rng(seed)
    age = rng.normal(60, 12, n)
    marker = rng.lognormal(0.5, 0.8, n)
    stage = rng.integers(1, 5, n)
    treated = rng.integers(0, 2, n)
    other = rng.normal(size=(n, 4))
    risk = 0.04 * (age - 60) + 0.5 * np.log1p(marker) + 0.4 * stage - 0.7 * treated * (stage > 2)
    time = rng.weibull(1.3, n) * 30 * np.exp(-risk / 1.3)
    censored_at = rng.uniform(2, 25, n)
    x = np.column_stack([(age - 60) / 12, np.log1p(marker), stage / 4, treated, other])
    return (
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(np.minimum(time, censored_at), dtype=torch.float32),
        torch.tensor(time <= censored_at, dtype=torch.float32),
    )


def train_loader():
    return DataLoader(TensorDataset(*patients(1500, 0)), batch_size=128, shuffle=True)


def val_loader():
    return DataLoader(TensorDataset(*patients(500, 1)), batch_size=500)


def build_model(hidden=32):
    return nn.Sequential(
        nn.Linear(8, hidden),
        nn.SELU(),
        nn.AlphaDropout(0.1),
        nn.Linear(hidden, hidden),
        nn.SELU(),
        nn.Linear(hidden, 1, bias=False),
    )


def partial_likelihood(log_risk, time, event):
    order = torch.argsort(time, descending=True)
    log_risk, event = log_risk[order], event[order]
    at_risk = torch.logcumsumexp(log_risk, dim=0)
    return -((log_risk - at_risk) * event).sum() / event.sum().clamp(min=1)


def training_step(model, batch):
    x, time, event = batch
    return partial_likelihood(model(x).squeeze(1), time, event)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)


def concordance(log_risk, time, event):
    earlier = (time[:, None] < time[None]) & (event[:, None] > 0)
    return ((log_risk[:, None] > log_risk[None]) & earlier).sum() / earlier.sum()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in loader:
            loss = training_step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x, time, event = next(iter(val))
            c = concordance(model(x).squeeze(1), time, event)
        print(f"epoch {epoch} loss {loss.item():.3f} concordance {c.item():.3f}")


if __name__ == "__main__":
    main()
