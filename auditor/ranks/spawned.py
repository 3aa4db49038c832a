"""Scripts that start their processes themselves: by ``torch.multiprocessing``, or as scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

from torch import multiprocessing

from nnaudit.errors import TargetError, is_library, is_user
from nnaudit.loop.trace import patched
from nnaudit.targets.callstack import Role, registered
from nnaudit.targets.source import source_of

_MODULE = "torch.multiprocessing.spawn"
"""By this name torch has a function, too: the module is found among those that are loaded."""

_TORCH: Any = multiprocessing

_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Where it is set, processes meet where the launcher says, and not where the script does."""

_PLACES = ("RANK", "LOCAL_RANK")

_BEGINS = "init_process_group"


class _Joined:
    """What ``spawn(..., join=False)`` returns, of processes that have ended."""

    processes: tuple[Any, ...] = ()

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Return at once."""
        return True


@contextmanager
def followed(path: str, rank: int, world: int | None) -> Iterator[None]:
    """Let this process be the one that the script at ``path`` would start as ``rank``.

    It calls the function that every process would run. ``world`` is how many there are to be, None
    for any number. Processes that do not train together, but prepare data, say, are left alone.
    Scripts that are started as other ranks, as Lightning does without a launcher, are refused.

    Raises:
        TargetError: within the ``with``, where the script starts another number of processes.
    """

    real = _TORCH.start_processes

    @registered(Role.STANDS_IN)
    def start(
        fn: Callable[..., Any], args: Any = (), nprocs: int = 1, *rest: Any, **named: Any
    ) -> Any:
        if not _train_together(fn):
            return real(fn, args, nprocs, *rest, **named)
        if nprocs != (world or nprocs):
            raise TargetError(_refusal(path, nprocs))
        os.environ.pop(_AGENT, None)
        fn(rank, *args)
        return _Joined()

    owners: list[Any] = [_TORCH, sys.modules[_MODULE]]
    with ExitStack() as stack:
        for owner in owners:
            for name in ("spawn", "start_processes"):
                stack.enter_context(patched(owner, name, lambda real: start))
        stack.enter_context(patched(subprocess.Popen, "__init__", partial(_refusing, path)))
        yield


def _refusing(path: str, real: Callable[..., None]) -> Callable[..., None]:
    """Return what begins a process, other than one that is another rank."""

    @wraps(real)
    @registered(Role.STANDS_IN)
    def begin(process: Any, *args: Any, **named: Any) -> None:
        told = named.get("env") or {}
        if any(name in told and told[name] != os.environ.get(name) for name in _PLACES):
            raise TargetError(_refusal(path, int(told.get("WORLD_SIZE", 2))))
        real(process, *args, **named)

    return begin


def _train_together(fn: Callable[..., Any]) -> bool:
    """Whether processes that run ``fn`` form a group: a framework's do, and a script's."""
    code = getattr(fn, "__code__", None)
    if code is None or is_library(code.co_filename):
        return True
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    own = [file for file in (code.co_filename, *files) if file and is_user(file)]
    return any(_BEGINS in source_of(file).text for file in own)


def _refusal(path: str, count: int) -> str:
    if count < 1:
        return (
            f"{path} starts {count} processes by torch.multiprocessing: one for each GPU, mostly, "
            "and there is none here"
        )
    return (
        f"{path} starts {count} processes itself: run `nnaudit --nproc-per-node {count} {path}`, "
        "which follows each of them"
    )
