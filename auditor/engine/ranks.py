"""Starting a script on several ranks, by torch's elastic launcher, and watching that it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nnaudit.engine.job import Job
from nnaudit.engine.rank import Task
from nnaudit.errors import NnauditError, UserCodeError
from nnaudit.ranks import first_step
from nnaudit.ranks.collectives import gloo_without_gpu
from nnaudit.ranks.first_step import FirstStep
from nnaudit.ranks.record import Rank, Ranks, journal, read
from nnaudit.ranks.unsharded import unsharded
from nnaudit.report import Part
from nnaudit.state.files import variables

QUIET = 12.0
"""Seconds in which no rank does anything, before ranks that wait for different things are held to
wait for ever."""

SHARE = 0.8
"""Of the time that a check may take, the part that the ranks may."""

_POLL = 0.2


class RanksError(NnauditError):
    """The script does not run on several ranks."""

    exit_code = 4

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.add_note(detail)


def observed(job: Job, *, overlay: bool) -> Ranks:
    """Run the script of ``job`` on its ranks for the first steps, and return what they did.

    Where it minds that its epochs are cut short, it is run again without.

    Raises:
        RanksError: it raised on a rank, and not because another did something else.
    """
    deadline = time.monotonic() + job.settings.check_timeout * SHARE
    found = _launch(job, deadline, overlay=overlay, shortens=True)
    if found.failures and found.mismatch is None and any(r.steps for r in found.ranks):
        found = _launch(job, deadline, overlay=overlay, shortens=False)
    if found.mismatch is None:
        _refuse_failed(found)
    return found


def _refuse_failed(found: Ranks) -> None:
    for rank in found.failures:
        assert rank.failed is not None
        at = rank.failed.at
        where = f"{at.file}:{at.line}: " if at else ""
        raise RanksError(
            f"{where}your code raised {rank.failed.message} on rank {rank.rank} of "
            f"{len(found.ranks)} in {rank.failed.doing}",
            rank.failed.traceback,
        )
    if not all(rank.steps for rank in found.ranks):
        stood = "; ".join(f"rank {rank.rank} {rank.standing}" for rank in found.ranks)
        why = found.hung or "ended without an optimizer step"
        raise RanksError(f"the {len(found.ranks)} processes {why}: {stood}", "")


def _launch(job: Job, deadline: float, *, overlay: bool, shortens: bool) -> Ranks:
    with tempfile.TemporaryDirectory(prefix="nnaudit-ranks-") as folder:
        return _launch_in(Path(folder), job, deadline, overlay=overlay, shortens=shortens)


def _launch_in(folder: Path, job: Job, deadline: float, *, overlay: bool, shortens: bool) -> Ranks:
    count = job.settings.nproc_per_node
    assert count is not None
    task = folder / "task.json"
    task.write_text(
        Task(job=job, folder=str(folder), shortens=shortens, overlay=overlay).model_dump_json()
    )
    words = [
        *("--nnodes", "1", "--nproc-per-node", str(count), "--max-restarts", "0"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
    ]
    command = [sys.executable, "-P", "-m", "torch.distributed.run", *words]
    process = subprocess.Popen(
        [*command, "-m", "nnaudit.engine.rank", str(task)],
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    try:
        hung = _wait(process, folder, count, deadline)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first_steps: tuple[FirstStep, ...] = ()
    with suppress(Exception):  # pickled by the user's code, and not for this process
        first_steps = first_step.load(folder, count)
    ranks = _read(folder, count)
    return Ranks(ranks=ranks, hung=hung, shortened=shortens, first_steps=first_steps)


def _read(folder: Path, count: int) -> tuple[Rank, ...]:
    return tuple(read(folder, rank) for rank in range(count))


def _wait(process: subprocess.Popen[bytes], folder: Path, count: int, deadline: float) -> str:
    """Wait for the ranks to end; return why they have to be ended, empty where they need not."""
    sizes, since, looked = [0] * count, time.monotonic(), False
    while process.poll() is None:
        time.sleep(_POLL)
        if time.monotonic() > deadline:
            return "did not come to the end in time"
        files = [journal(folder, rank) for rank in range(count)]
        now = [file.stat().st_size if file.exists() else 0 for file in files]
        if now != sizes:
            sizes, since, looked = now, time.monotonic(), False
            continue
        if time.monotonic() - since > QUIET and not looked:
            looked = True
            if Ranks(ranks=_read(folder, count), hung="wait").mismatch is not None:
                return "wait for one another"
    return ""


def part(found: Ranks) -> Part:
    """Say what was watched, for the report's description of the target."""
    summary = found.ranks[0].summary
    steps = min(len(rank.steps) for rank in found.ranks)
    backend = f" ({summary.backend})" if summary.backend else ""
    how = f", {' and '.join(summary.strategies)}" if summary.strategies else ""
    return Part(
        name="processes",
        description=(
            f"{len(found.ranks)} watched for {steps} optimizer steps{backend}{how}: asked by DIST; "
            "the other checks audit one process"
        ),
        origin="user",
    )


@contextmanager
def alone() -> Iterator[None]:
    """Let the script find what the only process of a launch finds, for the time of a ``with``.

    Raises:
        RanksError: it does not run so.
    """
    values = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    try:
        with variables(values), gloo_without_gpu(), unsharded():
            yield
    except UserCodeError as error:
        at = f"{error.location.file}:{error.location.line}: " if error.location else ""
        raise RanksError(
            f"{at}your code raised {error}, in a launch of one process (on several it ran): all "
            "checks but those of DIST are asked of one",
            error.traceback,
        ) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
