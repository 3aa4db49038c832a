"""In which order an epoch visits the training set, and whether the next epoch does otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.measure.epoch_reading import COMPARED_ROWS, SECONDS, Reading, read, read_from
from nnaudit.measure.epoch_targets import Targets, as_one_value
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.row_sequence import columns_of, sequence_of, views_of, without_group_means
from nnaudit.measure.set_epoch import counts_its_epochs, is_told, tell_epoch, tellable

ROWS = 1024
"""Rows read of an epoch that can be looked up further on."""

STREAM_ROWS = 4096
"""Rows read of a stream: what lies further on cannot be looked up."""

FAR_STREAM_ROWS = 4 * STREAM_ROWS
"""Rows read of a stream whose first rows are all of one class."""

LATER_ROWS = 512


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
            that it has ended (accelerate's does): beginning it anew is the same epoch. Or the
            user's code between two epochs was run, and calls it.
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
        flat, discrete = as_one_value(values)
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
        views = zip(views_of(one[:n]), views_of(two[:n]), strict=True)
        return any(self._nearest_at_their_place(columns_of(*view), groups) for view in views)

    def _nearest_at_their_place(
        self, pair: list[NDArray[np.float64]], groups: NDArray[Any]
    ) -> bool:
        one, two = (without_group_means(each, groups) for each in pair)
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
        told = by_hand and _is_told(loop, *tellable(loop.train_loader))
        return Order(
            first, second, None, None, None, 0, by_hand, audit.seed,
            by_itself=by_hand and told is True,
            never_told=by_hand and told is False,
        )  # fmt: skip
    epochs = access.index_batches(), access.index_batches()
    indices = _flat(epochs[0]), _flat(epochs[1])
    same = _mostly(stats.fixed_points(*indices))
    second = read(audit, COMPARED_ROWS) if same and len(epochs[0]) > 1 else None
    unknown = not access.shuffles or same
    later = _later(audit, access, epochs[0], len(first.sizes)) if unknown else None
    by_hand = same and _index_changes_by_hand(access, indices[0])
    told = by_hand and _is_told(loop, access.sampler, access.loader.batch_sampler)
    return Order(
        first,
        second,
        later,
        access,
        indices,
        len(epochs[0]),
        by_hand,
        audit.seed,
        by_itself=by_hand and told is True,
        never_told=by_hand and told is False,
    )


def _is_told(loop: Loop, *candidates: Any) -> bool | None:
    """Whether the loader or the user's code tells its samplers of the epoch; None: not known."""
    return counts_its_epochs(loop.train_loader) or is_told(loop, *candidates)


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


def _changes_by_hand(audit: Audit, first: Reading) -> bool:
    if not tell_epoch(*tellable(audit.loop.train_loader)):
        return False
    return not _same(first, read(audit, COMPARED_ROWS))


def _index_changes_by_hand(access: RandomAccess, first: tuple[Any, ...]) -> bool:
    if not tell_epoch(access.sampler, access.loader.batch_sampler):
        return False
    return not _mostly(stats.fixed_points(first, _flat(access.index_batches())))


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
        return read_from(audit, fetched(), LATER_ROWS * 2, SECONDS / 2, everything=False)
    except UserCodeError:
        # A data set may need what only the loader gives it (a worker's set-up): go without.
        return None
