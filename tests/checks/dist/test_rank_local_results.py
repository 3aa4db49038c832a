from __future__ import annotations

from support.ranks import calls, of_ranks

from nnaudit.checks.dist.rank_local_results import RankLocalResults
from nnaudit.ranks.record import Entry, Resumed, Validation
from nnaudit.report import Status


def validating(digest: str, *ops: str) -> list[Entry]:
    began = Validation(after=8, digest=digest, collectives=0)
    return [began, *calls(*ops, ends=False), Resumed(after=8, collectives=len(ops))]


def test_different_rows_and_no_collective_warn() -> None:
    result = of_ranks(RankLocalResults, validating("a"), validating("b"))
    assert result.status is Status.WARN


def test_a_barrier_and_broadcast_buffers_tell_no_result() -> None:
    ops = ("DDP buffer broadcast", "barrier")
    result = of_ranks(RankLocalResults, validating("a", *ops), validating("b", *ops))
    assert result.status is Status.WARN


def test_a_reduction_passes() -> None:
    result = of_ranks(
        RankLocalResults, validating("a", "all_reduce"), validating("b", "all_reduce")
    )
    assert result.status is Status.PASS


def test_the_same_rows_on_all_ranks_or_on_one_pass() -> None:
    assert of_ranks(RankLocalResults, validating("a"), validating("a")).status is Status.PASS
    assert of_ranks(RankLocalResults, validating("a"), []).status is Status.PASS


def test_a_validation_that_did_not_end_proves_nothing() -> None:
    cut = [validating(digest)[:-1] for digest in "ab"]
    assert of_ranks(RankLocalResults, *cut).status is Status.PASS


def test_without_a_validation_there_is_no_question() -> None:
    assert of_ranks(RankLocalResults, [], []).status is Status.SKIP
