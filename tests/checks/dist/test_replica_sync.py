from __future__ import annotations

from typing import Any

from support.ranks import calls, of_ranks, weights

from nnaudit.checks.dist.replica_sync import ReplicaSync
from nnaudit.ranks.record import Entry, Gradients
from nnaudit.report import Result, Status

START = {"body": "0", "head": "0"}


def rank(later: dict[str, str], *, start: dict[str, str] = START, **parts: Any) -> list[Entry]:
    return [weights("the first step", 0, start, **parts), weights("step 1", 1, later, **parts)]


def judged(one: dict[str, str], other: dict[str, str], **parts: Any) -> Result:
    return of_ranks(ReplicaSync, rank(one, **parts), rank(other, **parts))


def test_equal_weights_pass() -> None:
    result = judged({"body": "1", "head": "1"}, {"body": "1", "head": "1"})
    assert result.status is Status.PASS
    assert "2 parameters on 2 ranks are equal" in result.message


def test_parameters_of_a_wrapper_that_part_fail() -> None:
    one, other = {"body": "1", "head": "1"}, {"body": "2", "head": "2"}
    result = judged(one, other, replicated=("body", "head"))
    assert result.status is Status.FAIL
    assert result.modules == ("body", "head")


def test_one_that_parts_while_another_is_trained_in_step_fails() -> None:
    result = judged({"body": "1", "head": "1"}, {"body": "1", "head": "2"})
    assert result.status is Status.FAIL
    assert "(first: head), while 1 are trained and stay equal" in result.message


def test_one_that_parts_beside_a_frozen_one_only_warns() -> None:
    result = judged({"body": "0", "head": "1"}, {"body": "0", "head": "2"})
    assert result.status is Status.WARN


def test_experts_may_part() -> None:
    experts = calls("all_to_all_single")
    result = of_ranks(
        ReplicaSync,
        [*rank({"body": "1", "head": "1"}), *experts],
        [*rank({"body": "1", "head": "2"}), *experts],
    )
    assert result.status is Status.WARN


def test_weights_that_differ_from_the_start_are_not_judged() -> None:
    one = rank({"w": "2"}, start={"w": "0"})
    other = rank({"w": "3"}, start={"w": "1"})
    assert of_ranks(ReplicaSync, one, other).status is Status.INCONCLUSIVE


def test_sharded_weights_are_no_question() -> None:
    assert judged({}, {}, start={}, sharded=4).status is Status.SKIP


def test_statistics_that_nothing_broadcasts_warn() -> None:
    def state(mean: str, *, broadcast: bool) -> list[Entry]:
        return rank({"w": "1"}, start={"w": "0"}, buffers={"mean": mean}, broadcast=broadcast)

    assert of_ranks(ReplicaSync, state("a", broadcast=False), state("b", broadcast=False)).status is (
        Status.WARN
    )
    assert of_ranks(ReplicaSync, state("a", broadcast=True), state("b", broadcast=True)).status is (
        Status.PASS
    )


def test_a_rank_that_never_stepped_leaves_it_open() -> None:
    assert of_ranks(ReplicaSync, rank({"w": "1"}), []).status is Status.INCONCLUSIVE


def test_weights_that_were_never_equal_fail_where_gradients_are_averaged() -> None:
    ranks = [
        [Gradients(gradients={"body": body, "head": "g"}), *rank({"body": "1"}, start={"body": body})]
        for body in ("0", "1")
    ]
    assert of_ranks(ReplicaSync, *ranks).status is Status.INCONCLUSIVE
    for each in ranks:
        each[0] = Gradients(gradients={"body": "g"})
    result = of_ranks(ReplicaSync, *ranks)
    assert result.status is Status.FAIL
    assert "1 parameter differs between ranks from the start" in result.message
