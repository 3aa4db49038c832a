from __future__ import annotations

import functools
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from nnaudit.checks.seed.seeded_run import Difference, SeededRun, difference_of
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.runs import Run, Runs, SeededRuns, Weights
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target, load

CPU = torch.device("cpu")


def audit_of(model: Any, loader: Any, **parts: Any) -> Audit:
    return Audit(DirectLoop(Target(model, loader, **parts), CPU, seed=0))


def ask(model: Any, loader: Any, **parts: Any) -> Result:
    return run_check(SeededRun, audit_of(model, loader, **parts))


def rows(n: int = 128) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def shuffled() -> DataLoader[Any]:
    return DataLoader(rows(), 16, shuffle=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class Augmented(Dataset[Any]):
    """Rows with noise from ``draw``."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.rows, self.draw = rows(), draw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        x, y = self.rows[i]
        return x + self.draw(), y


class Noisy(nn.Module):
    """Adds noise that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + float(np.random.default_rng().normal()))


def from_entropy() -> nn.Module:
    model, entropy = mlp(), random.SystemRandom()
    with torch.no_grad():
        model[0].weight += entropy.random()
    return model


def split_by_chance() -> DataLoader[Any]:
    chosen = np.random.default_rng().permutation(128)[:96]
    return DataLoader(torch.utils.data.Subset(rows(), chosen.tolist()), 16, shuffle=True)


