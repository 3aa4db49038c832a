"""What a script restores when it is started again beside the checkpoint that it has written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import patched
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.source import source_of

COUNTERS = frozenset(
    {"epoch", "epochs", "start_epoch", "next_epoch", "step", "global_step", "iteration", "iter"}
)
"""Keys of a checkpoint by which a run goes on counting."""


@dataclass(frozen=True)
class ResumedRun:
    """A script that resumed by itself.

    Attributes:
        location: the line that wrote the checkpoint.
        lost: ``the optimizer (Adam)``, ``the scheduler (StepLR)``: what began anew.
    """

    location: Location | None
    lost: tuple[str, ...]


@dataclass
class _Checkpoint:
    """What was written, and what it was of.

    Attributes:
        before: what the file held before; None where there was none.
    """

    file: Path
    before: bytes | None
    location: Location | None
    weights: dict[str, Tensor]
    stateful: list[bool] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


class ResumedRuns(Probe[ResumedRun | None]):
    """Ends an epoch, and starts the script anew where it has written a checkpoint by then."""

    def measure(self, audit: Audit) -> ResumedRun | None:
        """Return what the new run restored; None where it did not go on from the checkpoint.

        It went on where its weights are, bit for bit, those that were written, and the checkpoint
        holds a count of epochs or steps: weights alone may be a start on purpose.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        if loop.lacks(Needs.FRESH_RUN) or not any(map(_saves_and_loads, source_files(loop))):
            return None
        audit.clock.check()
        with _listening(loop) as written:
            try:
                batch = next(iter(loop.batches()))
                loop.step(batch)
                if loop.next_epoch(batch) is None or not written:
                    return None
                audit.clock.check()
                checkpoint = written[-1]
                with loop.relaunched(audit.seed + 1, keeps_files=True) as other:
                    return _restored(checkpoint, other)
            except UserCodeError:
                return None
            finally:
                for checkpoint in reversed(written):
                    _put_back(checkpoint)


def _saves_and_loads(file: Path) -> bool:
    names = {call.name for call in source_of(file).calls if call.receiver == "torch"}
    return {"save", "load"} <= names


@contextmanager
def _listening(loop: Loop) -> Iterator[list[_Checkpoint]]:
    """Collect the checkpoints with a count that are written to files."""
    written: list[_Checkpoint] = []

    def made(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            path = Path(file).absolute() if isinstance(file, (str, os.PathLike)) else None
            if path is None or not isinstance(content, dict) or not _counts(content):
                return real(content, file, *args, **kwargs)
            before = path.read_bytes() if path.is_file() else None
            result = real(content, file, *args, **kwargs)
            written.append(_noted(loop, path, before))
            return result

        return save

    with patched(torch, "save", made):
        yield written


def _counts(content: dict[Any, Any]) -> bool:
    return any(key in COUNTERS and isinstance(value, int) for key, value in content.items())


def _put_back(checkpoint: _Checkpoint) -> None:
    with suppress(OSError):
        if checkpoint.before is None:
            checkpoint.file.unlink()
        else:
            checkpoint.file.write_bytes(checkpoint.before)


def _noted(loop: Loop, file: Path, before: bytes | None) -> _Checkpoint:
    return _Checkpoint(
        file,
        before,
        callstack.user_line(),
        {name: p.detach().clone() for name, p in loop.model.named_parameters()},
        [bool(optimizer.state) for optimizer in loop.optimizers],
        [_steps(scheduler) for scheduler in loop.schedulers],
    )


def _restored(checkpoint: _Checkpoint, other: Loop) -> ResumedRun | None:
    theirs = dict(other.model.named_parameters())
    resumed = theirs.keys() == checkpoint.weights.keys() and all(
        torch.equal(value, theirs[name].detach()) for name, value in checkpoint.weights.items()
    )
    if not resumed or len(other.optimizers) != len(checkpoint.stateful):
        return None
    lost = [
        f"the optimizer ({type(optimizer).__name__})"
        for optimizer, had in zip(other.optimizers, checkpoint.stateful, strict=True)
        if had and not optimizer.state
    ]
    if len(other.schedulers) == len(checkpoint.counts):
        lost += [
            f"the scheduler ({type(scheduler).__name__})"
            for scheduler, count in zip(other.schedulers, checkpoint.counts, strict=True)
            if count > 0 and _steps(scheduler) == 0
        ]
    return ResumedRun(checkpoint.location, tuple(lost))


def _steps(scheduler: Any) -> int:
    """Return how often it was stepped."""
    count = getattr(scheduler, "last_epoch", 0)
    return count if isinstance(count, int) else 0
