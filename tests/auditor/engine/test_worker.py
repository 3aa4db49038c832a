from __future__ import annotations

from nnaudit.engine import worker


def test_the_way_to_the_training_loop_counts_up_to_half_of_the_budget() -> None:
    assert worker.spent(3.0, 20.0) == 3.0
    assert worker.spent(30.0, 20.0) == 10.0
    assert worker.spent(30.0, None) == 30.0
