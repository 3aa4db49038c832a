from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.seed.seed_sensitivity import SeedSensitivity
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.base import Step
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.seeding import Seeding
from nnaudit.report import Location, Result, Status
from nnaudit.targets.target import Target, load

CPU = torch.device("cpu")


def ask(model: Any, loader: Any = None) -> Result:
    loop = DirectLoop(Target(model, loader or shuffled), CPU, seed=0)
    return run_check(SeedSensitivity, Audit(loop))


def rows(n: int = 128) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def shuffled() -> DataLoader[Any]:
    return DataLoader(rows(), 16, shuffle=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def seeded_inside() -> nn.Module:
    torch.manual_seed(0)
    return mlp()


class SeedingRows(Dataset[Any]):
    def __init__(self, seed: Any) -> None:
        self.rows, self.seed = rows(), seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        self.seed(i)
        x, y = self.rows[i]
        return x + torch.randn(4), y


def seed_torch(i: int) -> None:
    torch.manual_seed(i)


def seed_numpy(i: int) -> None:
    np.random.seed(i)


def seed_python(i: int) -> None:
    random.seed(i)


def undone(i: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(i)


class SeededForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        np.random.seed(0)
        return self.net(x)


def test_a_seed_reset_in_build_model_warns_with_its_line() -> None:
    result = ask(seeded_inside)
    assert result.status is Status.WARN
    assert "inside seeded_inside()" in result.message
    assert result.location is not None
    assert result.location.line == seeded_inside.__code__.co_firstlineno + 1


@pytest.mark.parametrize("seed", [seed_torch, seed_numpy, seed_python])
def test_seeding_for_every_item_warns(seed: Any) -> None:
    result = ask(mlp, lambda: DataLoader(SeedingRows(seed), 16, shuffle=True))
    assert result.status is Status.WARN
    assert f"while a batch is read, inside {seed.__name__}()" in result.message


def test_seeding_in_every_step_warns() -> None:
    assert "while a step is taken" in ask(SeededForward).message


def test_seeding_that_is_undone_is_no_matter() -> None:
    assert ask(mlp, lambda: DataLoader(SeedingRows(undone), 16, shuffle=True)).status is Status.PASS


def test_weights_and_order_that_follow_the_seed_pass() -> None:
    assert ask(mlp).status is Status.PASS


def loaded() -> nn.Module:
    model = mlp()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def with_new_head() -> nn.Module:
    return nn.Sequential(loaded(), nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("within", "own"),
    [
        (("<module>",), True),
        (("set_seed", "main", "<module>"), True),
        (("seedEverything", "<module>"), True),
        (("build_model", "main", "<module>"), False),
        (("seeded_model", "<module>"), False),
    ],
)
def test_who_seeds_for_the_run(within: tuple[str, ...], own: bool) -> None:
    place = Location(file="a.py", line=1)
    assert Seeding("torch.manual_seed", place, "building", within).is_the_run_s_own is own
    assert not Seeding("torch.manual_seed", place, "reading", within).is_the_run_s_own


def zeros() -> nn.Module:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def test_loaded_weights_are_noted_and_a_new_head_passes() -> None:
    assert ask(loaded).status is Status.NOTE
    assert ask(with_new_head).status is Status.PASS


def test_weights_that_start_at_zero_are_no_sign() -> None:
    assert ask(zeros).status is Status.PASS


@pytest.mark.parametrize("own", [True, False])
def test_an_order_of_its_own_is_noted(own: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    loader = lambda: DataLoader(rows(), 16, shuffle=own, generator=generator)  # noqa: E731
    assert ask(mlp, loader).status is Status.NOTE


def test_a_model_that_exists_already_is_skipped() -> None:
    assert ask(mlp()).status is Status.SKIP


def test_a_file_that_seeds_itself_at_the_top_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "topseeded.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "torch.manual_seed(0)\nmodel = nn.Linear(4, 3)\n"
        "train_loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.arange(64) % 3), 16)\n"
    )
    result = run_check(SeedSensitivity, Audit(DirectLoop(load(file), CPU, seed=0)))
    assert result.status is Status.NOTE
    assert "line 4" in result.message


class BetweenEpochs(DirectLoop):
    """A loop whose user's code between two epochs seeds with what ``numbers`` yields next."""

    numbers: Iterator[int]

    def next_epoch(self, batch: Any) -> Step | None:
        number = next(self.numbers, None)
        if number is not None:
            self._users_code(number)
        return self.step(batch)

    def _users_code(self, number: int) -> None:
        exec(compile("import torch; torch.manual_seed(n)", __file__, "exec"), {"n": number})


@pytest.mark.parametrize(
    ("numbers", "warns"), [((7, 7), True), ((1, 2), False), ((7,), False), ((), False)]
)
def test_the_same_seed_between_all_epochs_warns(numbers: tuple[int, ...], warns: bool) -> None:
    loop = BetweenEpochs(Target(mlp, shuffled), CPU, seed=0)
    loop.numbers = iter(numbers)
    result = run_check(SeedSensitivity, Audit(loop))
    assert (result.status is Status.WARN) == warns
    assert ("between any two epochs" in result.message) == warns


class SeedsTheLoader(DirectLoop):
    """A loop whose user's code between two epochs seeds the loader's own generator."""

    numbers: Iterator[int]

    def next_epoch(self, batch: Any) -> Step | None:
        number = next(self.numbers, None)
        if number is not None:
            self.train_loader.generator.manual_seed(number)
        return self.step(batch)


@pytest.mark.parametrize(
    ("numbers", "warns"), [((7, 7, 7), True), ((1, 2, 3), False), ((7,), False), ((), False)]
)
def test_the_same_seed_of_the_loader_between_all_epochs_warns(
    numbers: tuple[int, ...], warns: bool
) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(rows(), 16, shuffle=True, generator=torch.Generator().manual_seed(0))

    loop = SeedsTheLoader(Target(mlp, loader), CPU, seed=0)
    loop.numbers = iter(numbers)
    result = run_check(SeedSensitivity, Audit(loop))
    assert (result.status is Status.WARN) == warns
    assert ("the same order" in result.message) == warns
