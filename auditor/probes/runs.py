"""The first steps of the same training started three times: twice under one seed, once another."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler

from nnaudit.context import Audit, Probe
from nnaudit.errors import TargetError, UserCodeError, is_user
from nnaudit.loop.base import Loop, Needs, seed_everything
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.measure.batch_rows import row_items
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.seeding import (
    Seeding,
    SeedWatch,
    Unseeded,
    source_files,
    unseeded_lines,
    watching_seeds,
)
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.targets.set_order import has_sets, turned_sets, unsorted

STEPS = 4
ITEMS = 4
_KEPT_BYTES = 256 * 2**20
_STATEFUL = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    Dataset,
    Sampler,
    DataLoader,
)


@dataclass(frozen=True)
class Weights:
    """The parameters and buffers of a model at one moment.

    Attributes:
        digests: a hash of each, by name.
        varying: the parameters that do not hold one number throughout: the random ones are here.
        values: copies on the CPU; empty where they would be too large.
    """

    digests: dict[str, str]
    varying: frozenset[str]
    values: dict[str, Tensor]

    @classmethod
    def of(cls, loop: Loop) -> Weights:
        """Look at all models of ``loop``."""
        named: dict[str, Tensor] = {}
        parameters: set[str] = set()
        for i, model in enumerate(loop.models):
            prefix = "" if i == 0 else f"models[{i}]."
            own = {f"{prefix}{name}": p for name, p in model.named_parameters() if not is_lazy(p)}
            parameters |= own.keys()
            named |= own
            named |= {f"{prefix}{n}": b for n, b in model.named_buffers() if not is_lazy(b)}
        small = sum(tensor.nbytes for tensor in named.values()) <= _KEPT_BYTES
        return cls(
            digests={name: batches.digest(tensor.detach()) for name, tensor in named.items()},
            varying=frozenset(name for name in parameters if _varies(named[name])),
            values={n: t.detach().cpu().clone() for n, t in named.items()} if small else {},
        )

    def differing(self, other: Weights) -> tuple[str, ...]:
        """Return the names of which the values differ, in the order of the model."""
        theirs = other.digests
        own = tuple(name for name, digest in self.digests.items() if theirs.get(name) != digest)
        return own + tuple(name for name in theirs if name not in self.digests)

    def distance(self, other: Weights) -> float:
        """Return the largest difference relative to its tensor's largest value; NaN if unknown."""
        found = [0.0]
        for name in self.differing(other):
            a, b = self.values.get(name), other.values.get(name)
            if a is None or b is None or a.shape != b.shape:
                return float("nan")
            if a.is_floating_point() and a.numel():
                scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30)
                found.append(float((a.double() - b.double()).abs().max()) / scale)
        return max(found)


def _varies(parameter: Tensor) -> bool:
    values = parameter.detach()
    if values.numel() < 2 or values.layout is not torch.strided:
        return False
    values = torch.view_as_real(values) if values.is_complex() else values
    low, high = torch.aminmax(values)
    # Weights that have become NaN are alike whatever they were drawn from.
    return bool(torch.isfinite(low) & torch.isfinite(high) & (low != high))


@dataclass(frozen=True)
class Run:
    """What a run looked like from its start.

    Attributes:
        initial, final: the weights before the first and after the last step.
        batches, inputs, targets: a hash of each batch and of its two parts as they are fed.
        rows: how often each row occurs, by its hash.
        indices: which items the loader's index named for these batches; None without an index.
        items: some items, looked up twice; None where that is impossible.
        losses: the loss of each step, up to one that raised.
        seedings: where the user's code seeded a global generator.
    """

    initial: Weights
    final: Weights
    batches: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    rows: Counter[str]
    indices: tuple[str, ...] | None
    items: tuple[str, str] | None
    losses: tuple[float, ...]
    seedings: tuple[Seeding, ...] = ()


@dataclass(frozen=True)
class Runs:
    """What :class:`SeededRuns` saw.

    Attributes:
        first, again: two runs under the same seed.
        other: a run under another seed; None where runs cannot be started anew.
        replayed: the two are the same loaded program, replayed: building it was not repeated.
        unseeded: lines of the source by which random numbers may escape the seed.
        seed: the seed of the two.
        turned: a third under that seed, with sets of strings in another order; None where the
            source makes no sets, or the two differ anyway.
        by_sets: the lines that went through such sets.
    """

    first: Run
    again: Run
    other: Run | None
    replayed: bool
    unseeded: tuple[Unseeded, ...]
    seed: int
    turned: Run | None = None
    by_sets: tuple[Location, ...] = ()


