from __future__ import annotations

import pytest

from nnaudit.engine import worker

RENDEZVOUS = (
    "Error initializing torch.distributed using env:// rendezvous: environment variable RANK "
    "expected, but not set"
)


@pytest.mark.parametrize("error", [ValueError(RENDEZVOUS), KeyError("LOCAL_RANK")])
def test_a_script_without_its_launcher_is_told_the_command(error: Exception) -> None:
    assert "nnaudit --nproc-per-node 2 train.py" in worker._unlaunched(error, "train.py")


@pytest.mark.parametrize("error", [ValueError("RANK"), KeyError("PATH"), RuntimeError(RENDEZVOUS)])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    assert worker._unlaunched(error, "train.py") == ""


def test_the_way_to_the_training_loop_counts_up_to_half_of_the_budget() -> None:
    assert worker.spent(3.0, 20.0) == 3.0
    assert worker.spent(30.0, 20.0) == 10.0
    assert worker.spent(30.0, None) == 30.0
