"""Where a program seeds its random numbers, and where it draws some that no seed reaches."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nnaudit.errors import is_user
from nnaudit.loop.base import Loop
from nnaudit.loop.seeders import RESTORERS, SEEDERS, is_torch_inside
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered
from nnaudit.targets.source import called, source_of, written

# --- what no seed reaches -----------------------------------------------------------------------

_ENTROPY = frozenset(
    {
        "SystemRandom",
        "urandom",
        "uuid1",
        "uuid4",
        "token_bytes",
        "token_hex",
        "randbits",
        "getrandom",
    }
)
_SEEDABLE = frozenset(
    {"default_rng", "RandomState", "Random", "seed", "manual_seed", "SeedSequence"}
)
_CLOCKS = frozenset(
    {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "now", "utcnow", "getpid"}
)


@dataclass(frozen=True)
class Unseeded:
    """A line of the user's that makes random numbers which a seed does not determine."""

    location: Location
    text: str
    clock: bool = False


def unseeded_lines(files: Iterable[Path]) -> tuple[Unseeded, ...]:
    """Find, in the syntax trees of ``files``, generators that are seeded by chance or by the clock.

    What is found may be harmless or never run: it is a hint where to look, not a proof.
    """
    found: list[Unseeded] = []
    for file in files:
        source = source_of(file)
        for node in source.nodes:
            if isinstance(node, (ast.Assign, ast.Call)) and (kind := _kind_of(node)):
                place = Location(file=str(file), line=node.lineno)
                text = source.lines[node.lineno - 1].strip()
                found.append(Unseeded(place, text, clock=kind == "clock"))
    return tuple(found)


def _kind_of(node: ast.Assign | ast.Call) -> str:
    if isinstance(node, ast.Assign):
        named = any("seed" in written(target).lower() for target in node.targets)
        return "clock" if named and _reads_clock(node.value) else ""
    name = called(node)
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    if name in _ENTROPY:
        return "entropy"
    if name not in _SEEDABLE and "seed" not in name.lower():
        return ""
    if any(_reads_clock(argument) for argument in arguments):
        return "clock"
    bare = not arguments or all(
        isinstance(argument, ast.Constant) and argument.value is None for argument in arguments
    )
    return "entropy" if bare and name in _SEEDABLE else ""


def _reads_clock(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) and called(each) in _CLOCKS for each in ast.walk(node))


def source_files(loop: Loop) -> tuple[Path, ...]:
    """Return the user's files: the target's, the parts', and modules beside them."""
    path = loop.info().path
    places = [loop.locate(thing) for thing in ("model", "train_loader", loop.model)]
    dataset = getattr(loop.train_loader, "dataset", None)
    places += [loop.locate(dataset)] if dataset is not None else []
    files = {Path(place.file) for place in places if place is not None}
    files |= {Path(path)} if path else set()
    files = {file.resolve() for file in files if file.suffix == ".py"}
    folders = {file.parent for file in files}
    beside = {
        Path(name).resolve()
        for module in list(sys.modules.values())
        if (name := getattr(module, "__file__", None)) and is_user(name)
    }
    return tuple(sorted(files | {file for file in beside if file.parent in folders and path}))


# --- who seeds ----------------------------------------------------------------------------------

_ENTRY_POINTS = frozenset({"<module>", "main", "run", "cli", "launch"})
_SEEDING_HELPER = re.compile(
    r"_?(\w+_)?seeds?(_(everything|all|rngs?|random|torch|global))?$"
    r"|(set|fix|init|setup)?seed(everything|all)?$",
    re.IGNORECASE,
)
"""Names of functions whose business it is to seed: ``set_seed``, ``seedEverything``."""


@dataclass(frozen=True)
class Seeding:
    """A call by which the user's code seeded a global generator.

    Attributes:
        function: ``torch.manual_seed``.
        location: the user's line.
        during: ``building``, ``reading`` a batch, ``stepping`` or ``between epochs``.
        within: the user's functions on the stack, innermost first.
        number: what it was seeded with.
    """

    function: str
    location: Location
    during: str
    within: tuple[str, ...]
    number: str = ""

    @property
    def is_the_run_s_own(self) -> bool:
        """Whether the program seeds itself as programs do: once, from the top."""
        return self.during == "building" and all(
            name in _ENTRY_POINTS or _SEEDING_HELPER.match(name) for name in self.within
        )


@dataclass
class SeedWatch:
    """The seedings seen so far; ``phase`` is what is being done.

    Nothing is noted while ``loop``, where it is known, is on its way to its training loop again:
    what a program does there it did when it was built.
    """

    phase: str = "building"
    loop: Loop | None = None
    seen: list[Seeding] = field(default_factory=list)


@contextmanager
def watching_seeds() -> Iterator[SeedWatch]:
    """Note down who seeds the global generators for the time of a ``with``.

    Seeding that the user's code undoes afterwards (``fork_rng``) does no harm and is forgotten.
    """
    watch = SeedWatch()
    with ExitStack() as stack:
        for owner, name in SEEDERS:
            original = getattr(owner, name)
            setattr(owner, name, _watched(original, f"{_short(owner)}.{name}", watch))
            stack.callback(setattr, owner, name, original)
        for owner, name in RESTORERS:
            original = getattr(owner, name)
            setattr(owner, name, _forgiving(original, _short(owner), watch))
            stack.callback(setattr, owner, name, original)
        yield watch


@contextmanager
def without_seeding() -> Iterator[None]:
    """Leave the global generators as they are, whoever seeds them, for the time of a ``with``."""
    with ExitStack() as stack:
        for owner, name in SEEDERS:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, lambda *_, **__: torch.default_generator)
        yield


def _short(owner: Any) -> str:
    name = str(owner.__name__)
    return "torch" if name.startswith("torch") else name


def _watched(original: Callable[..., Any], name: str, watch: SeedWatch) -> Callable[..., Any]:
    @registered(Role.SEEDS)
    def seed(*args: Any, **kwargs: Any) -> Any:
        # A library may stand in between, ``seed_everything``; where torch seeds the accelerators,
        # where nnaudit itself seeds, or runs once more what has seeded before, there are none. A
        # known loop says itself when it is past that.
        by_torch = is_torch_inside(callstack.caller(Role.SEEDS))
        repeated = watch.loop is not None
        callers = [] if by_torch else callstack.own_call(Role.SEEDS, repeated=repeated)[::-1]
        if callers and not (watch.loop is not None and watch.loop.starting):
            within = tuple(frame.f_code.co_name for frame in callers)
            number, place = repr((args, kwargs)), callstack.location(callers[0])
            watch.seen.append(Seeding(name, place, watch.phase, within, number))
        return original(*args, **kwargs)

    return seed


def _forgiving(original: Callable[..., Any], family: str, watch: SeedWatch) -> Callable[..., Any]:
    def restore(*args: Any, **kwargs: Any) -> Any:
        if callstack.own_call(Role.SEEDS, repeated=watch.loop is not None):
            watch.seen[:] = [
                each
                for each in watch.seen
                if each.during != watch.phase or not each.function.startswith(f"{family}.")
            ]
        return original(*args, **kwargs)

    return restore
