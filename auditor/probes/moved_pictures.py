"""Whether masks, boxes and key points move along when augmentation moves their picture.

Read several times, an item comes out in several ways. Where one reading's picture is the exact
mirror image of another's, or turned, its mask must be that of the other's mask, and coordinates
must have changed: those along the axis of the move, and so that corners keep their order.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.measure.random_access import RandomAccess
from nnaudit.probes.rows import Layout, TrainRows, alone, columns_of

ITEMS = 24
READINGS = 5
_STILL = 4
"""After so many items that are the same at each reading, no picture is expected to move."""

HELD_OUT = 128
SECONDS = 3.0

_MOST_NUMBERS = 400
"""Targets of more numbers, and not of the picture's size, are no coordinates."""

_RHO, _Z = 0.5, 5.0
"""Of a rank correlation, and times the root of the items: chance reaches this once in two million,
and what goes with the shape of things, such as their kind, does not reach the first."""

_UNRELATED = 0.25
"""Numbers of less correlation with where things lie along an axis have nothing to do with it."""

_FEWEST = 16
"""Validation items below which nothing is said of them."""

_CORNERS = 4
"""Numbers of a box: left, top, right and bottom."""

_AXES = {"mirrored": -1, "turned upside down": -2}
"""Moves that change the coordinates along one axis only."""

Move = Callable[[Tensor], Tensor]

MOVES: dict[str, Move] = {
    "mirrored": lambda t: t.flip(-1),
    "turned upside down": lambda t: t.flip(-2),
    "turned by 180 degrees": lambda t: t.flip(-1, -2),
    "turned by 90 degrees": lambda t: t.rot90(1, (-2, -1)),
    "turned by 270 degrees": lambda t: t.rot90(3, (-2, -1)),
}
"""What can be done to the last two axes of a picture without changing any pixel."""


@dataclass(frozen=True)
class LeftBehind:
    """One target of pictures that move.

    Attributes:
        target: its path in an item.
        mask: it is of the picture's size; else coordinates.
        move: what is done to the picture, most often.
        moved: how many readings have a moved picture and a target that the move would change.
        left: how many of these targets did not move as the picture did.
        follows: on validation items such targets are where the picture has something; None without
            enough of these.
        inverted: how many times a move put the right side of a box to the left of its left one, or
            its bottom above its top, which no validation item has.
    """

    target: str
    mask: bool
    move: str
    moved: int
    left: int
    follows: bool | None
    inverted: int = 0


@dataclass
class _Seen:
    """What was seen of one target.

    ``partly`` counts, by move, the columns of coordinates that stood still while others changed.
    """

    mask: bool
    moves: list[str]
    left: int = 0
    inverted: int = 0
    partly: Counter[tuple[str, tuple[bool, ...]]] = field(default_factory=Counter)


