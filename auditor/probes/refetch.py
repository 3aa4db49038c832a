"""The same items, read twice: what comes out different, in training and in validation data."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import Needs
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.seeding import Seeding, watching_seeds, without_seeding
from nnaudit.measure.workers import fingerprint, reachable
from nnaudit.probes.rows import Layout, columns_of
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches

ROWS = 32
CHUNK = 4
SECONDS = 5.0
VAL_BATCHES = 4

_RANDOM = re.compile(r"Random|Jitter|Erasing|Augment(?!ed)|Cutout|MixUp|CutMix|GaussianNoise")
"""Names of transforms that draw random numbers."""


@dataclass(frozen=True)
class Repeat:
    """How two readings of the same items compare.

    Attributes:
        rows: how many were read twice.
        inputs, targets: how many rows came out with another input, and with another target.
        labelled: there are targets, and they are not made of the inputs (as in reconstruction).
        declared: names of the random transforms that the data set holds.
        called: one of them was called meanwhile.
        sampled: the items are the same, the collate function draws beside them, and some inputs
            stay: a node with sampled neighbours, a query with random negatives.
        seeding: a call of the program's that seeds a global generator for an item.
        unseeded: how many rows come out with another input where such calls do nothing; counted
            where no row did with them.
    """

    rows: int
    inputs: int
    targets: int
    labelled: bool
    declared: tuple[str, ...]
    called: bool = False
    sampled: bool = False
    seeding: Seeding | None = None
    unseeded: int = 0


@dataclass(frozen=True)
class Refetched:
    """Training and validation items; None where they cannot be read twice."""

    train: Repeat | None
    val: Repeat | None


class Refetch(Probe[Refetched]):
    """Reads a few training and validation items twice each, in this process."""

    def measure(self, audit: Audit) -> Refetched:
        """Look items up where the loader has an index; read the validation batches twice else.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        train = _looked_up(audit, loop.train_loader)
        if loop.lacks(Needs.VAL_LOADER):
            return Refetched(train, None)
        with preserved(loop.subjects):
            val = _looked_up(audit, loop.val_loader) or _read_through(audit)
        return Refetched(train, val)


def _looked_up(audit: Audit, loader: Any) -> Repeat | None:
    access = RandomAccess.of(loader)
    if access is None:
        return None
    transforms = _transforms(access.loader.dataset)
    calls: list[int] = []
    with ExitStack() as stack:
        for transform in transforms:
            if isinstance(transform, nn.Module):
                hook = transform.register_forward_hook(lambda *_: calls.append(1))
                stack.callback(hook.remove)
        watch = stack.enter_context(watching_seeds())
        try:
            pairs = list(_pairs_of(audit, access))
        except UserCodeError:
            # What worker_init_fn sets up exists in workers only.
            return None
    found = _compared(audit, pairs, transforms, bool(calls))
    if found is not None and found.inputs:
        return replace(found, sampled=_is_sampled(audit, access, pairs))
    if found is not None and watch.seen:
        unseeded = _changing_unseeded(audit, access, transforms)
        return replace(found, seeding=watch.seen[0], unseeded=unseeded)
    return found


def _changing_unseeded(audit: Audit, access: RandomAccess, transforms: list[Any]) -> int:
    """Count the rows that come out with another input where calls that seed do nothing."""
    try:
        with without_seeding():
            found = _compared(audit, list(_pairs_of(audit, access)), transforms, False)
    except UserCodeError:
        return 0
    return found.inputs if found is not None else 0


def _is_sampled(audit: Audit, access: RandomAccess, pairs: list[tuple[Any, Any]]) -> bool:
    """Whether only what the collate function draws differs, beside inputs that stay as they are."""
    inputs = Layout.of(audit.loop, pairs[0][0]).inputs
    stay = [
        path
        for path in inputs
        if not any(
            _differing(_values(columns_of(one), [path]), _values(columns_of(other), [path]))
            for one, other in pairs
        )
    ]
    kinds = {row for one, _ in pairs for row in _row_prints(_values(columns_of(one), stay))}
    dataset = access.loader.dataset
    try:
        with user_code("reading items twice"):
            return len(kinds) > 1 and all(
                fingerprint((dataset[i],)) == fingerprint((dataset[i],))
                for i in access.spread(CHUNK)
            )
    except UserCodeError:  # items that can be read several at once alone
        return False


