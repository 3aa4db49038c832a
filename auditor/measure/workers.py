"""A loader's workers, put to a task: what each of them makes of it, and with which random numbers.

The workers are real ones, started as the loader starts its own. Only what they are asked for is
chosen here, and instead of batches they send back hashes.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from nnaudit.errors import user_code
from nnaudit.targets import batch as batches

PATIENCE = 60.0
"""Seconds after which a worker that says nothing is given up, where the loader sets no limit."""

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_DEPTH = 5
_SMALL = 1000
_MOST_OBJECTS = 5000
_ATOMS = (Tensor, np.ndarray, str, bytes, int, float, complex, type, type(None))


@dataclass(frozen=True)
class Made:
    """What a worker made of one request.

    Attributes:
        worker: its number, from 0.
        digest: of the batch.
        items: of each part of each item of the batch, before they were put together.
        states: of each random generator within its reach afterwards, by name.
    """

    worker: int
    digest: str
    items: tuple[tuple[str, ...], ...]
    states: Mapping[str, str]


def made_by_workers(
    loader: DataLoader[Any],
    *,
    workers: int,
    asked: Sequence[Any] | None = None,
    most: int | None = None,
    seconds: float = PATIENCE,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[Made], bool]:
    """Start ``workers`` workers of ``loader`` on one epoch; return what they made, and if it ended.

    ``asked`` are the indices of each batch, which go to the workers in turn; None leaves the order
    to the loader. No more than ``most`` batches are read, for about ``seconds``; ``check`` is
    called between them.

    Raises:
        UserCodeError: a worker raised, died, or did not answer.
    """
    clone = _clone(loader, workers)
    if asked is not None:
        vars(clone)["sampler" if clone.batch_sampler is None else "batch_sampler"] = list(asked)
    found: list[Made] = []
    started = time.perf_counter()
    with user_code("reading batches in the training loader's workers"):
        # Not by iter(), which a script's taps listen to.
        iterator = clone._get_iterator()
        try:
            for made in islice(iterator, most):
                found.append(made)
                check()
                if time.perf_counter() - started > seconds:
                    return found, False
            return found, most is None or len(found) < most
        finally:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def _clone(loader: DataLoader[Any], workers: int) -> DataLoader[Any]:
    clone = copy.copy(loader)
    # The class forbids to set some of these by name.
    vars(clone).update(
        num_workers=workers,
        persistent_workers=False,
        pin_memory=False,
        timeout=loader.timeout or PATIENCE,
        collate_fn=_Fingerprint(loader.collate_fn, loader.batch_sampler is not None),
        _iterator=None,
    )
    return clone


class _Fingerprint:
    """Stands for a collate function: returns hashes instead of the batch."""

    def __init__(self, collate: Callable[[Any], Any], several: bool) -> None:
        self._collate = collate
        self._several = several

    def __call__(self, fetched: Any) -> Made:
        # First, for a collate function may change its items.
        items = tuple(_by_part(item) for item in fetched) if self._several else ()
        digest = fingerprint(self._collate(fetched))
        info = get_worker_info()
        dataset = info.dataset if info is not None else None
        return Made(
            worker=info.id if info is not None else 0,
            digest=digest,
            items=items or ((digest,),),
            states=states_of(dataset),
        )


def _by_part(item: Any) -> tuple[str, ...]:
    return tuple(fingerprint(leaf) for _, leaf in batches.leaves(item))


def fingerprint(item: Any) -> str:
    """Return a hash of everything that ``item`` holds, pictures and objects too."""
    state = hashlib.blake2b(batches.digest(item).encode(), digest_size=16)
    for _, leaf in batches.leaves(item):
        if isinstance(leaf, (Tensor, np.ndarray, str, int, float, bool)):
            continue
        if callable(content := getattr(leaf, "tobytes", None)):
            state.update(content())
            continue
        try:
            state.update(pickle.dumps(leaf))
        except Exception:  # what cannot be pickled says nothing
            continue
    return state.hexdigest()


# --- random generators ---------------------------------------------------------------------------


def states_of(dataset: Any) -> dict[str, str]:
    """Return a hash of the state of each random generator that ``dataset`` may draw from."""
    named: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy.random": np.random.get_state(),
        "random": random.getstate(),
    }
    for name, generator in generators_of(dataset):
        named[name] = _state(generator)
    return {name: hashlib.blake2b(_as_bytes(state)).hexdigest() for name, state in named.items()}


def _as_bytes(state: Any) -> bytes:
    return state if isinstance(state, bytes) else pickle.dumps(state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.getstate()


def generators_of(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, generator)`` for those in the attributes of ``dataset`` and in its modules.

    ``dataset.transform.rng`` reads like Python; a global of the user's module goes by its name.
    """
    seen: set[int] = set()
    for name, thing in reachable(dataset):
        for found, part in ((name, thing), *_globals_of(thing)):
            fresh = isinstance(part, _GENERATORS) and id(part) not in seen
            if fresh and not isinstance(part, random.SystemRandom):
                seen.add(id(part))
                yield found, part


def reachable(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, object)`` for ``dataset`` and what it holds, a few levels deep, once each.

    What is near comes first, and after :data:`_MOST_OBJECTS` it is enough: lists of samples.
    """
    seen: set[int] = set()
    todo = deque([("dataset", dataset, _DEPTH)])
    while todo and len(seen) < _MOST_OBJECTS:
        name, thing, depth = todo.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield name, thing
        if depth > 0 and not isinstance(thing, _GENERATORS):
            todo += [
                (f"{name}{step}", part, depth - 1)
                for step, part in parts(thing)
                if not isinstance(part, _ATOMS)
            ]


def parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield what ``thing`` holds, with the way to it: ``.attribute``, ``[0]``, ``['key']``."""
    if isinstance(thing, dict):
        members: Iterable[tuple[Any, Any]] = thing.items() if len(thing) <= _SMALL else ()
        return ((f"[{key!r}]", value) for key, value in members)
    if isinstance(thing, (list, tuple)):
        return ((f"[{i}]", value) for i, value in enumerate(thing[:_SMALL]))
    attributes = getattr(thing, "__dict__", None)
    pairs = attributes.items() if isinstance(attributes, dict) else ()
    return ((f".{key}", value) for key, value in pairs if not key.startswith("__"))


def _globals_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the generators that are globals of the module in which ``thing``'s class is."""
    name = getattr(thing, "__module__", None) or type(thing).__module__
    root = str(name).partition(".")[0]
    if root in {"torch", "numpy", "builtins", "random"}:
        return iter(())
    module = sys.modules.get(str(name))
    pairs = list(vars(module).items()) if module is not None else []
    return ((key, value) for key, value in pairs if isinstance(value, _GENERATORS))
