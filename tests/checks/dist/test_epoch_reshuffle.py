from __future__ import annotations

import random

from support.ranks import of_ranks, order

from nnaudit.checks.dist.epoch_reshuffle import EpochReshuffle
from nnaudit.ranks.record import Order
from nnaudit.report import Result, Status

FIRST, SECOND = (random.Random(seed).sample(range(64), 32) for seed in (0, 1))


def epochs(*orders: list[int], waits: bool = True) -> list[Order]:
    return [order(o, epoch=i, waits_for_epoch=waits) for i, o in enumerate(orders)]


def judged(*orders: list[int], waits: bool = True) -> Result:
    rank = epochs(*orders, waits=waits)
    return of_ranks(EpochReshuffle, rank, rank)


def test_another_order_passes() -> None:
    assert judged(FIRST, SECOND).status is Status.PASS


def test_the_same_order_fails() -> None:
    result = judged(FIRST, FIRST)
    assert result.status is Status.FAIL
    assert "32 of 32 items on rank 0" in result.message


def test_it_fails_on_one_rank_alone() -> None:
    result = of_ranks(EpochReshuffle, epochs(FIRST, SECOND), epochs(FIRST, FIRST))
    assert result.status is Status.FAIL


def test_what_is_not_shuffled_is_not_judged() -> None:
    assert judged(sorted(FIRST), sorted(FIRST)).status is Status.INCONCLUSIVE


def test_one_epoch_leaves_it_open() -> None:
    assert judged(FIRST).status is Status.INCONCLUSIVE


def test_a_sampler_that_needs_no_number_is_no_question() -> None:
    assert judged(FIRST, FIRST, waits=False).status is Status.SKIP