def _pairs_of(audit: Audit, access: RandomAccess) -> Iterator[tuple[Any, Any]]:
    started = time.perf_counter()
    spread = access.spread(ROWS)
    size = 1 if access.loader.batch_sampler is None else CHUNK
    for start in range(0, len(spread), size):
        audit.clock.check()
        chunk = spread[start : start + size]
        yield access.fetch(chunk), access.fetch(chunk)
        if time.perf_counter() - started > SECONDS:
            return


def _read_through(audit: Audit) -> Repeat | None:
    """Read the beginning of the validation data twice; None where their order is not fixed."""
    loop = audit.loop
    try:
        first, second = (list(islice(loop.val_batches(), VAL_BATCHES)) for _ in range(2))
    except UserCodeError:
        return None
    pairs = list(zip(first, second, strict=False))
    if not pairs:
        return None
    layout = Layout.of(loop, pairs[0][0])
    targets = [
        (_values(columns_of(a), layout.targets), _values(columns_of(b), layout.targets))
        for a, b in pairs
    ]
    fixed = all(fingerprint((a,)) == fingerprint((b,)) for a, b in targets)
    # Labels at the same place show that the same items are: if there are any, and several kinds.
    several = len({row for a, _ in targets for row in _row_prints(a)}) > 1
    if not fixed or not several:
        return None
    return _compared(audit, pairs, _transforms(getattr(loop.val_loader, "dataset", None)), False)


def _compared(
    audit: Audit, pairs: list[tuple[Any, Any]], transforms: list[Any], called: bool
) -> Repeat | None:
    if not pairs:
        return None
    # What the loader gave, not what the user's step makes of it: that may draw random numbers.
    layout = Layout.of(audit.loop, pairs[0][0])
    rows = inputs = targets = 0
    labelled = bool(layout.targets) and set(layout.targets).isdisjoint(layout.inputs)
    for one, other in pairs:
        first, second = columns_of(one), columns_of(other)
        # Pictures that are no tensors yet are no columns: the whole batch is compared.
        given = _values(first, layout.inputs) or one
        rows += max(batches.size(given), 1)
        inputs += _differing(given, _values(second, layout.inputs) or other)
        if layout.targets:
            compared = _values(first, layout.targets)
            targets += _differing(compared, _values(second, layout.targets))
            labelled = labelled and _is_labelled(_values(first, layout.inputs), compared)
    names = tuple(dict.fromkeys(type(each).__name__ for each in transforms))
    return Repeat(rows, inputs, targets, labelled, names, called)


def _values(columns: Mapping[str, Tensor], paths: Sequence[str]) -> list[Tensor]:
    return [columns[path] for path in paths if path in columns]


def _is_labelled(inputs: list[Tensor], targets: list[Tensor]) -> bool:
    """Whether the targets are something else than a picture of an input's shape."""
    shapes = {tuple(t.shape) for t in inputs if t.ndim > 1}
    return all(tuple(t.shape) not in shapes for t in targets)


def _differing(one: Any, other: Any) -> int:
    """Return in how many rows two structures differ; in all where their rows do not match."""
    rows, others = _row_prints(one), _row_prints(other)
    if len(rows) != len(others):
        return max(len(rows), len(others))
    return sum(a != b for a, b in zip(rows, others, strict=True))


def _row_prints(value: Any) -> list[str]:
    size = batches.size(value)
    tensors: list[Tensor] = [
        t for _, t in batches.tensors(value) if t.ndim > 0 and t.shape[0] == size
    ]
    if not tensors:
        return [fingerprint(value)]
    digests = [batches.row_digests(t) for t in tensors]
    return ["".join(parts) for parts in zip(*digests, strict=True)]


def _transforms(dataset: Any) -> list[Any]:
    """Return the random transforms within reach of ``dataset``, by the name of their class."""
    is_random: Callable[[Any], bool] = lambda thing: bool(_RANDOM.search(type(thing).__name__))  # noqa: E731
    return [thing for _, thing in reachable(dataset) if callable(thing) and is_random(thing)]
