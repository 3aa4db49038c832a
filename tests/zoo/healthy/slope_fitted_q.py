"""What to do on a slope, from recorded moves: Q-learning with a target network, no environment.

zoo: healthy
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DISCOUNT, REFRESH = 0.95, 50


def moves(n, seed):
    """State, action, reward, next state and whether that is the end, of random behaviour."""
    generator = torch.Generator().manual_seed(seed)
    state = 2 * torch.rand(n, 2, generator=generator) - 1
    action = torch.randint(3, (n,), generator=generator)
    speed = state[:, 1] + 0.1 * (action - 1) - 0.05 * torch.sin(3 * state[:, 0])
    following = torch.stack([state[:, 0] + 0.2 * speed, speed], dim=1).clamp(-1, 1)
    done = (following[:, 0] > 0.9).float()
    return TensorDataset(state, action, done, following, done)


def train_loader():
    return DataLoader(moves(3000, 0), batch_size=64, shuffle=True)


class Agent(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.values = nn.Sequential(
            nn.Linear(2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 3),
        )
        self.target = copy.deepcopy(self.values).requires_grad_(False)
        self.steps = 0

    def forward(self, state):
        return self.values(state)


def build_model(hidden=48):
    return Agent(hidden)


def build_optimizer(model):
    return torch.optim.Adam(model.values.parameters(), lr=1e-3)


def training_step(model, batch, optimizer):
    state, action, reward, following, done = batch
    with torch.no_grad():
        goal = reward + DISCOUNT * (1 - done) * model.target(following).max(dim=1).values
    said = model(state).gather(1, action.unsqueeze(1)).squeeze(1)
    loss = F.smooth_l1_loss(said, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.steps += 1
    if model.steps % REFRESH == 0:
        model.target.load_state_dict(model.values.state_dict())
    return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, loader = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = training_step(model, batch, optimizer)
        with torch.no_grad():
            worth = model(torch.zeros(1, 2)).max().item()
        print(f"epoch {epoch} loss {loss.item():.4f} worth of the middle {worth:.3f}")


if __name__ == "__main__":
    main()
