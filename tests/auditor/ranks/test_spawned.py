from __future__ import annotations

import linecache
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import multiprocessing

from nnaudit.errors import TargetError
from nnaudit.ranks import spawned

TRAINING = "def main(rank, *args):\n    init_process_group\n    seen.append((rank, *args))\n"
seen: list[tuple[Any, ...]] = []


@pytest.fixture
def main() -> Iterator[Callable[..., None]]:
    """A function of a script that begins a process group; the name of one says so."""
    name = "/home/user/spawns.py"
    linecache.cache[name] = (len(TRAINING), None, TRAINING.splitlines(keepends=True), name)
    found: dict[str, Any] = {"seen": seen, "init_process_group": None}
    exec(compile(TRAINING, name, "exec"), found)
    seen.clear()
    yield found["main"]
    del linecache.cache[name]


def test_this_process_is_the_one_that_would_be_started(main: Callable[..., None]) -> None:
    with spawned.followed("train.py", 1, 2):
        multiprocessing.spawn(main, args=(2, "x"), nprocs=2)
        assert multiprocessing.start_processes(main, (2,), 2, join=False).join()
    assert seen == [(1, 2, "x"), (1, 2)]


def test_another_number_of_processes_is_refused_with_the_command(main: Callable[..., None]) -> None:
    with (
        spawned.followed("train.py", 0, 1),
        pytest.raises(TargetError, match="--nproc-per-node 4 train"),
    ):
        multiprocessing.spawn(main, nprocs=4)
    with spawned.followed("train.py", 0, 1), pytest.raises(TargetError, match="none here"):
        multiprocessing.spawn(main, nprocs=0)
    assert not seen


def test_any_number_is_followed_where_it_is_asked_for(main: Callable[..., None]) -> None:
    with spawned.followed("train.py", 0, None):
        multiprocessing.spawn(main, nprocs=4)
    assert seen == [(0,)]
    assert multiprocessing.spawn.__module__ == "torch.multiprocessing.spawn"


def test_a_script_that_is_started_as_another_rank_is_refused() -> None:
    environment = {**os.environ, "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    with spawned.followed("train.py", 0, 1):
        subprocess.run([sys.executable, "-c", ""], check=True)
        with pytest.raises(TargetError, match="--nproc-per-node 4 train"):
            subprocess.Popen([sys.executable, "train.py"], env=environment)
