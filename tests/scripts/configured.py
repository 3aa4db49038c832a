"""Hydra makes the settings, and one of it lives at a time; a resolver's name is taken once."""

from dataclasses import dataclass

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Settings:
    lr: float = 0.01
    hidden: int = 32
    wide: int = "${twice:${hidden}}"  # type: ignore[assignment]


OmegaConf.register_new_resolver("twice", lambda number: 2 * number)
ConfigStore.instance().store(name="settings", node=Settings)


@hydra.main(version_base=None, config_name="settings")
def main(settings: Settings) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(8, settings.wide), nn.ReLU(), nn.Linear(settings.wide, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    for _ in range(2):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
