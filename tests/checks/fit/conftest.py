"""Data and programs that the tests of this family share."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result
from nnaudit.targets.target import Target


class Data:
    """Ten noisy prototypes of 8 x 8 pixels, and quantities that follow from ten features."""

    def __init__(self, rows: int = 1600) -> None:
        g = torch.Generator().manual_seed(0)
        self.generator = g
        self.y = torch.randint(0, 10, (rows,), generator=g)
        prototypes = torch.randn(10, 1, 8, 8, generator=g)
        self.x = prototypes[self.y] + 0.7 * torch.randn(rows, 1, 8, 8, generator=g)
        self.features = torch.randn(rows, 10, generator=g)
        curved = self.features[:, 0] * self.features[:, 1] + torch.sin(2 * self.features[:, 2])
        noise = 0.3 * torch.randn(rows, generator=g)
        self.quantity = (curved + noise - curved.mean()) / curved.std()


def loader(*tensors: Tensor, batch_size: int = 64) -> Callable[[], DataLoader]:
    """A factory of shuffled loaders."""
    return lambda: DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=True)


def perceptron(*sizes: int) -> Callable[[], nn.Sequential]:
    """A factory of flattening perceptrons with ReLU between the layers."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return build


def sgd(lr: float, **options: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A factory of SGD over what is trained."""
    return lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr, **options)


def adam(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A factory of Adam over what is trained."""
    return lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr)


def ask(check: type[Check], target: Target, seed: int = 0, **options: float) -> Result:
    """Run one check on a target, on the CPU."""
    loop = DirectLoop(target, torch.device("cpu"), seed=seed)
    return run_check(check, Audit(loop, seed=seed, **options))


class Tools:
    """What the tests need, as one fixture: test modules cannot import one another."""

    Data = Data
    loader = staticmethod(loader)
    perceptron = staticmethod(perceptron)
    sgd = staticmethod(sgd)
    adam = staticmethod(adam)
    ask = staticmethod(ask)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(scope="session")
def data() -> Data:
    return Data()
