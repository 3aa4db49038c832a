from __future__ import annotations

import os

import pytest

from nnaudit.app import launch
from nnaudit.errors import UsageError


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_first_process_audits_as_many_and_forgets_its_launcher(
    launched: pytest.MonkeyPatch,
) -> None:
    assert launch.processes() == 2
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(os.environ)


def test_the_others_end_at_once(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        launch.processes()
    assert ended.value.code == 0


def test_several_machines_are_refused_with_what_can_be_done(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="--nproc-per-node 1"):
        launch.processes()


@pytest.mark.parametrize("world", ["", "1", "many"])
def test_one_process_is_no_launch(world: str, launched: pytest.MonkeyPatch) -> None:
    launched.setenv("WORLD_SIZE", world)
    assert launch.processes() is None
