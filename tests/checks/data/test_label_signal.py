from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.data.label_signal import LabelSignals
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.label_signal import signal_of
from nnaudit.probes.rows import Rows
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

SILENT = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.head(sum(t.float().flatten(1).mean(1, keepdim=True) for t in (x, *more)))


def squares(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output[:, 0], y.float())


def ask(*tensors: Tensor, val: tuple[Tensor, ...] | None = None, loss: Any = None) -> Result:
    loss = loss or (squares if tensors[-1].is_floating_point() else F.cross_entropy)
    target = Target(
        Anything,
        lambda: DataLoader(TensorDataset(*tensors), 32, shuffle=True),
        val_loader=None if val is None else lambda: DataLoader(TensorDataset(*val), 32),
        loss=loss,
    )
    return run_check(LabelSignals, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real(load: Any) -> tuple[Tensor, Tensor]:
    x, y = load(return_X_y=True)
    return torch.tensor(x).float(), torch.tensor(y)


def shuffled(y: Tensor, seed: int = 5) -> Tensor:
    return y[torch.randperm(len(y), generator=generator(seed))]


DATA = {
    "digits": (real(load_digits)[0].reshape(-1, 1, 8, 8), real(load_digits)[1]),
    "flat digits": real(load_digits),
    "cancer": real(load_breast_cancer),
    "diabetes": (real(load_diabetes)[0], real(load_diabetes)[1].float()),
}


@pytest.mark.parametrize("name", DATA)
def test_labels_shuffled_apart_from_their_inputs_warn(name: str) -> None:
    x, y = DATA[name]
    assert ask(x, shuffled(y)).status is Status.WARN


@pytest.mark.parametrize("name", DATA)
def test_labels_in_place_pass(name: str) -> None:
    assert ask(*DATA[name]).status is Status.PASS


def test_labels_moved_by_half_the_table_warn() -> None:
    x, y = DATA["cancer"]
    order = torch.randperm(len(y), generator=generator())
    assert ask(x[order], y[order].roll(200)).status is Status.WARN


def test_validation_that_shows_what_training_does_not_is_said() -> None:
    x, y = DATA["digits"]
    result = ask(x[:1200], shuffled(y[:1200]), val=(x[1200:], y[1200:]))
    assert result.status is Status.WARN
    assert "validation" in result.message


def test_small_tables_pass_or_are_left_alone() -> None:
    for load in (load_iris, load_wine):
        assert ask(*real(load)).status is Status.PASS
    x, y = real(load_iris)
    assert ask(x, shuffled(y)).status is Status.INCONCLUSIVE
    assert ask(x[::4], shuffled(y)[::4]).status is Status.SKIP


def test_six_rare_rows_can_tell_nothing() -> None:
    x = torch.randn(512, 8, generator=generator())
    assert ask(x, (torch.arange(512) % 90 == 0).long()).status is Status.INCONCLUSIVE


# --- signals of other kinds ---------------------------------------------------------------------


def spirals() -> tuple[Tensor, ...]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    t = rng.uniform(0.5, 3, 400) * np.pi
    x = np.stack([t * np.cos(t + np.pi * y), t * np.sin(t + np.pi * y)], 1)
    return torch.tensor(x).float(), torch.tensor(y)


def tones_at_any_phase() -> tuple[Tensor, ...]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    time = np.arange(200)
    x = np.sin(0.1 * (y[:, None] + 2) * time + rng.uniform(0, 6.3, (400, 1)))
    return torch.tensor(x + 0.5 * rng.normal(size=x.shape)).float(), torch.tensor(y)


def words_anywhere() -> tuple[Tensor, ...]:
    rng = np.random.default_rng(0)
    words = rng.integers(10, 400, (600, 12))
    y = rng.integers(0, 3, 600)
    for i in range(600):
        words[i, rng.choice(12, 2, replace=False)] = y[i]
    return torch.tensor(words), torch.tensor(y)


@pytest.mark.parametrize("make", [spirals, tones_at_any_phase, words_anywhere])
def test_signals_of_other_kinds_are_seen(make: Callable[[], tuple[Tensor, ...]]) -> None:
    result = ask(*make())
    assert result.status is Status.PASS, result.message


# --- tasks that need more -------------------------------------------------------------------------


def parity() -> tuple[Tensor, ...]:
    bits = torch.randint(0, 2, (600, 10), generator=generator()).float()
    return bits, bits.sum(1).long() % 2


def modular_addition() -> tuple[Tensor, ...]:
    pairs = torch.randint(0, 97, (900, 2), generator=generator())
    return pairs, pairs.sum(1) % 97 % 10


def same_or_not() -> tuple[Tensor, ...]:
    x, y = DATA["flat digits"]
    one = torch.randperm(len(y), generator=generator(1))[:900]
    other = torch.randperm(len(y), generator=generator(2))[:900]
    other[::2] = torch.stack([(y == y[i]).nonzero()[0, 0] for i in one[::2]])
    return x[one], x[other], (y[one] == y[other]).long()


def noise_sounds() -> tuple[Tensor, ...]:
    return torch.randn(400, 2, 500, generator=generator()), torch.arange(400) % 3


def users_and_items() -> tuple[Tensor, ...]:
    ids = torch.randint(0, 60, (500, 2), generator=generator())
    return ids[:, 0], ids[:, 1], torch.randint(0, 5, (500,), generator=generator())


@pytest.mark.parametrize(
    "make", [parity, modular_addition, same_or_not, noise_sounds, users_and_items]
)
def test_tasks_that_need_more_than_distances_are_left_alone(
    make: Callable[[], tuple[Tensor, ...]],
) -> None:
    result = ask(*make())
    assert result.status in SILENT, result.message


def test_without_single_targets_there_is_no_question() -> None:
    x = torch.randn(300, 12, generator=generator())
    assert ask(x, x).status is Status.SKIP
    assert ask(x, torch.zeros(300).long()).status is Status.SKIP


def test_shuffled_labels_look_significant_no_more_often_than_chance() -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(150, 6))).float()
    best = []
    for _ in range(200):
        rows = Rows((), (), rng.integers(0, 3, 150), {"[0]": list(x)}, 150)
        seen = signal_of(rows)
        assert seen is not None
        best += list(seen.z.values())
    assert abs(float(np.mean(best))) < 0.2
    assert np.mean(np.array(best) > 2) < 0.05
    assert max(best) < 4.5


