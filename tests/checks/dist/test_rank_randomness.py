from __future__ import annotations

from support.ranks import batch, of_ranks, parallel, weights

from nnaudit.checks.dist.rank_randomness import RankRandomness
from nnaudit.ranks.record import Entry, Stepped
from nnaudit.report import Status


def reading(*states: str) -> list[Entry]:
    return [batch(i, f"{i}", drew={"torch": state}) for i, state in enumerate(states)]


def stepping(*states: str) -> list[Entry]:
    return [Stepped(step=i, drew={"torch": state}) for i, state in enumerate(states)]


def test_states_of_their_own_pass() -> None:
    result = of_ranks(RankRandomness, reading("a", "b", "c"), reading("d", "e", "f"))
    assert result.status is Status.PASS


def test_batches_read_from_one_state_warn() -> None:
    result = of_ranks(RankRandomness, reading("a", "b", "c"), reading("a", "b", "c"))
    assert result.status is Status.WARN
    assert "augmentation (torch)" in result.message


def test_the_first_batch_alone_is_the_samplers() -> None:
    result = of_ranks(RankRandomness, reading("a", "b", "c"), reading("a", "e", "f"))
    assert result.status is Status.PASS


def test_dropout_from_one_state_is_noted() -> None:
    result = of_ranks(RankRandomness, stepping("a", "b"), stepping("a", "b"))
    assert result.status is Status.NOTE


def test_workers_with_one_seed_warn_where_items_are_augmented() -> None:
    rank: list[Entry] = [batch(i, f"{i}", worker_seed=7) for i in range(3)]
    result = of_ranks(
        RankRandomness, [*rank, parallel(augments=True)], [*rank, parallel(augments=True)]
    )
    assert result.status is Status.WARN
    result = of_ranks(
        RankRandomness, [*rank, parallel(augments=False)], [*rank, parallel(augments=False)]
    )
    assert result.status is Status.PASS


def test_weights_that_differ_before_the_first_step_warn() -> None:
    one, other = ([weights("the first step", 0, {"w": bits})] for bits in "ab")
    result = of_ranks(RankRandomness, one, other)
    assert result.status is Status.WARN
    assert "first: w" in result.message
