"""Run all tests, each folder of them in a process of its own.

Programs under audit patch, seed and warn, and what one leaves behind in a process must not be able
to fail another family's tests. The processes are forks of this one, which has imported what takes
long: some eight seconds of processor time for each of thirty folders.

    bash scripts/test                  everything, as many folders at once as there are cores
    bash scripts/test -x -k name       the same, with words for pytest
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

import pytest

HERE = Path(__file__).resolve().parent

LONGEST = (
    "zoo", "auditor/loop", "checks/fit", "checks/step", "checks/data", "auditor/processes",
    "auditor/app", "auditor/engine", "checks", "auditor", "auditor/callbacks",
)  # fmt: skip
"""The folders to begin with, so that the last to end is a short one."""

SLOW_TO_IMPORT = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "sklearn.datasets",
    "sklearn.model_selection",
)
"""Nothing of nnaudit itself: pytest rewrites only what was not imported before, and warns."""


def parts() -> list[Path]:
    """Return the folders that hold tests, in the order in which to start them."""
    longest = [HERE / name for name in LONGEST]
    found = {file.parent for file in HERE.rglob("test_*.py") if HERE / "assets" not in file.parents}
    return [*longest, *sorted(found - set(longest))]


def _run(part: Path, said: IO[bytes], words: Sequence[str]) -> NoReturn:
    """Test ``part`` and end this process with pytest's status; what is printed goes to ``said``."""
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    sys.path[0] = str(HERE.parent)  # as under python -m pytest
    status: int = pytest.ExitCode.INTERNAL_ERROR
    with suppress(SystemExit):  # what nobody caught is told by the status
        deeper = ("--ignore-glob", f"{part}/*/*")
        status = pytest.main(["-q", *words, *deeper, str(part.relative_to(HERE.parent))])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


Forked = tuple[Path, IO[bytes]]
"""A part to test, and where to print."""


def _all_in_forks(failed: list[str]) -> Forked | None:
    """Fork for every part and print what each said; return in each fork what it is to do."""
    waiting, running = parts(), dict[int, tuple[Path, IO[bytes], float]]()
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            forked = waiting.pop(0), tempfile.TemporaryFile()  # noqa: SIM115 - closed when read
            began = time.monotonic()
            if (process := os.fork()) == 0:
                return forked
            running[process] = (*forked, began)
        process, ended, used = os.wait4(-1, 0)
        part, said, began = running.pop(process)
        with said:
            said.seek(0)
            text = said.read().decode(errors="replace")
        name = str(part.relative_to(HERE.parent))
        cost = f"{time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of a core"
        print(f"== {name}: {cost}", text, sep="\n", flush=True)
        # No test of a folder may have been chosen by the words.
        passed = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if os.waitstatus_to_exitcode(ended) not in passed:
            failed.append(name)
    return None


def main(words: Sequence[str]) -> int:
    """Run every part with ``words`` for pytest, and return 1 if a test failed."""
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lose the other threads"
    # Nothing is frozen, though a collection then copies the pages of this process: nnaudit leaves a
    # process that has frozen objects as it is, and would go through all that is imported later.

    failed: list[str] = []
    if (forked := _all_in_forks(failed)) is not None:
        _run(*forked, words)  # called from here, as nnaudit counts the loops that it is called in
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