def test_actions_are_no_labels_where_the_loss_compares_with_a_value_estimate() -> None:
    """Replay: what was done is drawn at random, what it was worth is reckoned in the step."""
    x = torch.randn(800, 8, generator=generator())
    action = torch.randint(3, (800,), generator=generator(1))

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        state, done = batch
        value = model(state).gather(1, done[:, None]).squeeze(1)
        return F.smooth_l1_loss(value, state[:, 0] + 0.9 * value.detach())

    target = Target(
        Anything,
        lambda: DataLoader(TensorDataset(x, action), 32, shuffle=True),
        training_step=step,
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    assert run_check(LabelSignals, Audit(loop)).status is Status.SKIP
    assert ask(x, action).status is Status.WARN


# --- the target among the inputs ------------------------------------------------------------------


def table(rows: int = 300) -> Tensor:
    return torch.randn(rows, 5, generator=generator(1))


def test_a_column_that_is_the_target() -> None:
    y = (table()[:, 0] + torch.randn(300, generator=generator(2)) > 0).long()
    x = torch.cat([table(), 3.0 - 2.0 * y[:, None]], 1)
    result = ask(x, y)
    assert result.status is Status.WARN
    assert "Column 5" in result.message
    assert ask(x[:, :5], y).status is Status.PASS


def test_a_column_that_is_the_target_of_a_regression() -> None:
    y = table() @ torch.ones(5) + torch.randn(300, generator=generator(2))
    assert ask(torch.cat([0.5 * y[:, None] - 1, table()], 1), y).status is Status.WARN
    assert ask(torch.cat([y[:, None] + 0.1 * table()[:, :1], table()], 1), y).status is Status.PASS


@pytest.mark.parametrize("wrong", [1, 5])
def test_a_column_that_nearly_says_the_class(wrong: int) -> None:
    y = torch.randint(3, (300,), generator=generator())
    said = y.clone()
    said[:wrong] = (said[:wrong] + 1) % 3
    assert ask(torch.cat([table(), said[:, None]], 1), y).status is Status.PASS


def test_what_says_the_target_and_may() -> None:
    wave = torch.sin(torch.arange(600) * (2 * torch.pi / 10))
    windows = wave.unfold(0, 10, 1)[:-1]
    assert ask(windows, wave[10:]).status is Status.PASS
    only = table()[:, :1]
    assert ask(only, 2 * only[:, 0] + 1).status is Status.PASS
    above = (table()[:, 0] > 0).long()
    assert ask(table(), above).status is Status.PASS


def test_pairs_that_a_step_compares() -> None:
    x = table(600)
    a, b = x[:300], x[300:]
    same = (((a - b) ** 2).sum(1) < 8).float()

    def step(model: nn.Module, batch: list[Tensor]) -> Tensor:
        distance = (model(batch[0]) - model(batch[1])).square().sum(1)
        return F.binary_cross_entropy_with_logits(-distance, batch[2])

    loader = lambda: DataLoader(TensorDataset(a, b, same), 32, shuffle=True)  # noqa: E731
    target = Target(Anything, loader, training_step=step)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    assert run_check(LabelSignals, Audit(loop)).status in SILENT


def encoded(*, rows: int, seed: int, leak: bool) -> tuple[Tensor, Tensor]:
    """Three columns and a number without any relation; ``leak`` puts the number into the first."""
    x, y = (
        torch.randn(rows, 3, generator=generator(seed)),
        torch.randn(rows, generator=generator(9)),
    )
    if leak:
        x[:, 0] = 0.6 * y + 0.4 * x[:, 0]
    return x, y


def test_a_signal_that_validation_lacks_warns() -> None:
    """A category that is encoded by the targets of its own rows, of which validation has others."""
    result = ask(*encoded(rows=600, seed=0, leak=True), val=encoded(rows=400, seed=1, leak=False))
    assert result.status is Status.WARN, result.message
    assert "validation" in result.message


def test_a_signal_that_both_have_passes() -> None:
    both = (encoded(rows=600, seed=0, leak=True), encoded(rows=400, seed=1, leak=True))
    assert ask(*both[0], val=both[1]).status is Status.PASS


def test_few_validation_rows_show_nothing() -> None:
    both = (encoded(rows=600, seed=0, leak=True), encoded(rows=120, seed=1, leak=False))
    assert ask(*both[0], val=both[1]).status is Status.PASS
