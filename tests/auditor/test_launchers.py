from __future__ import annotations

import os

import pytest

from nnaudit import launchers
from nnaudit.launchers import Launch

STARTED: list[tuple[dict[str, str], Launch | None]] = [
    ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Launch(1, 4, 2)),
    ({"RANK": "0", "WORLD_SIZE": "2"}, Launch(0, 2, 2)),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    (
        {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
        Launch(3, 8, 4),
    ),
    # A batch script, before it calls srun.
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
    (
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        Launch(1, 2, 2),
    ),
]


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in launchers.names():
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("values", "launch"), STARTED)
def test_the_environment_says_what_started_a_process(
    values: dict[str, str], launch: Launch | None, unlaunched: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        unlaunched.setenv(name, value)
    assert launchers.launched() == launch


def test_a_scheduler_is_followed_where_there_is_one(unlaunched: pytest.MonkeyPatch) -> None:
    values = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    assert launchers.as_scheduled(values) == {}
    unlaunched.setenv("SLURM_PROCID", "0")
    unlaunched.setenv("SLURM_NTASKS", "8")
    assert launchers.as_scheduled(values) == {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


def test_a_run_of_several_is_forgotten_for_a_while(unlaunched: pytest.MonkeyPatch) -> None:
    unlaunched.setenv("RANK", "1")
    unlaunched.setenv("TORCHELASTIC_RUN_ID", "x")
    unlaunched.setenv("SLURM_NTASKS", "8")
    with launchers.forgotten():
        assert not {"RANK", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        assert os.environ["SLURM_NTASKS"] == "1"
    assert (os.environ["RANK"], os.environ["SLURM_NTASKS"]) == ("1", "8")
