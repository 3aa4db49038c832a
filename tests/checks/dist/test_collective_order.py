from __future__ import annotations

from support.ranks import calls, of_ranks

from nnaudit.checks.dist.collective_order import CollectiveOrder
from nnaudit.ranks.record import Failed
from nnaudit.report import Status, Table


def test_the_same_sequence_passes() -> None:
    rank = calls("all_reduce", "broadcast")
    result = of_ranks(CollectiveOrder, rank, rank)
    assert result.status is Status.PASS
    assert "2 collectives" in result.message


def test_another_collective_fails_and_names_both() -> None:
    result = of_ranks(
        CollectiveOrder, calls("all_reduce", "barrier"), calls("all_reduce", "broadcast")
    )
    assert result.status is Status.FAIL
    assert "Rank 0 calls barrier() in training step 1, while rank 1 calls broadcast()" in (
        result.message
    )
    (table,) = result.evidence
    assert isinstance(table, Table)
    assert table.rows[0][1].startswith("all_reduce")


def test_a_rank_that_waits_for_one_that_has_gone_on_fails() -> None:
    result = of_ranks(
        CollectiveOrder,
        calls("barrier", "all_reduce", ends=False),
        calls("barrier"),
        hung="wait for one another",
    )
    assert result.status is Status.FAIL
    assert "while rank 1 goes on to the end" in result.message


def test_a_rank_that_is_only_behind_is_no_fault() -> None:
    result = of_ranks(CollectiveOrder, calls("barrier", "all_reduce", ends=False), calls("barrier")[:-1])
    assert result.status is Status.PASS


def test_what_follows_an_exception_is_not_compared() -> None:
    failed = [*calls("barrier")[:-1], Failed(message="ValueError", doing="training step 1")]
    result = of_ranks(CollectiveOrder, calls("barrier", "all_reduce", ends=False), failed)
    assert result.status is Status.PASS


def test_groups_of_others_do_not_count() -> None:
    alone = calls("all_reduce", group=(0,))
    assert of_ranks(CollectiveOrder, alone, calls()).status is Status.PASS


def test_a_standstill_without_a_difference_is_left_open_and_told() -> None:
    rank = calls("barrier", ends=False)
    result = of_ranks(CollectiveOrder, rank, rank, hung="did not come to the end in time")
    assert result.status is Status.INCONCLUSIVE
    assert "rank 1 waits in barrier()" in result.message
