"""Rows that the training and the validation set have in common, by the surest way there is."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.stored_rows import Stored
from nnaudit.probes.rows import Layout, Rows, TrainRows, ValRows, hash_under

RICH = 8
"""Elements in which rows of a rich domain differ at least: no two are the same by chance."""

MOSTLY = 0.9
"""The share of rich rows from which on rows are rich as a whole."""

_FEWEST_RICH = 8
_COMPARED = 768
_LOOKED_AT = 128
_COLUMNS = 2048
_FEWEST_WINDOWS = 30
_FEWEST_NEAR = 50
_CROWD = 20
"""A near copy is compared with the distance to the training row that is nearest after so many."""

_BY_CHANCE = 0.1
_MOST_TOKENS = 2**20

_ENOUGH_READ = 0.25
"""Share of the training rows below which pieces that texts repeat would count too much."""

_PIECE = 12
"""Tokens, or characters, that two texts hardly share by chance for most of their windows."""
"""Of all pictures, so many may be near another by chance; a third is needed for a finding."""

_STEPS = 16
"""Fewer steps than this make no signal whose copies could be told."""

_NEAR = 0.25
"""Of that distance. The nearest of unrelated pictures is hardly nearer than the twentieth: in many
dimensions distances concentrate (Beyer et al., 1999)."""


@dataclass(frozen=True)
class Overlap:
    """What two lists of rows have in common.

    Attributes:
        train, val: how many rows were compared.
        shared: rows of the validation set that are in the training set too.
        twins: the share of training rows that have a twin among them: the rate by nature.
        p: the probability of as many mixed groups of equal rows if the split were random.
        by_number: rows are known by their number in one store: no two are equal by nature.
        certain: an equal row means an equal item; False where the two sets may make different
            items of it.
        coverage: the share of the training set that was compared.
    """

    train: int
    val: int
    shared: int
    twins: float
    p: float
    by_number: bool = False
    certain: bool = True
    coverage: float = 1.0

    @property
    def share(self) -> float:
        """The share of validation rows that are in the training set too."""
        return self.shared / self.val if self.val else 0.0

    @property
    def excess(self) -> float:
        """By how much :attr:`share` exceeds the rate of twins, for all of the training set.

        Of a training set read in part only some of what is shared shows, and of the twins as well.
        """
        return min((self.share - self.twins) / self.coverage, 1.0)

    @property
    def significant(self) -> bool:
        """Whether chance does not explain what is shared."""
        return self.shared > 0 and (self.by_number or self.p < stats.ALPHA)


def overlap(train: Sequence[Any], val: Sequence[Any]) -> Overlap:
    """Compare two lists of rows, each known by its content.

    The null hypothesis is that all rows were dealt to the two sides at random, equal rows by
    chance to the same or to both. A group of s equal rows is then mixed with probability
    1 - f^s - (1-f)^s, f being the share of the validation set, and the number of mixed groups is a
    sum of independent draws. Its upper tail is at most that of a binomial of the mean probability
    (Hoeffding, 1956), so p errs on the safe side.
    """
    mine, theirs = Counter(train), Counter(val)
    shared = sum(count for row, count in theirs.items() if row in mine)
    twins = sum(count for count in mine.values() if count > 1) / max(len(train), 1)
    fraction = len(val) / max(len(train) + len(val), 1)
    sizes = [(mine[row] + theirs[row]) for row in {*mine, *theirs}]
    chances = [1 - fraction**s - (1 - fraction) ** s for s in sizes if s > 1]
    mixed = sum(1 for row in theirs if row in mine)
    mean = sum(chances) / len(chances) if chances else 0.0
    expected = mean * len(chances)
    p = stats.binomial_sf(mixed, len(chances), mean) if mixed > expected + 1 else 1.0
    return Overlap(len(train), len(val), shared, twins, p)


@dataclass(frozen=True)
class Shared:
    """What :class:`SharedRows` found.

    Attributes:
        by_number: of rows known by their number in the store that both sets read; None where
            there is no such store.
        by_store: of rows as the two stores hold them; None where they cannot be read.
        by_content: of rows as they come out of the loaders; None where these draw them anew.
        train, val: the rows that came out; ``val`` is None where its batches have another form.
        rich: the share of the rows equal to others that differ from all the rest in many elements:
            copies. 0 unless there are a few of them, or all of them are so.
        windows: the share of validation rows the middle of which lies in a training row, at any
            place: windows of one series that overlap.
        near: the share of validation pictures or signals that have a near copy among those of
            training, as it is or mirrored, and no equal one.
    """

    by_number: Overlap | None
    by_store: Overlap | None
    by_content: Overlap | None
    train: Rows
    val: Rows | None
    rich: float
    windows: float = 0.0
    near: float = 0.0


class SharedRows(Probe[Shared]):
    """The rows that both sets hold: by number where they read one store, else by content."""

    probes = (TrainRows, ValRows)

    def measure(self, audit: Audit) -> Shared:
        """Compare the rows, and the stores they come from.

        Raises:
            UserCodeError: a sampler of the user's raised.
        """
        read, val = audit.probe(TrainRows), audit.probe(ValRows)
        train = read.rows
        content = None
        if val is not None and not (train.random or val.random) and train.whole == val.whole:
            found = overlap(train.items, val.items)
            content = dataclasses.replace(found, coverage=train.coverage)
        number, store = _by_store(audit, read.layout)
        counts, theirs = Counter(train.items), {*val.items} if val is not None else set()
        equal = [i for i, row in enumerate(train.items) if counts[row] > 1 or row in theirs]
        windows = 0.0
        if val is not None:
            windows = max(overlapping_windows(train, val), overlapping_texts(train, val))
        compared = val is not None and content is not None
        near = near_copies(train, val) if compared and val is not None else 0.0
        return Shared(number, store, content, train, val, rich_share(train, equal), windows, near)


def overlapping_windows(train: Rows, val: Rows) -> float:
    """Return the share of ``val`` of which the middle half is part of a row of ``train``.

    Rows are one sequence of quantities each, (T,) or (T, C) with one T of 8 to 512. A middle that
    repeats itself (fewer different values than half its steps), as silence does, is left out; two
    that are equal to the bit are one and the same piece of a series.
    """
    mine, theirs = _sequences(train), _sequences(val)
    if mine is None or theirs is None or mine.shape[1:] != theirs.shape[1:]:
        return 0.0
    # A split by time leaves a quarter of a window's steps to overlap at the seam: few of many.
    if len(theirs) < max(_FEWEST_WINDOWS, mine.shape[1] / 2):
        return 0.0
    length = mine.shape[1] // 2
    start = (mine.shape[1] - length) // 2
    middles = [m for m in theirs[:, start : start + length] if 2 * len(np.unique(m)) > length]
    if not middles:
        return 0.0
    pieces = {
        np.ascontiguousarray(row[at : at + length]).tobytes()
        for row in mine
        for at in range(mine.shape[1] - length + 1)
    }
    return sum(np.ascontiguousarray(m).tobytes() in pieces for m in middles) / len(theirs)


def overlapping_texts(train: Rows, val: Rows) -> float:
    """Return the share of ``val`` of which a half, from any place on, is part of one of ``train``.

    Rows are token ids (T,) of one length: windows that are cut from one text at other places share
    at least that. 0 where as many backward ones are found, so that the pieces are equal by chance.
    The row of ``train`` with the piece was read with the chance that any was.
    """
    mine, theirs = _token_rows(train), _token_rows(val)
    if mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
        return 0.0
    length, read = mine.shape[1] // 2, len(mine) / max(len(train.items), len(mine))
    if length < _PIECE or len(theirs) < _FEWEST_WINDOWS or read * train.coverage < _ENOUGH_READ:
        return 0.0
    known = {piece for row in mine for piece in _pieces(row, length)}
    forward, backward = (
        sum(any(piece in known for piece in _pieces(row, length)) for row in rows) / len(rows)
        for rows in (theirs, theirs[:, ::-1])
    )
    return min(1.0, forward / read) if backward < _BY_CHANCE else 0.0


def _pieces(row: NDArray[Any], length: int) -> Iterator[int]:
    """Yield a hash of each piece of ``row``, which takes less memory than the piece."""
    row = np.ascontiguousarray(row)
    return (hash(row[at : at + length].tobytes()) for at in range(len(row) - length + 1))


def _token_rows(rows: Rows) -> NDArray[Any] | None:
    """The first token ids of the rows, (N, T); None where there are none, or of several lengths."""
    texts = (values for values in rows.sample.values() if values and _is_text(values[0]))
    values = next(texts, [])
    if not values or len({value.shape for value in values}) != 1:
        return None
    table = np.stack([np.asarray(value) for value in values])
    return table if table.size <= _MOST_TOKENS else None


def _is_text(value: Tensor) -> bool:
    return value.ndim == 1 and not value.is_floating_point() and value.dtype is not torch.bool


def near_copies(train: Rows, val: Rows) -> float:
    """Return the share of ``val`` with a near copy in ``train``, and no equal one.

    Of pictures, and of signals of several steps and channels. Near is a quarter of the distance to
    the twentieth nearest one. A copy may be mirrored. 0
    for pictures of few degrees of freedom, such as a disc somewhere, whose nearest ones are near
    without being copies.
    """
    mine, theirs = _planes(train), _planes(val)
    if mine is None or theirs is None or mine.shape[1:] != theirs.shape[1:]:
        return 0.0
    if len(mine) <= 5 * _CROWD or len(theirs) < _FEWEST_NEAR:
        return 0.0
    distances = torch.stack(
        [
            torch.cdist(way.flatten(1), mine.flatten(1))
            for way in (theirs, theirs.flip(-1), theirs.flip(-2))
        ]
    )
    crowd = distances[0].kthvalue(_CROWD, 1).values
    if _near_by_chance(crowd, distances[0].kthvalue(2 * _CROWD, 1).values) > _BY_CHANCE:
        return 0.0
    equal = {*train.inputs}
    fresh = torch.tensor([row not in equal for row in val.inputs[: len(theirs)]])
    return float(((distances.amin((0, 2)) < _NEAR * crowd) & fresh).double().mean())


def _near_by_chance(crowd: Tensor, larger: Tensor) -> float:
    """Return how many pictures have one that is near, of three ways to hold it, without a copy.

    Of points that fill ``d`` dimensions evenly, twice as many lie within ``2 ** (1 / d)`` times the
    distance: how that grows from the twentieth nearest to the fortieth tells ``d``, and that the
    share of the nearest within a part of it.
    """
    growth = float((larger / crowd.clamp_min(1e-12)).median())
    if growth <= 1.0:
        return 0.0
    dimensions = math.log(2.0) / math.log(growth)
    return float(3.0 * (1.0 - (1.0 - _NEAR**dimensions) ** (_CROWD - 1)))


def _planes(rows: Rows) -> Tensor | None:
    """The first rows as (N, C, H, W); None where they are no pictures or signals of one size.

    Signals (N, T, C) or (N, C, T) become (N, 1, T, C) and (N, 1, C, T).
    """
    if len(rows.sample) != 1:
        return None
    (values,) = rows.sample.values()
    values = values[:_COMPARED]
    if not values or not values[0].is_floating_point() or len({v.shape for v in values}) != 1:
        return None
    table = torch.stack(values).float()
    if not bool(torch.isfinite(table).all()):
        return None
    if table.ndim == 3 and max(table.shape[1:]) >= _STEPS:
        return table[:, None]
    return table if table.ndim == 4 and min(table.shape[-2:]) > 4 else None


def _sequences(rows: Rows) -> NDArray[Any] | None:
    """Rows as (N, T, C); None where they are not one sequence of quantities of one length each."""
    if len(rows.sample) != 1:
        return None
    (values,) = rows.sample.values()
    if not values or len({value.shape for value in values}) != 1:
        return None
    first = values[0]
    if not first.is_floating_point() or first.ndim not in (1, 2) or not 8 <= len(first) <= 512:
        return None
    table = torch.stack(values).float().numpy()
    return table.reshape(len(table), len(first), -1)


def _by_store(audit: Audit, layout: Layout) -> tuple[Overlap | None, Overlap | None]:
    """Compare the stores: rows by number where there is one store, by what is held where two.

    A setting such as ``part="val"`` may take another part of each row, and then both sets ask for
    all rows. Where only some rows are shared they were split, and a setting (``train=False``) says
    how they are dressed.
    """
    access = RandomAccess.of(audit.loop.train_loader)
    train, val = Stored.of(access), Stored.of(RandomAccess.of(audit.loop.val_loader))
    if access is None or train is None or val is None:
        return None, None
    alike = train.is_seen_like(val)
    if train.base is val.base:
        if not _depends_on_index(access, layout):
            return None, None
        rows = set(train.rows)
        shared = sum(row in rows for row in val.rows)
        same_items = alike and (rows != set(val.rows) or train.is_set_like(val))
        certain = same_items and _collated_alike(audit)
        return Overlap(
            len(rows), len(val.rows), shared, 0.0, 0.0, by_number=True, certain=certain
        ), None
    hashes = (train.hashes(), val.hashes()) if alike else (None, None)
    if hashes[0] is None or hashes[1] is None:
        return None, None
    same_items = set(hashes[0]) != set(hashes[1]) or train.is_set_like(val)
    return None, dataclasses.replace(overlap(hashes[0], hashes[1]), certain=same_items)


def _collated_alike(audit: Audit) -> bool:
    """Whether both loaders make batches in the same way, as far as the function's code says."""
    one, other = audit.loop.train_loader.collate_fn, audit.loop.val_loader.collate_fn
    return getattr(one, "__code__", type(one)) is getattr(other, "__code__", type(other))