class OwnOrder(RandomSampler):
    def __iter__(self) -> Any:
        return iter(np.random.default_rng().permutation(len(self.data_source)).tolist())  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Any, Any, str]] = {
    "initialisation": (from_entropy, shuffled, "initial weights differ in 1 of 4"),
    "data set": (mlp, split_by_chance, "data set holds other values"),
    "order": (mlp, lambda: DataLoader(rows(), 16, sampler=OwnOrder(rows())), "another order"),
    "augmentation": (
        mlp,
        lambda: DataLoader(Augmented(lambda: float(np.random.default_rng().normal())), 16),
        "the same order have other values",
    ),
    "augmentation from the system": (
        mlp,
        lambda: DataLoader(Augmented(lambda: os.urandom(1)[0] / 255), 16, shuffle=True),
        "other values",
    ),
    "augmentation from an object of the system": (
        mlp,
        lambda: DataLoader(Augmented(random.SystemRandom().random), 16, shuffle=True),
        "other values",
    ),
    "augmentation in a worker": (
        mlp,
        lambda: DataLoader(
            Augmented(lambda: float(np.random.default_rng().normal())), 16, num_workers=1
        ),
        "other values",
    ),
    "step": (Noisy, shuffled, "loss of step 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_randomness_beyond_the_seed_fails_and_is_placed(name: str) -> None:
    model, loader, where = FAULTS[name]
    result = ask(model, loader)
    assert result.status is Status.FAIL, result.message
    assert where in result.message
    assert result.fix


@functools.cache
def module_generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


SHARED = np.random.default_rng(5)
ENTROPY = random.SystemRandom()  # a module may hold one: it has no state to keep


def loaders_that_follow_the_seed() -> dict[str, Callable[[], Any]]:
    seeded = torch.Generator().manual_seed(1)
    return {
        "shuffled": shuffled,
        "fixed": lambda: DataLoader(rows(), 16),
        "own generator": lambda: DataLoader(rows(), 16, shuffle=True, generator=seeded),
        "noise of torch": lambda: DataLoader(Augmented(lambda: float(torch.randn(()))), 16),
        "noise of numpy": lambda: DataLoader(Augmented(np.random.normal), 16, shuffle=True),
        "noise of Python": lambda: DataLoader(Augmented(random.random), 16),
        "noise of a worker": lambda: DataLoader(
            Augmented(lambda: float(torch.randn(()))), 16, num_workers=2, shuffle=True
        ),
        "noise of a module's generator": lambda: DataLoader(Augmented(SHARED.normal), 16),
        "seed from torch": lambda: DataLoader(
            Augmented(np.random.default_rng(torch.initial_seed()).normal), 16
        ),
    }


@pytest.mark.parametrize("name", loaders_that_follow_the_seed())
def test_a_run_that_follows_its_seed_passes(name: str) -> None:
    result = ask(mlp, loaders_that_follow_the_seed()[name])
    assert result.status is Status.PASS, result.message


def test_a_loss_that_is_not_a_number_is_the_same_twice() -> None:
    result = ask(mlp, shuffled, loss=lambda o, t: F.cross_entropy(o, t) * float("nan"))
    assert result.status is Status.PASS, result.message


def test_a_step_that_raises_leaves_the_rest_to_be_compared() -> None:
    def broken(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError

    assert ask(mlp, shuffled, loss=broken).status is Status.PASS
    assert ask(from_entropy, shuffled, loss=broken).status is Status.FAIL


def test_a_model_that_exists_already_is_replayed() -> None:
    torch.manual_seed(0)
    result = ask(mlp(), shuffled)
    assert result.status is Status.PASS
    assert "not possible" in result.message
    assert ask(Noisy(), shuffled).status is Status.FAIL


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([(1.0, 1.0 + 1e-7), (0.9, 0.9 + 1e-4)], "arithmetic"),
        ([(1.0, 1.0), (0.9, 0.9 + 1e-6)], "arithmetic"),
        ([(1.0, 1.01), (0.9, 0.9)], "step"),
        ([(1.0, float("nan"))], "step"),
        ([(1.0, 1.0)], ""),
    ],
)
def test_rounding_is_told_from_chance(losses: list[tuple[float, float]], expected: str) -> None:
    runs = audit_of(mlp, shuffled).probe(SeededRuns)
    first, again = (
        type(run)(**{**vars(run), "losses": tuple(pair[i] for pair in losses)})
        for i, run in enumerate((runs.first, runs.again))
    )
    found = difference_of(Runs(**{**vars(runs), "first": first, "again": again}))
    assert (found.where if isinstance(found, Difference) else "") == expected


PROGRAM = """
import time
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED = {seed}
data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)


def build_model():
    torch.manual_seed(SEED)
    return nn.Linear(4, 3)


def train_loader():
    return DataLoader(data, 16, shuffle=True)
"""


def test_a_seed_from_the_clock_is_found_and_named(tmp_path: Path) -> None:
    file = tmp_path / "clocked.py"
    file.write_text(PROGRAM.format(seed="int(time.time())"))
    result = run_check(SeededRun, Audit(DirectLoop(load(file), CPU, seed=0)))
    assert result.status is Status.FAIL
    assert result.location is not None
    assert result.location.line == 8


def test_a_file_that_seeds_itself_passes(tmp_path: Path) -> None:
    file = tmp_path / "seeded.py"
    file.write_text(PROGRAM.format(seed="17"))
    assert run_check(SeededRun, Audit(DirectLoop(load(file), CPU, seed=0))).status is Status.PASS


NAMED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAMES = ["setosa", "versicolor", "virginica"] * 20
NUMBERS = {numbers}


def build_model():
    return nn.Linear(4, 3)


def train_loader():
    x = torch.arange(240.0).reshape(60, 4) / 240
    y = torch.tensor([NUMBERS[name] for name in NAMES])
    return DataLoader(TensorDataset(x, y), 16, shuffle=True)
"""


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ("{name: i for i, name in enumerate(set(NAMES))}", Status.FAIL),
        ("{name: i for i, name in enumerate({name for name in NAMES})}", Status.FAIL),
        ("dict(zip({'setosa', 'versicolor', 'virginica'}, range(3)))", Status.FAIL),
        ("{name: i for i, name in enumerate(sorted(set(NAMES)))}", Status.PASS),
        ("{name: i for i, name in enumerate(dict.fromkeys(NAMES)) if name in set(NAMES)}",
         Status.PASS),
        ("{n: i for i, n in zip(set(range(3)), ['setosa', 'versicolor', 'virginica'])}",
         Status.PASS),
    ],
)  # fmt: skip
def test_the_order_of_a_set_of_strings(tmp_path: Path, numbers: str, status: Status) -> None:
    file = tmp_path / "named.py"
    file.write_text(NAMED.format(numbers=numbers))
    result = run_check(SeededRun, Audit(DirectLoop(load(file), CPU, seed=0)))
    assert result.status is status, result.message
    if status is Status.FAIL:
        assert result.location is not None
        assert result.location.line == 7
    assert type({1}) is set


def test_batches_of_an_environment_that_the_audit_has_moved_prove_nothing() -> None:
    """Reinforcement learning: to look at a batch is to take a step in the world."""
    same, other = (Weights({"w": digest}, frozenset({"w"}), {}) for digest in "ab")

    def judged(batches: str, weights: Weights = same, loader: str = "") -> Result:
        runs = [
            Run(w, w, (b,), (b,), (b,), Counter([b]), None, None, (1.0,))
            for b, w in zip(("x", batches), (same, weights), strict=True)
        ]
        measured = Runs(runs[0], runs[1], None, False, (), 0)
        loop = SimpleNamespace(
            lacks=lambda need: loader, device=torch.device("cpu"), locate=lambda thing: None
        )
        audit = SimpleNamespace(probe=lambda probe: measured, loop=loop)
        return SeededRun().run(cast(Audit, audit))

    assert judged("y").status is Status.FAIL
    result = judged("y", loader="it draws them itself")
    assert result.status is Status.INCONCLUSIVE
    assert "draws its batches itself" in result.message
    assert judged("x", loader="it draws them itself").status is Status.PASS
    assert judged("x", other, loader="it draws them itself").status is Status.FAIL