class SeededRuns(Probe[Runs]):
    """Three short runs from building the model, :data:`STEPS` batches long; the last only reads."""

    def measure(self, audit: Audit) -> Runs:
        """Start the runs one after the other.

        Raises:
            UserCodeError: the user's code raised while it was being built or read from.
            OutOfBudgetError: the time is used up.
        """
        loop, seed = audit.loop, audit.seed
        files = source_files(loop)
        unseeded = unseeded_lines(files)
        if loop.lacks(Needs.FRESH_RUN):
            runs = [_replay(audit, seed) for _ in range(2)]
            return Runs(runs[0], runs[1], None, True, unseeded, seed)
        first = _relaunch(audit, seed)
        if any(each.clock for each in unseeded):
            # A seed taken from the clock in whole seconds is the same twice within one.
            time.sleep(1.1)
        again = _relaunch(audit, seed)
        other = _relaunch(audit, seed + 1, steps=False)
        turned, lines = None, tuple[Location, ...]()
        if sys.flags.hash_randomization and first.batches == again.batches and has_sets(files):
            turned, lines = _relaunch_turned(audit, seed)
        return Runs(first, again, other, False, unseeded, seed, turned, lines)


def _relaunch_turned(audit: Audit, seed: int) -> tuple[Run | None, tuple[Location, ...]]:
    """Start the run as another process would have it; None where no set's order is of account."""
    with turned_sets() as lines:
        try:
            turned = _relaunch(audit, seed)
        except (UserCodeError, TargetError):
            return None, ()
    found = unsorted(lines)
    return (turned if found else None), found


def _relaunch(audit: Audit, seed: int, *, steps: bool = True) -> Run:
    audit.clock.check()
    loop = audit.loop
    with _everything_preserved(loop), watching_seeds() as watch, loop.relaunched(seed) as fresh:
        initial = Weights.of(fresh)
        watch.phase, watch.loop = "reading", fresh
        run = _follow(audit, fresh, initial, watch, steps=steps)
    return replace(run, seedings=tuple(watch.seen))


def _replay(audit: Audit, seed: int) -> Run:
    with _everything_preserved(audit.loop):
        seed_everything(seed)
        return _follow(audit, audit.loop, Weights.of(audit.loop), SeedWatch(), steps=True)


def _follow(audit: Audit, loop: Loop, initial: Weights, watch: SeedWatch, *, steps: bool) -> Run:
    """Take the first steps of ``loop``, noting down what it is fed and what it computes."""
    access = RandomAccess.of(loop.train_loader)
    indices = _first_indices(loop, access)
    items = _items_twice(loop, access)
    whole: list[str] = []
    inputs: list[str] = []
    targets: list[str] = []
    rows: Counter[str] = Counter()
    losses: list[float] = []
    steps = steps and not loop.lacks(Needs.OWN_STEPS)
    for batch in islice(loop.batches(), STEPS):
        audit.clock.check()
        fed = inputs_and_target(loop, batch)
        whole.append(_digest(batch, fed))
        inputs.append(batches.digest(fed.inputs))
        targets.append(batches.digest((fed.target,)))
        rows.update(row_items(batch, batches.size(fed.inputs)))
        if steps:
            watch.phase = "stepping"
            try:
                losses.append(loop.step(batch).loss)
            except UserCodeError:
                steps = False  # another check's business
            watch.phase = "reading"
    return Run(
        initial=initial,
        final=Weights.of(loop) if losses else initial,
        batches=tuple(whole),
        inputs=tuple(inputs),
        targets=tuple(targets),
        rows=rows,
        indices=indices,
        items=items,
        losses=tuple(losses),
    )


def _digest(batch: Any, fed: ModelInputs) -> str:
    """Return a hash of ``batch``, or of what it became where the program drew it by itself."""
    drawn = next(batches.tensors(batch), None) is not None
    return batches.digest(batch if drawn else (fed.inputs, fed.target))


def _first_indices(loop: Loop, access: RandomAccess | None) -> tuple[str, ...] | None:
    if access is None:
        return None
    with preserved(loop.subjects):
        return tuple(repr(one) for one in access.index_batches(most=4096)[:STEPS])


def _items_twice(loop: Loop, access: RandomAccess | None) -> tuple[str, str] | None:
    """Look up a few items, twice: what they say when nothing but the data set can differ."""
    if access is None:
        return None
    try:
        with preserved(loop.subjects):
            chosen = sorted(range(len(access.loader.dataset)))[:ITEMS]  # type: ignore[arg-type]
            one, two = (batches.digest(access.fetch(chosen)) for _ in range(2))
    except (UserCodeError, TypeError):
        return None  # items that only the loader's own sampler or workers can ask for
    return one, two


@contextmanager
def _everything_preserved(loop: Loop) -> Iterator[None]:
    """Preserve the loop and what the user's modules hold beside it.

    A module that is not executed anew, because another imported it, keeps its generators: without
    this, a run would go on where the one before left them, which no new process does.
    """
    subjects = loop.subjects
    with preserved(replace(subjects, extras=(*subjects.extras, *_held_by_modules()))):
        yield


def _held_by_modules() -> list[Any]:
    found: dict[int, Any] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not is_user(file):
            continue
        for value in list(vars(module).values()):
            if isinstance(value, _STATEFUL):
                found[id(value)] = value
    return list(found.values())
