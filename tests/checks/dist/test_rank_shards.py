from __future__ import annotations

import random

import pytest
from support.ranks import batch, of_ranks, order, parallel

from nnaudit.checks.dist.rank_shards import RankShards
from nnaudit.report import Status

ROWS = random.Random(0).sample(range(64), 64)


def test_ranks_that_divide_the_rows_pass() -> None:
    result = of_ranks(
        RankShards,
        [batch(0, "a"), batch(1, "b"), order(ROWS[::2]), parallel()],
        [batch(0, "c"), batch(1, "d"), order(ROWS[1::2]), parallel()],
    )
    assert result.status is Status.PASS
    assert "64 of 64 items" in result.message


def test_rows_that_fill_up_the_last_batch_are_no_fault() -> None:
    result = of_ranks(
        RankShards,
        [order(ROWS[:32], length=61), parallel()],
        [order([*ROWS[32:61], *ROWS[:3]], length=61), parallel()],
    )
    assert result.status is Status.PASS


def test_equal_batches_fail() -> None:
    rank = [batch(0, "a"), batch(1, "b"), batch(2, "c"), parallel()]
    result = of_ranks(RankShards, rank, rank)
    assert result.status is Status.FAIL
    assert "same rows (3 of 3 batches" in result.message
    assert "islice" in result.fix  # no sampler was seen: a stream
    sampled = [batch(0, "a"), batch(1, "b"), batch(2, "c"), order(ROWS), parallel()]
    assert "DistributedSampler" in of_ranks(RankShards, sampled, sampled).fix


def test_one_order_on_all_ranks_fails_though_augmentation_makes_the_batches_differ() -> None:
    result = of_ranks(
        RankShards,
        [batch(0, "a"), batch(1, "b"), order(ROWS), parallel()],
        [batch(0, "c"), batch(1, "d"), order(ROWS), parallel()],
    )
    assert result.status is Status.FAIL
    assert "in the same order" in result.message


def test_equal_rows_warn_where_they_may_be_meant() -> None:
    rank = [batch(0, "a"), batch(1, "b"), parallel(data=False)]
    result = of_ranks(RankShards, rank, rank)
    assert result.status is Status.WARN
    assert "tensor or pipeline" in result.message


def test_batches_that_are_all_the_same_prove_nothing() -> None:
    rank = [batch(0, "a"), batch(1, "a"), parallel()]
    assert of_ranks(RankShards, rank, rank).status is Status.PASS


def test_all_rows_on_every_rank_in_an_order_of_its_own_warn() -> None:
    other = random.Random(1).sample(range(64), 64)
    result = of_ranks(RankShards, [order(ROWS), parallel()], [order(other), parallel()])
    assert result.status is Status.WARN
    assert "an epoch is 2 epochs" in result.message


def test_shares_that_overlap_and_leave_rows_out_fail() -> None:
    many = random.Random(0).sample(range(640), 640)
    result = of_ranks(
        RankShards,
        [order(many[:320], length=640), parallel()],
        [order(many[160:480], length=640), parallel()],
    )
    assert result.status is Status.FAIL
    assert "160 of 640 items" in result.message


@pytest.mark.parametrize(("other", "status"), [("a", Status.FAIL), ("b", Status.PASS)])
def test_the_same_numbers_may_be_other_items_on_each_rank(other: str, status: Status) -> None:
    ranks = [[batch(0, "x"), order(ROWS), parallel(items={0: "a"})]]
    ranks.append([batch(0, "y"), order(ROWS), parallel(items={0: other})])
    assert of_ranks(RankShards, *ranks).status is status


def test_draws_with_replacement_may_overlap() -> None:
    one, other = ([random.Random(s).randrange(64) for _ in range(64)] for s in (1, 2))
    result = of_ranks(
        RankShards, [order(one, replaces=True), parallel()], [order(other, replaces=True), parallel()]
    )
    assert result.status is Status.PASS


@pytest.mark.parametrize(
    ("uncut", "status"), [("waits", Status.FAIL), ("ends", Status.PASS), ("", Status.WARN)]
)
def test_unequal_numbers_of_batches_are_judged_by_what_comes_of_them(
    uncut: str, status: Status
) -> None:
    one, other = order(ROWS[:32]), order(ROWS[32:], size=7)
    result = of_ranks(RankShards, [one, parallel()], [other, parallel()], uncut=uncut)
    assert result.status is status
    if status is not Status.PASS:
        assert "Rank 0 has 4 batches in an epoch and rank 1 has 5" in result.message


def test_unequal_numbers_of_batches_may_be_joined() -> None:
    one, other = order(ROWS[:32]), order(ROWS[32:], size=7)
    joined = of_ranks(RankShards, [one, parallel(joins=True)], [other, parallel(joins=True)])
    assert joined.status is Status.PASS


def test_streams_of_unequal_length_are_judged_without_their_items() -> None:
    one, other = (order([], length=0).model_copy(update={"batches": n}) for n in (4, 5))
    rank, rest = [batch(0, "a"), one, parallel()], [batch(0, "b"), other, parallel()]
    assert of_ranks(RankShards, rank, rest, uncut="waits").status is Status.FAIL
    equal = of_ranks(RankShards, rank, [batch(0, "b"), one, parallel()])
    assert equal.status is Status.PASS
    assert "different batches" in equal.message


def test_one_rank_and_no_batch_are_no_question() -> None:
    assert of_ranks(RankShards, [batch(0, "a")]).status is Status.SKIP
    assert of_ranks(RankShards, [parallel()], [parallel()]).status is Status.INCONCLUSIVE
