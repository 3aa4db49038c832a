"""Rows of a stream that come again: in one order, or in another each time."""

import random
from collections.abc import Iterator

import pytest

from nnaudit.measure.recurrence import recurrence_of

ROWS = [f"row {i}" for i in range(150)]


def epochs(count: int, seed: int | None) -> Iterator[str]:
    for epoch in range(count):
        rows = list(ROWS)
        if seed is not None:
            random.Random(seed + epoch).shuffle(rows)
        yield from rows


def test_rows_in_one_order_have_a_period() -> None:
    found = recurrence_of([*epochs(3, None)], batch=32)
    assert (found.again, found.period) == (300, 150)


@pytest.mark.parametrize(("every", "period"), [(25, 150), (3, 0)])
def test_a_few_rows_that_are_alike_do_not_hide_it(every: int, period: int) -> None:
    alike = {f"row {i}" for i in range(0, 150, every)}
    stream = ["the same" if item in alike else item for item in epochs(4, None)]
    assert recurrence_of(stream, batch=16).period == period


@pytest.mark.parametrize("seed", range(20))
def test_rows_in_a_new_order_have_none(seed: int) -> None:
    found = recurrence_of([*epochs(3, seed)], batch=32)
    assert found.is_known
    assert found.period == 0


def test_steps_on_one_batch_are_no_order() -> None:
    starts = [start for start in range(0, 640, 32) for _ in range(30)]
    stream = [f"row {i}" for start in starts for i in range(start, start + 32)]
    found = recurrence_of(stream, batch=32)
    assert found.is_known
    assert found.period == 0


def test_a_stream_whose_rows_do_not_come_again_says_nothing() -> None:
    assert not recurrence_of(ROWS, batch=32).is_known
    assert recurrence_of([], batch=0).period == 0
