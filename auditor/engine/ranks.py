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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from nnaudit import launchers
from nnaudit.engine.job import Job
from nnaudit.engine.rank import Task
from nnaudit.errors import NnauditError, UserCodeError, raised
from nnaudit.ranks import first_step
from nnaudit.ranks.first_step import FirstStep
from nnaudit.ranks.process_group import gloo_without_gpu, only_process, waiting_for_none
from nnaudit.ranks.record import Rank, Ranks, journal, read
from nnaudit.ranks.spawned import followed
from nnaudit.ranks.sync_batch_norm import sync_batch_norm_without_gpu
from nnaudit.ranks.unsharded import unsharded
from nnaudit.ranks.watch import UNCUT_STEPS
from nnaudit.report import Part
from nnaudit.state.files import variables

QUIET = 12.0
"""Seconds in which no rank does anything, before ranks that wait for different things are held to
wait for ever."""

SHARE = 0.8
"""Of the time that a check may take, the part that the ranks may."""

LONGEST = 2_000
"""Batches up to which an epoch is run to its end, where the ranks have unequal numbers of them."""

PATIENCE = 60.0
"""Seconds that this may take, or as many as the first launch took."""

_POLL = 0.2

_UNSEEN = ("FullyShardedDataParallel", "DeepSpeedEngine")
"""What keeps weights in a form of its own."""


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
    began = time.monotonic()
    deadline = began + job.settings.check_timeout * SHARE

    def launch(*, shortens: bool, steps: int = UNCUT_STEPS, until: float = deadline) -> Ranks:
        return _launch(job, until, overlay=overlay, shortens=shortens, steps=steps)

    found = launch(shortens=True)
    minds = found.failures and found.mismatch is None and found.unused is None
    if minds and any(r.steps for r in found.ranks):
        found = launch(shortens=False)
    if found.mismatch is None and found.unused is None:
        _refuse_failed(found)
        if found.uneven and min(found.uneven.values()) <= LONGEST:
            now = time.monotonic()
            until = min(deadline, now + max(PATIENCE, now - began))
            steps = max(UNCUT_STEPS, *found.uneven.values())
            whole = launch(shortens=False, steps=steps, until=until)
            found = found.model_copy(update={"uncut": _end(whole)})
    return found


def _end(whole: Ranks) -> Literal["", "ends", "waits"]:
    """Say how the ranks came to the end of an epoch of unequal numbers of batches."""
    if whole.mismatch is not None or whole.failures:
        return "waits"
    return "" if whole.hung else "ends"


def _refuse_failed(found: Ranks) -> None:
    for rank in found.failures:
        assert rank.failed is not None
        if rank.failed.refusal:
            raise RanksError(rank.failed.message, "")
        what = (
            f"{rank.failed.message} on rank {rank.rank} of {len(found.ranks)} in "
            f"{rank.failed.doing}"
        )
        raise RanksError(raised(what, rank.failed.at), rank.failed.traceback)
    if not all(rank.steps for rank in found.ranks):
        stood = "; ".join(f"rank {rank.rank} {rank.standing}" for rank in found.ranks)
        why = found.hung or "ended without an optimizer step"
        raise RanksError(f"the {len(found.ranks)} processes {why}: {stood}", "")


def _launch(job: Job, deadline: float, **how: Any) -> Ranks:
    with tempfile.TemporaryDirectory(prefix="nnaudit-ranks-") as folder:
        return _launch_in(Path(folder), Task(job=job, folder=folder, **how), deadline)


def _launch_in(folder: Path, task: Task, deadline: float) -> Ranks:
    count = task.job.settings.nproc_per_node
    assert count is not None
    file = folder / "task.json"
    file.write_text(task.model_dump_json())
    words = [
        *("--nnodes", "1", "--nproc-per-node", str(count), "--max-restarts", "0"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
    ]
    command = [sys.executable, "-P", "-m", "torch.distributed.run", *words]
    process = subprocess.Popen(
        [*command, "-m", "nnaudit.engine.rank", str(file)],
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
    return Ranks(ranks=ranks, hung=hung, shortened=task.shortens, first_steps=first_steps)


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
    unseen = [name for name in _UNSEEN if name in summary.strategies]
    without = f"; the weights of {unseen[0]} are not compared" if unseen else ""
    return Part(
        name="processes",
        description=(
            f"{len(found.ranks)} watched for {steps} optimizer steps{backend}{how}: asked by DIST; "
            f"the other checks audit one process{without}"
        ),
        origin="user",
    )


@contextmanager
def alone(path: str, seen: Ranks | None = None) -> Iterator[None]:
    """Let the script at ``path`` find what the only process of a launch finds, in the ``with``.

    ``seen`` is what it did on several ranks: a wrapper that was ``unused`` in part waits for
    nothing, so that the other checks can be asked.

    Raises:
        RanksError: it does not run so.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    values = {**launchers.ONE, **meeting, **launchers.as_scheduled(launchers.ONE)}
    try:
        with ExitStack() as stack:
            stack.enter_context(variables(values))
            stack.enter_context(gloo_without_gpu())
            stack.enter_context(sync_batch_norm_without_gpu())
            stack.enter_context(only_process())
            stack.enter_context(unsharded())
            stack.enter_context(followed(path, 0, None))
            if seen is not None and seen.unused is not None:
                stack.enter_context(waiting_for_none())
            yield
    except UserCodeError as error:
        what = (
            f"{error}, in a launch of one process (on several it ran): all checks but those of "
            "DIST are asked of one"
        )
        raise RanksError(raised(what, error.location), error.traceback) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
