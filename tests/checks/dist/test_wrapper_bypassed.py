from __future__ import annotations

from support.ranks import of_ranks

from nnaudit.checks.dist.wrapper_bypassed import WrapperBypassed
from nnaudit.ranks.record import Failed, Held, Wrapped
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


def test_a_parameter_that_the_loss_does_not_use_fails_where_it_stops_the_training() -> None:
    rank = [Wrapped(network="Net", forwards=2, bypassed=0, unused=("aux.weight",))]
    failed = [*rank, Failed(message="RuntimeError: Expected to have finished reduction")]
    result = of_ranks(WrapperBypassed, failed, failed)
    assert result.status is Status.FAIL
    assert "1 parameter of Net has no gradient" in result.message
    assert result.modules == ("aux.weight",)
    assert of_ranks(WrapperBypassed, rank, rank).status is Status.PASS


def test_an_optimizer_that_was_made_before_sharding_fails() -> None:
    stale = [Held(stale=4, unstepped=("0.weight", "0.bias"))]
    result = of_ranks(WrapperBypassed, stale, stale)
    assert result.status is Status.FAIL
    assert "steps 4 parameters of no network" in result.message


def test_parameters_that_are_left_out_on_purpose_are_no_stale_ones() -> None:
    frozen = [Held(unstepped=("0.weight",))]
    assert of_ranks(WrapperBypassed, frozen, frozen).status is Status.SKIP