class MovedPictures(Probe[tuple[LeftBehind, ...]]):
    """The targets that some move of their picture does not move; none where no picture moves."""

    probes = (TrainRows,)

    def measure(self, audit: Audit) -> tuple[LeftBehind, ...]:
        """Read some items several times each, and validation items once.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        access = RandomAccess.of(audit.loop.train_loader)
        layout = audit.probe(TrainRows).layout
        if access is None or access.loader.batch_sampler is None or not layout.targets:
            return ()
        seen: dict[str, _Seen] = {}
        started, changed = time.perf_counter(), False
        try:
            for count, index in enumerate(access.spread(ITEMS)):
                audit.clock.check()
                read = (_Item.of(access, layout, index) for _ in range(READINGS))
                readings = [each for each in read if each is not None]
                _compare(readings, seen)
                changed = changed or _differ(readings)
                still = not changed and count >= _STILL
                if not readings or still or time.perf_counter() - started > SECONDS:
                    break
        except UserCodeError:
            return ()  # what worker_init_fn sets up exists in workers only
        return tuple(
            found
            for path, each in seen.items()
            if (found := _left_behind(audit, layout, path, each)) is not None
        )


def _left_behind(audit: Audit, layout: Layout, path: str, seen: _Seen) -> LeftBehind | None:
    """Judge one target by validation items; None where it moves with its picture."""
    if not (seen.left or seen.inverted or seen.partly):
        return None
    items = _held_out(audit, layout)
    pairs = [(item.picture, item.targets[path]) for item in items if path in item.targets]
    move = Counter(seen.moves).most_common(1)[0][0]
    moved = len(seen.moves)
    if seen.left:
        follows = _follows(pairs, mask=seen.mask, move=move)
        return LeftBehind(path, seen.mask, move, moved, seen.left, follows)
    if seen.inverted and len(pairs) >= _FEWEST and all(_is_upright(each) for _, each in pairs):
        return LeftBehind(path, False, move, moved, 0, None, inverted=seen.inverted)
    for (name, still), times in seen.partly.most_common(1):
        if follows_still_columns(pairs, _AXES[name], still):
            return LeftBehind(path, False, name, moved, times, True)
    return None


@dataclass(frozen=True)
class _Item:
    """One reading: a picture, (C, H, W) or (H, W), and the targets by path."""

    picture: Tensor
    targets: dict[str, Tensor]

    @classmethod
    def of(cls, access: RandomAccess, layout: Layout, index: Any) -> _Item | None:
        """Read one item; None where it has no picture.

        Raises:
            UserCodeError: the data set raised.
        """
        columns = columns_of(access.fetch([index]))
        inputs = [alone(columns[path]) for path in layout.inputs if path in columns]
        pictures = [each for each in inputs if each.ndim in (2, 3) and min(each.shape[-2:]) > 4]
        if len(pictures) != 1:
            return None
        targets = {p: alone(columns[p]) for p in layout.targets if p in columns}
        return cls(pictures[0], targets)


def _differ(readings: Sequence[_Item]) -> bool:
    return any(not torch.equal(readings[0].picture, each.picture) for each in readings[1:])


def _compare(readings: Sequence[_Item], seen: dict[str, _Seen]) -> None:
    for other in readings[1:]:
        first = readings[0]
        name = move_between(first.picture, other.picture)
        if name is None:
            continue
        for path, target in first.targets.items():
            later = other.targets.get(path)
            mask = target.shape[-2:] == first.picture.shape[-2:] and target.ndim >= 2
            if later is None or not (mask or _are_coordinates(target)):
                continue
            left = is_left(target, later, MOVES[name]) if mask else torch.equal(target, later)
            if left is None:
                continue
            noted = seen.setdefault(path, _Seen(mask, []))
            noted.moves.append(name)
            noted.left += left
            if not mask and not left and target.shape == later.shape:
                noted.inverted += _is_upright(target) != _is_upright(later)
                still = still_columns(target, later)
                if name in _AXES and any(still):
                    noted.partly[name, still] += 1


def move_between(one: Tensor, other: Tensor) -> str | None:
    """Return which of :data:`MOVES` makes ``other`` of ``one``; None for none and no change."""
    if one.shape != other.shape or torch.equal(one, other):
        return None
    for name, move in MOVES.items():
        moved = move(one)
        if moved.shape == other.shape and torch.equal(moved, other):
            return name
    return None


def is_left(mask: Tensor, later: Tensor, move: Move) -> bool | None:
    """Whether ``later`` is ``mask``, moved in another way than by ``move``, or not at all.

    None where that cannot be told: the move does not change it, or it is another mask.
    """
    expected = move(mask)
    if torch.equal(expected, mask):
        return None
    if expected.shape == later.shape and torch.equal(expected, later):
        return False
    ways = (mask, *(each(mask) for each in MOVES.values()))
    known = any(way.shape == later.shape and torch.equal(way, later) for way in ways)
    return True if known else None


def _are_coordinates(target: Tensor) -> bool:
    return target.is_floating_point() and 1 < target.numel() <= _MOST_NUMBERS


def still_columns(one: Tensor, other: Tensor) -> tuple[bool, ...]:
    """Return which numbers are the same in all boxes or points, (..., L), of both."""
    tables = [each.reshape(-1, each.shape[-1]) for each in (one, other)]
    return tuple((tables[0] == tables[1]).all(0).tolist())


def _is_upright(target: Tensor) -> bool:
    """Whether boxes (..., 4) have their right side right of the left one, and the bottom below.

    True of what are no boxes.
    """
    if not target.ndim or target.shape[-1] != _CORNERS:
        return True
    left, top, right, bottom = target.reshape(-1, _CORNERS).T
    return bool((left <= right).all() and (top <= bottom).all())


# --- whether targets are where the picture has something ------------------------------------------


_Pairs = Sequence[tuple[Tensor, Tensor]]
"""Pictures of validation items, each with a target."""


def _follows(pairs: _Pairs, *, mask: bool, move: str) -> bool | None:
    if mask:
        return masks_follow(pairs, MOVES[move])
    return coordinates_follow(pairs, _AXES.get(move, -1))


def _held_out(audit: Audit, layout: Layout) -> Iterator[_Item]:
    loop = audit.loop
    access = None if loop.lacks(Needs.VAL_LOADER) else RandomAccess.of(loop.val_loader)
    started = time.perf_counter()
    for index in access.spread(HELD_OUT) if access is not None else ():
        try:
            item = _Item.of(access, layout, index) if access is not None else None
        except UserCodeError:
            return
        if item is not None:
            yield item
        if time.perf_counter() - started > SECONDS:
            return


def masks_follow(pairs: _Pairs, move: Move) -> bool | None:
    """Whether masks have more to do with their pictures as they are than with moved ones.

    A sign test over the items, at :data:`nnaudit.stats.ALPHA`; None for fewer than :data:`_FEWEST`.
    """
    wins = trials = 0
    for picture, mask in pairs:
        gray = picture.float().reshape(-1, *picture.shape[-2:]).mean(0)
        shape = mask.float().reshape(-1, *mask.shape[-2:]).mean(0)
        if gray.shape != shape.shape or torch.equal(move(shape), shape):
            continue
        own, moved = _correlation(gray, shape), _correlation(move(gray), shape)
        trials += own != moved
        wins += own > moved
    return None if trials < _FEWEST else stats.binomial_sf(wins, trials, 0.5) < stats.ALPHA


def _correlation(one: Tensor, other: Tensor) -> float:
    table = torch.stack([one.flatten(), other.flatten()]).double()
    return abs(float(torch.corrcoef(table)[0, 1].nan_to_num()))


def coordinates_follow(pairs: _Pairs, axis: int) -> bool | None:
    """Whether some number of the targets goes with where the picture's weight lies along ``axis``.

    By rank correlation; None for fewer than 48 items. Of several boxes the means are taken.
    """
    found = _correlations(pairs, axis)
    return None if found is None else bool((found > _bound(pairs)).any())


def follows_still_columns(pairs: _Pairs, axis: int, still: Sequence[bool]) -> bool:
    """Whether only numbers that stood ``still`` go with where things lie along ``axis``.

    Those that changed have nothing to do with it: the picture was moved along one axis, and its
    boxes or key points along the other.
    """
    found = _correlations(pairs, axis)
    if found is None or len(found) != len(still):
        return False
    stood = np.array(still)
    return bool((found[stood] > _bound(pairs)).any() and (found[~stood] < _UNRELATED).all())


def _bound(pairs: _Pairs) -> float:
    return max(_RHO, _Z / math.sqrt(len(pairs)))


def _correlations(pairs: _Pairs, axis: int) -> NDArray[np.float64] | None:
    """Return how each number of the targets goes with where the weight lies; None for too few.

    0 for numbers of one or two values.
    """
    lengths = {target.shape[-1] if target.ndim else 1 for _, target in pairs}
    if len(pairs) < 48 or len(lengths) != 1:
        return None
    centres = np.array([_centre(picture, axis) for picture, _ in pairs])
    table = np.stack([target.double().reshape(-1, *lengths).mean(0).numpy() for _, target in pairs])
    return np.array(
        [
            abs(stats.spearman(centres, column)) if len(np.unique(column)) > 2 else 0.0
            for column in table.T
        ]
    )


def _centre(picture: Tensor, axis: int) -> float:
    """Return where what differs from the commonest brightness lies along ``axis``, in pixels."""
    gray = picture.double().reshape(-1, *picture.shape[-2:]).mean(0)
    weight = (gray - gray.median()).abs().sum(-2 if axis == -1 else -1)
    places = torch.arange(len(weight), dtype=torch.float64)
    return float((weight * places).sum() / weight.sum().clamp_min(1e-12))
