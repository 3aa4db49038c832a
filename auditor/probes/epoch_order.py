"""In which order an epoch visits the training set, and whether the next epoch does otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import patched
from nnaudit.measure.random_access import RandomAccess
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import TARGET_NAMES, ModelInputs

ROWS = 1024
"""Rows read of an epoch that can be looked up further on."""
STREAM_ROWS = 4096
"""Rows read of a stream: what lies further on cannot be looked up."""
FAR_STREAM_ROWS = 4 * STREAM_ROWS
"""Rows read of a stream whose first rows are all of one class."""
LATER_ROWS = 512
COMPARED_ROWS = 512
SECONDS = 10.0
_FAR_EPOCH = 1000
"""A number that no audited run gets to."""

_KEPT_ROWS = 256
_KEPT_COLUMNS = 1024
_HASHED_COLUMNS = 16_384
_JOINTS = 8
_DIGESTED = 4


@dataclass(frozen=True)
class Reading:
    """What was read of an epoch, in the order in which it came.

    Attributes:
        sizes: rows of each batch.
        targets: one value per row, (rows,), or one vector of zeros and ones, (rows, labels); None
            where a row has no single target (segmentation, sequences, reconstruction).
        items: the content of each row as a hash, of the first :data:`COMPARED_ROWS`; of each batch
            where its rows cannot be taken apart.
        inputs: the first input of the first rows, as numbers (rows, ...); None where it has none.
        next_token: the targets are the input tokens, moved by one place or not.
        continues: each batch begins where the one before ended, row by row.
        ended: the epoch ended within what was read.
        repeats: the first batches, three or more, are one and the same, of rows that differ.
    """

    sizes: tuple[int, ...]
    targets: NDArray[Any] | None
    items: tuple[str, ...]
    inputs: NDArray[Any] | None
    next_token: bool
    continues: bool
    ended: bool
    repeats: bool = False

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Targets:
    """The targets along an epoch.

    Attributes:
        values: a class or a quantity per row (rows,).
        sizes: rows of each batch.
        near: how many of the rows follow each other without a gap; the rest was looked up in
            batches spread over the rest of the epoch.
        discrete: whether ``values`` are classes.
    """

    values: NDArray[Any]
    sizes: tuple[int, ...]
    near: int
    discrete: bool

    @property
    def kinds(self) -> int:
        """How many different values there are."""
        return len(np.unique(self.values))


@dataclass(frozen=True)
class Order:
    """What :class:`EpochOrder` saw.

    Attributes:
        first: the beginning of one epoch.
        second: the beginning of the next; None where the indices have already told it apart.
        later: batches from all over the rest of the first epoch; None where they are unknown.
        access: the loader's index, where it has one.
        indices: the items that two epochs ask for, where there is an index.
        by_hand: the order differs once ``set_epoch`` is called.
        by_itself: that is so, and the loader calls it as it is iterated, with a count of the epochs
            that it has ended (accelerate's does): beginning it anew is the same epoch.
        never_told: that is so, and the user's code between two epochs was run and did not call it.
        index_batches: batches per epoch by the index; 0 without one.
        seed: of the permutations.
    """

    first: Reading
    second: Reading | None
    later: Reading | None
    access: RandomAccess | None
    indices: tuple[tuple[Any, ...], tuple[Any, ...]] | None
    index_batches: int
    by_hand: bool
    seed: int
    by_itself: bool = False
    never_told: bool = False

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers for tests by permutation: the same at every call."""
        return np.random.default_rng(self.seed)

    @property
    def one_batch(self) -> bool:
        """Whether one batch is the whole epoch, so that there is no order.

        A script without a loader may take all of its data in every step.
        """
        if self.indices is not None:
            return self.index_batches <= 1
        return self.first.repeats or (self.first.ended and len(self.first.sizes) <= 1)

    @property
    def rows_are_exchangeable(self) -> bool:
        """Whether the program asked for no particular composition of batches."""
        return self.access is not None and self.access.torch_sampler

    @cached_property
    def targets(self) -> Targets | None:
        """The targets along the epoch, gaps and all; None where rows have no single target."""
        first, later = self.first, self.later
        if first.targets is None or len(first.targets) == 0:
            return None
        values, sizes = first.targets, first.sizes
        if later is not None and later.targets is not None and _alike(values, later.targets):
            values, sizes = np.concatenate([values, later.targets]), (*sizes, *later.sizes)
        flat, discrete = _as_one_value(values)
        return Targets(flat, sizes, first.rows, discrete)

    @cached_property
    def asked_again(self) -> stats.FixedPoints | None:
        """How many items the second epoch asks for at the same place; None without an index."""
        return None if self.indices is None else stats.fixed_points(*self.indices)

    @cached_property
    def seen_again(self) -> stats.FixedPoints | None:
        """How many rows had the same content at the same place; None when not compared."""
        if self.second is None or not self.first.items or not self.second.items:
            return None
        return stats.fixed_points(self.first.items, self.second.items)

    @property
    def repeated(self) -> stats.FixedPoints | None:
        """The proof that two epochs have the same order; None where there is none.

        Indices prove it only where they decide what comes: an item drawn at random on each access
        has no place in an order. Rows prove it where most have their own content.
        """
        asked, seen = self.asked_again, self.seen_again
        if asked is not None:
            return asked if _mostly(asked) and self._items_keep_their_content else None
        if seen is None or seen.expected > seen.length / 4:
            return None
        return seen if _mostly(seen) else None

    @property
    def _items_keep_their_content(self) -> bool:
        if self.seen_again is not None and _mostly(self.seen_again):
            return True
        return self._augmented

    @cached_property
    def _augmented(self) -> bool:
        """Whether rows at the same place are nearer to each other than to others of their class.

        Under the null hypothesis (items made up on the spot) all pairings within a class are alike.
        """
        if self.second is None or self.first.inputs is None or self.second.inputs is None:
            return False
        one, two = self.first.inputs, self.second.inputs
        n = min(len(one), len(two))
        if n < 16 or one.shape[1:] != two.shape[1:]:
            return False
        groups = self._classes(n)
        views = zip(_views(one[:n]), _views(two[:n]), strict=True)
        return any(self._nearest_at_their_place(_columns(*view), groups) for view in views)

    def _nearest_at_their_place(
        self, pair: list[NDArray[np.float64]], groups: NDArray[Any]
    ) -> bool:
        one, two = (_without_group_means(each, groups) for each in pair)
        products = one @ two.T
        places = np.arange(len(one))

        def matched(order: NDArray[np.intp]) -> float:
            return float(products[places, order].sum())

        deviation, p = stats.permutation_null(matched, len(one), self.rng, permutations=500)
        return deviation.z > 4 and p < 0.01

    def _classes(self, n: int) -> NDArray[Any]:
        targets = self.targets
        if targets is None or not targets.discrete or len(targets.values) < n:
            return np.zeros(n, dtype=int)
        return targets.values[:n]

    @property
    def sequence(self) -> str:
        """What shows that the rows are moments of one sequence, in words; empty if nothing does."""
        return sequence_of(self.first, self.targets)


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape[1:] == b.shape[1:]


def _mostly(found: stats.FixedPoints) -> bool:
    return found.length > 1 and found.count > 0.9 * found.length


class EpochOrder(Probe[Order]):
    """The order of two epochs, from real batches and, where there is one, the loader's index."""

    def measure(self, audit: Audit) -> Order:
        """Read the beginning of an epoch, and of a second one where the index leaves it open."""
        return order_of(audit)


def order_of(audit: Audit) -> Order:
    """Measure the order of an epoch that starts from the present random numbers.

    Raises:
        UserCodeError: the loader or the data set raised.
        OutOfBudgetError: the time is used up.
    """
    loop = audit.loop
    access = RandomAccess.of(loop.train_loader)
    first = read(audit, ROWS if access else STREAM_ROWS)
    if access is None and first.targets is not None and len(np.unique(first.targets)) == 1:
        first = read(audit, FAR_STREAM_ROWS)
    if access is None:
        second = None if _single(first) else read(audit, COMPARED_ROWS)
        by_hand = second is not None and _same(first, second) and _changes_by_hand(audit, first)
        by_itself = by_hand and _counts_its_epochs(loop.train_loader)
        untold = by_hand and not by_itself and _never_told(loop, *_tellable(loop.train_loader))
        return Order(first, second, None, None, None, 0, by_hand, audit.seed, by_itself, untold)
    epochs = access.index_batches(), access.index_batches()
    indices = _flat(epochs[0]), _flat(epochs[1])
    same = _mostly(stats.fixed_points(*indices))
    second = read(audit, COMPARED_ROWS) if same and len(epochs[0]) > 1 else None
    unknown = not access.shuffles or same
    later = _later(audit, access, epochs[0], len(first.sizes)) if unknown else None
    by_hand = same and _index_changes_by_hand(access, indices[0])
    by_itself = by_hand and _counts_its_epochs(loop.train_loader)
    told = (access.sampler, access.loader.batch_sampler)
    untold = by_hand and not by_itself and _never_told(loop, *told)
    return Order(
        first,
        second,
        later,
        access,
        indices,
        len(epochs[0]),
        by_hand,
        audit.seed,
        by_itself,
        untold,
    )


def _single(reading: Reading) -> bool:
    return reading.ended and len(reading.sizes) <= 1


def _same(a: Reading, b: Reading) -> bool:
    return _mostly(stats.fixed_points(a.items, b.items))


def _flat(index_batches: list[list[Any]]) -> tuple[Any, ...]:
    """Indices in order; those that cannot be hashed (lists, slices) by their text."""
    return tuple(
        index if isinstance(index, (int, str)) else repr(index)
        for one in index_batches
        for index in one
    )


def _tellable(loader: Any) -> tuple[Any, Any]:
    """Return what of a loader without an index may want to be told the epoch."""
    return loader, getattr(loader, "dataset", None)


def _never_told(loop: Loop, *candidates: Any) -> bool:
    """Whether the user's code runs from one epoch to the next without telling any its number.

    False where no such code can be run.
    """
    waiting = _set_epoch(*candidates, epoch=_FAR_EPOCH)
    before = [_epoch_of(each) for each in waiting]
    told: list[bool] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def set_epoch(*args: Any, **kwargs: Any) -> Any:
            told.append(True)
            return real(*args, **kwargs)

        return set_epoch

    with ExitStack() as patches:
        for each in waiting:
            patches.enter_context(patched(each, "set_epoch", noted))
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            step = loop.next_epoch(batch)
        except (UserCodeError, TargetError):
            return False
    return step is not None and not told and before == [_epoch_of(each) for each in waiting]


def _epoch_of(sampler: Any) -> Any:
    return getattr(sampler, "epoch", None)


def _changes_by_hand(audit: Audit, first: Reading) -> bool:
    if not _set_epoch(*_tellable(audit.loop.train_loader)):
        return False
    return not _same(first, read(audit, COMPARED_ROWS))


def _counts_its_epochs(loader: Any) -> bool:
    """Whether ``set_epoch`` is called in the loader's own ``__iter__``."""
    code = getattr(getattr(type(loader), "__iter__", None), "__code__", None)
    return code is not None and "set_epoch" in code.co_names


def _index_changes_by_hand(access: RandomAccess, first: tuple[Any, ...]) -> bool:
    if not _set_epoch(access.sampler, access.loader.batch_sampler):
        return False
    return not _mostly(stats.fixed_points(first, _flat(access.index_batches())))


def _set_epoch(*candidates: Any, epoch: int = 1) -> list[Any]:
    """Tell all that want to be told that this is another epoch; return which did."""
    asked = [each for each in candidates if callable(getattr(each, "set_epoch", None))]
    for each in asked:
        each.set_epoch(epoch)
    return asked


def _later(
    audit: Audit, access: RandomAccess, epoch: list[list[Any]], after: int
) -> Reading | None:
    """Look up batches spread evenly over what follows the first ``after`` batches of ``epoch``."""
    rest = epoch[after:]
    if not rest:
        return None
    usual = max(len(rest[0]), 1)
    count = min(len(rest), max(8, LATER_ROWS // usual))
    chosen = [rest[int(i * len(rest) / count)] for i in range(count)]
    rng = np.random.default_rng(audit.seed)
    most = max(LATER_ROWS // count, 16)

    def fetched() -> Iterator[Any]:
        for one in chosen:
            some = sorted(rng.choice(len(one), min(len(one), most), replace=False).tolist())
            yield access.fetch([one[i] for i in some])

    try:
        return _take(audit, fetched(), LATER_ROWS * 2, SECONDS / 2, everything=False)
    except UserCodeError:
        # A data set may need what only the loader gives it (a worker's set-up): go without.
        return None


def read(audit: Audit, rows: int, *, seconds: float = SECONDS) -> Reading:
    """Start an epoch and read until there are ``rows`` rows, or for ``seconds``.

    Two batches are read in any case, so that an epoch of a single batch shows.

    Raises:
        UserCodeError: the loader raised.
        OutOfBudgetError: the time is used up.
    """
    return _take(audit, audit.loop.batches(), rows, seconds)


def _take(
    audit: Audit, source: Iterable[Any], rows: int, seconds: float, *, everything: bool = True
) -> Reading:
    """Note down what ``source`` yields; only sizes and targets unless ``everything``."""
    notes = _Notes(audit.loop)
    started = time.perf_counter()
    ended = True
    for batch in source:
        late = time.perf_counter() - started > seconds
        if notes.batches >= 2 and (notes.rows >= rows or late):
            ended = False
            break
        audit.clock.check()
        notes.add(batch, everything)
    return notes.reading(ended)


class _Notes:
    """Gathers a :class:`Reading`, batch by batch."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sizes: list[int] = []
        self._targets: list[NDArray[Any]] | None = []
        self._items: list[str] = []
        self._inputs: list[NDArray[Any]] = []
        self._next_token = False
        self._previous: ModelInputs | None = None
        self._joints: list[bool] = []
        self._digests: list[str] = []

    @property
    def batches(self) -> int:
        return len(self._sizes)

    @property
    def rows(self) -> int:
        return sum(self._sizes)

    def add(self, batch: Any, everything: bool) -> None:
        fed = taken_apart(self._loop, batch)
        targets = row_targets(fed, batches.size(fed.inputs))
        n = batches.size(fed.inputs) if targets is None else len(targets)
        if not self._sizes:
            self._next_token = is_next_token(fed)
        if everything and self.rows < COMPARED_ROWS:
            self._items += row_items(batch, n)
        if everything and self.rows < _KEPT_ROWS and (kept := _first_input(fed, n)) is not None:
            self._inputs.append(kept)
        self._sizes.append(n)
        if len(self._digests) < _DIGESTED:
            self._digests.append(batches.digest(batch))
        if self._previous is not None and len(self._joints) < _JOINTS:
            self._joints.append(continues(self._previous, fed))
        self._previous = fed
        if targets is None or (self._targets and self._targets[0].shape[1:] != targets.shape[1:]):
            self._targets = None
        if self._targets is not None and targets is not None:
            self._targets.append(targets)

    def reading(self, ended: bool) -> Reading:
        same_shape = len({each.shape[1:] for each in self._inputs}) == 1
        return Reading(
            sizes=tuple(self._sizes),
            targets=np.concatenate(self._targets) if self._targets else None,
            items=tuple(self._items[:COMPARED_ROWS]),
            inputs=np.concatenate(self._inputs)[:_KEPT_ROWS] if same_shape else None,
            next_token=self._next_token,
            continues=len(self._joints) > 2 and all(self._joints),
            ended=ended,
            repeats=len(self._digests) > 2 and len(set(self._digests)) == 1 < len(set(self._items)),
        )


def taken_apart(loop: Loop, batch: Any) -> ModelInputs:
    """Take ``batch`` apart to be looked at; as a whole, where only the user's step understands it.

    What a model is given as its target, to compute the loss itself (``labels=...``, as those of
    transformers are), is no input then.
    """
    try:
        fed = loop.split_batch(batch)
    except UserCodeError:
        return ModelInputs((batch,), {}, None)
    given = {
        name: value
        for name, value in fed.kwargs.items()
        if name in TARGET_NAMES and _same_target(value, fed.target)
    }
    rest = {name: value for name, value in fed.kwargs.items() if name not in given}
    if not given or not (fed.args or rest):
        return fed
    return ModelInputs(fed.args, rest, next(iter(given.values())))


def _same_target(value: Any, target: Any) -> bool:
    """Whether both hold the same numbers, in whatever shape the loss wants them."""
    if value is target:
        return value is not None
    if not isinstance(value, Tensor) or not isinstance(target, Tensor):
        return False
    if value.numel() != target.numel() or value.device != target.device:
        return False
    return torch.equal(value.reshape(-1), target.reshape(-1))


# --- targets ------------------------------------------------------------------------------------


def row_targets(fed: ModelInputs, rows: int) -> NDArray[Any] | None:
    """Return one target per row: (rows,), or (rows, labels) of zeros and ones; None without.

    One-hot and soft labels count as their most probable class; of several targets the first that
    is one per row counts.
    """
    if fed.target is None or any(fed.target is each for each in fed.inputs):
        return None
    for _, tensor in batches.tensors(_as_tensors(fed.target)):
        if tensor.ndim > 0 and rows in (tensor.shape[0], 0):
            found = _one_per_row(tensor.detach())
            if found is not None:
                return found
    return None


def _as_tensors(target: Any) -> Any:
    """A plain list of numbers is a target too."""
    if isinstance(target, (list, tuple)) and target and isinstance(target[0], (int, float)):
        return torch.tensor(target)
    return target


def _one_per_row(tensor: Tensor) -> NDArray[Any] | None:
    if tensor.is_complex() or tensor.layout is not torch.strided:
        return None
    values = tensor.cpu()
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    if values.ndim > 1 and values[0].numel() == 1:
        values = values.flatten()
    if values.ndim == 1:
        return np.asarray(values)
    return _one_of_columns(values) if values.ndim == 2 and len(values) else None


def _one_of_columns(values: Tensor) -> NDArray[Any] | None:
    sums = values.sum(1)
    if bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        return np.asarray(values.argmax(1))
    if bool(((values == 0) | (values == 1)).all()):
        return np.asarray(values.to(torch.int8))
    few = values.is_floating_point() and values.shape[1] <= 8
    return np.asarray(values[:, 0]) if few else None


def _as_one_value(values: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Return (rows,) values and whether they are classes.

    Several labels per row are one class by their combination or, where there are too many of
    those, by the label that splits the rows most evenly.
    """
    if values.ndim == 2:
        combinations, which = np.unique(values, axis=0, return_inverse=True)
        if len(combinations) <= len(values) / 4:
            return which.reshape(-1), True
        return values[:, int(np.abs(values.mean(0) - 0.5).argmin())], True
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    distinct = np.unique(finite)
    whole = values.dtype.kind in "iub" or (
        len(distinct) <= 50 and bool((distinct == np.round(distinct)).all())
    )
    return values, whole and len(distinct) <= max(len(values) / 2, 2)


def is_next_token(fed: ModelInputs) -> bool:
    """Whether the targets are the input's own tokens: a language model."""
    tokens = _whole_numbers(fed.inputs)
    target = _whole_numbers((fed.target,))
    if tokens is None or tokens.ndim < 2 or tokens.shape[1] < 4:
        return False
    if fed.target is None or target is tokens:
        return True
    if target is None or target.shape != tokens.shape:
        return False
    moved = target[:, :-1] == tokens[:, 1:]
    return bool(moved.float().mean() > 0.9 or (target == tokens).float().mean() > 0.9)


def continues(before: ModelInputs, after: ModelInputs) -> bool:
    """Whether the inputs of ``after`` begin with what the targets of ``before`` end with.

    Batches of truncated back-propagation through time are like that, time along the second axis
    or the first: their order must not be random.
    """
    ending, beginning = _sequences(before), _sequences(after)
    if ending is None or beginning is None:
        return False
    target, start = ending[1], beginning[0]
    if target.shape != start.shape:
        return False
    pairs = ((target[:, -1], start[:, 0]), (target[-1], start[0]))
    return any(bool((a == b).all()) and bool((a != a.flatten()[0]).any()) for a, b in pairs)


def _sequences(fed: ModelInputs) -> tuple[Tensor, Tensor] | None:
    """Return input and target of one shape (rows, places, ...), or None."""
    inputs = next((t for _, t in batches.tensors(fed.inputs) if t.ndim > 1), None)
    target = next((t for _, t in batches.tensors((fed.target,)) if t.ndim > 0), None)
    if inputs is None or target is None or target.numel() != inputs.numel() or not target.numel():
        return None
    return inputs, target.reshape(inputs.shape)


def _whole_numbers(values: Any) -> Tensor | None:
    for _, tensor in batches.tensors(values):
        if not tensor.is_floating_point() and not tensor.is_complex() and tensor.ndim > 1:
            return tensor
    return None


# --- rows ---------------------------------------------------------------------------------------


def row_items(batch: Any, rows: int) -> list[str]:
    """Return a hash of each row of ``batch``, or one of all where rows cannot be taken apart."""
    found = [tensor for _, tensor in batches.tensors(batch)]
    columns = [t for t in found if t.ndim > 0 and t.shape[0] == rows]
    if not columns or any(t.layout is not torch.strided for t in columns):
        return [batches.digest(batch)]
    hashes = [batches.row_digests(_thinned(t, _HASHED_COLUMNS)) for t in columns]
    return ["".join(parts) for parts in zip(*hashes, strict=True)]


def _thinned(tensor: Tensor, most: int) -> Tensor:
    """Flatten each row and keep every k-th element, so that at most ``most`` remain."""
    flat = tensor.detach().reshape(tensor.shape[0], -1)
    return flat[:, :: max(1, -(-flat.shape[1] // most))] if flat.shape[1] else flat


def _first_input(fed: ModelInputs, rows: int) -> NDArray[Any] | None:
    for _, tensor in batches.tensors(fed.inputs):
        if tensor.ndim == 0 or tensor.shape[0] != rows or tensor.layout is not torch.strided:
            continue
        if tensor.is_complex() or tensor.numel() == 0:
            continue
        small = tensor.ndim > 1 and tensor[0].numel() <= 4 * _KEPT_COLUMNS
        kept = tensor.detach() if small else _thinned(tensor, _KEPT_COLUMNS)
        return np.asarray(kept.cpu().float())
    return None


def _views(inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Rows as they are, and what of them outlasts an augmentation.

    The magnitudes of a spectrum outlast a shift or a crop; sorted values a flip, too.
    """
    flat = inputs.reshape(len(inputs), -1)
    if flat.shape[1] < 8 or not np.isfinite(flat).all():
        return (flat,)
    axes = tuple(range(1, inputs.ndim))[-2:]
    return flat, np.abs(np.fft.rfftn(inputs, axes=axes)).reshape(len(flat), -1), np.sort(flat, 1)


def _columns(*inputs: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Flatten and standardise; columns constant or not finite in any are left out of all."""
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in inputs]
    step = max(1, -(-flat[0].shape[1] // _KEPT_COLUMNS))
    thin = [each[:, ::step] for each in flat]
    finite = np.all([np.isfinite(each).all(0) for each in thin], axis=0)
    thin = [each[:, finite] for each in thin]
    varying = np.all([each.std(0) > 0 for each in thin], axis=0)
    return [(each[:, varying] - each[:, varying].mean(0)) / each.std(0)[varying] for each in thin]


def _without_group_means(rows: NDArray[np.float64], groups: NDArray[Any]) -> NDArray[np.float64]:
    centred = rows.copy()
    for group in np.unique(groups):
        members = groups == group
        centred[members] -= centred[members].mean(0)
    return centred


# --- sequences ----------------------------------------------------------------------------------


def sequence_of(reading: Reading, targets: Targets | None) -> str:
    """Say what shows that consecutive rows are moments of one sequence; empty if nothing does.

    Windows that overlap show it exactly. Else both must hold: rows are much nearer to the next row
    of their class than to any row of it, and the targets are serially correlated without being
    merely sorted.
    """
    inputs = reading.inputs
    if inputs is None or len(inputs) < 16:
        return ""
    if _overlap(inputs):
        return "consecutive inputs overlap"
    if targets is None or len(targets.values) < len(inputs):
        return "consecutive inputs are almost equal" if _close(inputs, None) else ""
    values = targets.values[: len(inputs)]
    if targets.discrete:
        changing = len(np.unique(values)) > 1
        persistent = not changing or stats.equal_neighbours(values).z > 4
        close = _close(inputs, values)
    else:
        rising = abs(stats.spearman(np.arange(len(values)), values)) > 0.95
        persistent = stats.lag_one(values).observed > 0.5 and not rising
        close = _close(inputs, None)
    alike = persistent and close
    return "consecutive inputs and targets are almost equal" if alike else ""


def _overlap(inputs: NDArray[Any]) -> bool:
    """Whether each row is the one before, moved along the first or the last axis."""
    some = inputs[:32]
    if (some == some[:1]).all():
        return False
    axes = {1, some.ndim - 1} - {0}
    return any(_overlap_along(np.moveaxis(some, axis, 1)) for axis in axes)


def _overlap_along(rows: NDArray[Any]) -> bool:
    length = rows.shape[1]
    most = max(1, length // 2) if length >= 4 else 0
    for shift in range(1, most + 1):
        # A few pairs first: a long window has many shifts.
        before, after = rows[:-1, shift:], rows[1:, :-shift]
        if np.allclose(before[:3], after[:3]) and np.allclose(before, after):
            return bool(np.ptp(before[0]) > 0 or np.ptp(before) > 0)
    return False


def _close(inputs: NDArray[Any], classes: NDArray[Any] | None) -> bool:
    """Whether neighbours are nearer than a third of the mean squared distance within a class."""
    [rows] = _columns(inputs)
    n = len(rows)
    if rows.shape[1] == 0:
        return False
    groups = np.zeros(n, dtype=int) if classes is None else classes
    neighbours = np.flatnonzero(groups[1:] == groups[:-1])
    if len(neighbours) < 16:
        return False
    near = ((rows[neighbours + 1] - rows[neighbours]) ** 2).sum(1).mean()
    centred = _without_group_means(rows, groups)
    # Two independent rows of a class are twice the variance within it apart.
    sizes = {group: int((groups == group).sum()) for group in np.unique(groups)}
    weight = np.array([sizes[group] / max(sizes[group] - 1, 1) for group in groups])
    within = 2 * ((centred[neighbours] ** 2).sum(1) * weight[neighbours]).mean()
    return bool(near < within / 3)


def codes_of(values: NDArray[Any], most: int = 16) -> NDArray[np.intp]:
    """Number the classes of ``values`` from 0; more than ``most`` are merged with neighbours.

    Merging is by rank into groups of equal mass, so that sorted data stay sorted.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(-1)
    if len(distinct) <= most:
        return codes
    share = (stats.rank(values) + 0.5) / len(values)
    return np.minimum((share * most).astype(np.intp), most - 1)


def counts_of(codes: Sequence[int] | NDArray[np.intp], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return how often each code occurs in each run of ``sizes`` rows: (runs, codes)."""
    table = np.zeros((len(sizes), int(np.max(codes)) + 1))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    np.add.at(table, (owners, np.asarray(codes)), 1)
    return table