def _depends_on_index(access: RandomAccess, layout: Layout) -> bool:
    """Whether items differ by their number, and not only by the random numbers drawn for them."""
    asked = [i for one in access.index_batches(most=64) for i in one]
    some = asked[:: max(1, len(asked) // 8)][:8]
    try:
        return len({hash_under(access, layout, i, 1) for i in some}) > 1
    except UserCodeError:
        return False


def is_rich(rows: Rows, which: Collection[int] = ()) -> bool:
    """Whether nine in ten rows differ from their nearest other in many elements: equal are copies.

    Only the rows at the places ``which`` are looked at, as in :func:`rich_share`.
    """
    return rich_share(rows, which) >= MOSTLY


def rich_share(rows: Rows, which: Collection[int] = ()) -> float:
    """Return the share of rows that differ from their nearest other in many elements.

    Among rows made of a few discrete values (one-hot, counts, short words) next to every row there
    are others that differ in one or two, and equal ones are to be expected. Where a row differs
    from all others in :data:`RICH` elements, an equal one is a copy. Where fewer elements vary, all
    rows are so (1) if some element is a quantity, else none. Only the rows at the places ``which``
    are looked at, where any of these was sampled: a text may repeat its short lines, and not its
    long ones.
    """
    flat = _flattened(rows)
    if flat is None or len(flat) < 8:
        return 0.0
    varying = flat[:, (flat != flat[:1]).any(0)]
    if varying.shape[1] < RICH:
        return float(_holds_a_quantity(rows, varying))
    sampled = ([i for i in which if i < len(flat)] or list(range(len(flat))))[:_LOOKED_AT]
    rich = sum(_to_nearest(varying, i) >= RICH for i in sampled)
    few = rich < min(_FEWEST_RICH, len(sampled))
    return 0.0 if few else rich / len(sampled)


def _holds_a_quantity(rows: Rows, varying: Tensor) -> bool:
    """Whether some column of the inputs takes a value of its own in every second row."""
    if not all(values[0].is_floating_point() for values in rows.sample.values()):
        return False
    return any(2 * len(torch.unique(column)) >= len(column) for column in varying.T)


def _to_nearest(rows: Tensor, which: int) -> int:
    """In how many elements the nearest row that is not the same differs; 0 where all are."""
    differing = (rows != rows[which]).sum(1)
    differing = differing[differing > 0]
    return int(differing.min()) if len(differing) else 0


def _flattened(rows: Rows) -> Tensor | None:
    """The first rows as vectors (rows, elements); of several lengths, padded with zeros."""
    parts = []
    for values in rows.sample.values():
        vectors = [value.flatten()[:_COLUMNS].double() for value in values[:_COMPARED]]
        longest = max((len(vector) for vector in vectors), default=0)
        if longest:
            padded = [torch.nn.functional.pad(v, (0, longest - len(v))) for v in vectors]
            parts.append(torch.stack(padded))
    return torch.cat(parts, 1)[:, :_COLUMNS] if parts else None
