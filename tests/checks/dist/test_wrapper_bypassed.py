from __future__ import annotations

from support.ranks import of_ranks

from nnaudit.checks.dist.wrapper_bypassed import WrapperBypassed
from nnaudit.ranks.record import Wrapped
from nnaudit.report import Result, Status


def judged(forwards: int, bypassed: int) -> Result:
    rank = [Wrapped(network="Net", forwards=forwards, bypassed=bypassed)]
    return of_ranks(WrapperBypassed, rank, rank)


def test_a_wrapper_that_is_never_called_fails() -> None:
    result = judged(0, 16)
    assert result.status is Status.FAIL
    assert "calls Net 16 times" in result.message


def test_a_wrapper_that_is_called_passes_whatever_else_is() -> None:
    assert judged(16, 0).status is Status.PASS
    assert judged(16, 4).status is Status.PASS


def test_a_wrapper_out_of_use_is_no_question() -> None:
    assert judged(0, 0).status is Status.SKIP


def test_it_is_heard_from_a_rank_that_came_to_the_end() -> None:
    result = of_ranks(WrapperBypassed, [], [Wrapped(network="Net", forwards=0, bypassed=3)])
    assert result.status is Status.FAIL
