"""Relaunching a script under another seed, although it seeds itself.

A script that begins with ``torch.manual_seed(args.seed)`` would make every relaunch the same run.
So for a relaunch the seeds that a script sets are shifted by one constant, as if its author had
chosen another number. Two things tell the run's own seed from one that is reset inside, which must
stay visible to the checks: everything seeded before the first network, loader or optimizer is made
is the run's; and so is later seeding by a library (``seed_everything`` of a framework) or with a
value that is computed. A literal number in the user's own code after that point stays as it is.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from nnaudit.errors import is_user
from nnaudit.loop.seeders import SEEDERS, is_torch_inside
from nnaudit.state.process import keep_numpy_rng, keep_python_rng, keep_torch_rng
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered
from nnaudit.targets.source import source_of


@contextmanager
def quiet_imports(folder: Path) -> Iterator[None]:
    """Keep libraries that are being imported from drawing random numbers.

    Some do, once: a second execution of the script would find other random numbers than the first.
    Modules in ``folder`` are the user's own, and may well seed on purpose.
    """
    real = builtins.__import__
    busy = False

    def import_(
        name: str, globals_: Any = None, locals_: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        nonlocal busy
        top = name.partition(".")[0]
        ours = busy or level or name in sys.modules or _is_beside(folder, top)
        if ours:
            return real(name, globals_, locals_, fromlist, level)
        busy = True
        undos = [keep_python_rng(), keep_numpy_rng(), keep_torch_rng()]
        try:
            return real(name, globals_, locals_, fromlist, level)
        finally:
            for undo in undos:
                undo()
            busy = False

    builtins.__import__ = import_  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = real


def _is_beside(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").exists() or (folder / name).is_dir()


def shifting(
    shift: int, in_preamble: Callable[[], bool], in_control: Callable[[], bool]
) -> ExitStack:
    """Return a context in which seeds are shifted by ``shift``; zero changes nothing.

    Only the script's: ``in_control`` says whether it is the script that is running, and
    ``in_preamble`` whether it has made nothing yet.
    """
    with ExitStack() as stack:
        for owner, name in SEEDERS if shift else ():
            real = getattr(owner, name)
            stack.callback(setattr, owner, name, real)
            setattr(owner, name, _shifted(real, shift, in_preamble, in_control))
        return stack.pop_all()


def _shifted(
    real: Callable[..., Any],
    shift: int,
    in_preamble: Callable[[], bool],
    in_control: Callable[[], bool],
) -> Callable[..., Any]:
    @registered(Role.SEEDS)
    def seed(*args: Any, **kwargs: Any) -> Any:
        caller = callstack.caller(Role.SEEDS)
        by_torch = is_torch_inside(caller)
        if in_control() and not by_torch and (in_preamble() or not _is_literal(caller)):
            args = tuple(_plus(value, shift) for value in args[:1]) + args[1:]
            kwargs = {name: _plus(value, shift) for name, value in kwargs.items()}
        return real(*args, **kwargs)

    return seed


def _plus(value: Any, shift: int) -> Any:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return (int(value) + shift) % 2**32
    return value


def _is_literal(caller: FrameType | None) -> bool:
    """Whether the call is the user's own and its seed is written as a number."""
    if caller is None or not is_user(caller.f_code.co_filename):
        return False
    calls = source_of(caller.f_code.co_filename).calls_at(caller.f_lineno)
    return any("seed" in call.name and call.takes_a_literal_number for call in calls)
