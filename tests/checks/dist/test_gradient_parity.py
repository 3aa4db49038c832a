from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from support import programs
from support.ranks import of_ranks, weights

from nnaudit.checks.dist.gradient_parity import RanksGradient
from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.gradient_parity import GradientParity, NoParity, Parity
from nnaudit.ranks.first_step import FirstStep
from nnaudit.ranks.record import Clipped, Entry, Rank, Ranks, Wrapped
from nnaudit.report import Result, Status

FOUR = Parity(ranks=4, factor=1.0, rest=0.01, noise=0.0, norms=(1.0, 1.0))


def judged(found: Parity | NoParity, *entries: Entry) -> Result:
    seen = list(entries)
    return of_ranks(RanksGradient, seen, seen, measured={GradientParity: found})


def test_the_same_gradient_passes() -> None:
    assert judged(FOUR).status is Status.PASS


@pytest.mark.parametrize(("factor", "said"), [(4.0, "multiplied"), (0.25, "divided")])
def test_a_factor_of_the_number_of_ranks_fails(factor: float, said: str) -> None:
    result = judged(replace(FOUR, factor=factor))
    assert result.status is Status.FAIL
    assert said in result.message


def test_the_fix_is_for_who_averages() -> None:
    summed = replace(FOUR, factor=4.0)
    assert "get_world_size" in judged(summed).fix
    assert "criterion" in judged(summed, Wrapped(network="Net", forwards=2, bypassed=0)).fix


def test_any_other_difference_is_left_open() -> None:
    assert judged(replace(FOUR, factor=1.5)).status is Status.INCONCLUSIVE
    assert judged(replace(FOUR, factor=4.0, rest=0.9)).status is Status.INCONCLUSIVE


def test_noise_and_what_cannot_be_compared_leave_it_open() -> None:
    assert judged(replace(FOUR, factor=4.0, noise=0.4)).status is Status.INCONCLUSIVE
    assert judged(NoParity("the gradient is zero")).status is Status.INCONCLUSIVE


def test_dropout_widens_the_tolerance() -> None:
    noisy = replace(FOUR, noise=0.25)
    assert judged(replace(noisy, factor=1.2)).status is Status.PASS
    assert judged(replace(noisy, factor=3.2)).status is Status.FAIL
    assert judged(replace(noisy, factor=1.5)).status is Status.INCONCLUSIVE


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_gradient_of_two_ranks_is_measured_beside_that_of_one_process(factor: float) -> None:
    loop = DirectLoop(programs.target(model=_plain), torch.device("cpu"), 0)
    weights = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    batches = [next(iter(loop.batches())) for _ in range(2)]
    audit = Audit(loop, ranks=Ranks(ranks=(Rank(rank=0), Rank(rank=1))))
    found = []
    for batch in batches:
        with audit.isolated():
            loop.step(batch)
            found.append({n: p.grad.clone() for n, p in loop.model.named_parameters()})
    reduced = {n: factor * (found[0][n] + found[1][n]) / 2 for n in found[0]}
    steps = tuple(FirstStep([batch], weights, reduced) for batch in batches)
    audit.ranks = Ranks(ranks=(Rank(rank=0), Rank(rank=1)), first_steps=steps)
    parity = audit.probe(GradientParity)
    assert isinstance(parity, Parity)
    assert parity.factor == pytest.approx(factor, rel=1e-4)
    assert parity.rest == pytest.approx(0, abs=1e-3)
    assert parity.noise == 0
    assert parity.targets == tuple(len(batch[1]) for batch in batches)


def clipping(*norms: float, limit: float = 1.0, end: str = "b") -> list[Entry]:
    """A rank that clips by these norms, and ends with the weights ``end``."""
    clips = [Clipped(step=i, norm=norm, limit=limit) for i, norm in enumerate(norms)]
    return [weights("the first step", 0, {"w": "a"}), *clips, weights("step 2", 2, {"w": end})]


def clipped(one: list[Entry], other: list[Entry]) -> Result:
    return of_ranks(RanksGradient, one, other, measured={GradientParity: FOUR})


def test_replicas_that_clip_by_norms_of_their_own_fail() -> None:
    result = clipped(clipping(3.0, 2.0), clipping(3.0, 4.0))
    assert result.status is Status.FAIL
    assert "2 and 4 in step 2" in result.message


def test_norms_that_clip_nothing_or_are_one_norm_pass() -> None:
    assert clipped(clipping(3.0, 2.0, limit=9.0), clipping(3.0, 4.0, limit=9.0)).status is Status.PASS
    assert clipped(clipping(3.0, 2.0), clipping(3.0, 2.00001)).status is Status.PASS


def test_ranks_that_are_no_replicas_have_norms_of_their_own() -> None:
    assert clipped(clipping(3.0), clipping(4.0, end="c")).status is Status.PASS


@pytest.mark.parametrize(
    ("targets", "weighs_ranks", "status"),
    [
        ((300, 200), True, Status.WARN),
        ((300, 200), False, Status.PASS),
        ((300, 290), True, Status.PASS),
        ((), True, Status.PASS),
    ],
)
def test_means_over_unequal_numbers_of_targets_warn(
    targets: tuple[int, ...], weighs_ranks: bool, status: Status
) -> None:
    found = replace(FOUR, targets=targets, weighs_ranks=weighs_ranks)
    assert judged(found).status is status


def test_gradients_that_something_normalises_are_left_open() -> None:
    assert judged(replace(FOUR, factor=4.0, normalised=True)).status is Status.INCONCLUSIVE
