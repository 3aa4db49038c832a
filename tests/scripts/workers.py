"""Worker processes that persist."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, i):
        x = torch.tensor([i / 96.0])
        return x + 0.01 * torch.randn(1), x**2


def main():
    torch.manual_seed(0)
    loader = DataLoader(Squares(), 16, shuffle=True, num_workers=2, persistent_workers=True)
    model = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
