"""Whether the labels of tokens stand one place beside the tokens that they are of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

_OFFSETS = (-2, -1, 0, 1, 2)

_FEWEST_ROWS, _FEWEST_ERRORS, _FEWEST_OTHERS = 64, 50, 5

_MOST_KINDS = 64
"""Labels of more kinds are tokens or numbers."""

_EXPLAINED, _UNEXPLAINED = 0.3, 0.7
"""Errors that knowing a token leaves, against those of always the most frequent label: of the token
beside, and of the label's own. Tags that words decide alone leave next to none at their own place
and nearly all at the next."""


@dataclass(frozen=True)
class LabelShift:
    """Labels that belong to another place.

    Attributes:
        offset: how many places after the label its token is.
        explained, own: by how much the token there lessens the errors of always the most frequent
            label, and by how much the label's own does.
        first: the token that begins every row, and has labels of several kinds.
    """

    offset: int
    explained: float
    own: float
    first: int


def label_shift(texts: Sequence[tuple[Tensor, Tensor]], ignored: int) -> LabelShift | None:
    """Return how labels are shifted against token ids, both of shape ``(N, T)``; None if not.

    Two things must be seen. Every row begins with the same token, and that has labels of several
    kinds, five of them not the most frequent: a token that is always the same says nothing. And of
    half of the rows a table from tokens to labels tells the other half's labels by the token
    beside, but not by the label's own (:data:`_EXPLAINED`, :data:`_UNEXPLAINED`).
    """
    rows = [
        (ids, labels)
        for some, theirs in texts
        for ids, labels in zip(some.tolist(), theirs.tolist(), strict=True)
    ]
    kinds = {label for _, labels in rows for label in labels if label != ignored}
    first = _constant_first(rows, ignored)
    if first is None or len(rows) < _FEWEST_ROWS or not 2 <= len(kinds) <= _MOST_KINDS:
        return None
    half = len(rows) // 2
    left = {k: _left(rows[:half], rows[half:], k, ignored) for k in _OFFSETS}
    own, best = left[0], min(left, key=lambda k: left[k].share)
    few = min(own.usual, left[best].usual) < _FEWEST_ERRORS
    if best == 0 or few or left[best].share > _EXPLAINED or own.share < _UNEXPLAINED:
        return None
    return LabelShift(best, 1 - left[best].share, 1 - own.share, first)


def _constant_first(rows: Iterable[tuple[list[int], list[int]]], ignored: int) -> int | None:
    """Return the token that begins every row, where its labels differ; None otherwise."""
    tokens, labels = set[int](), Counter[int]()
    for ids, theirs in rows:
        tokens.add(ids[0])
        labels[theirs[0]] += 1
    if len(tokens) != 1 or ignored in labels:
        return None
    others = sum(labels.values()) - labels.most_common(1)[0][1]
    return tokens.pop() if others >= _FEWEST_OTHERS else None


@dataclass(frozen=True)
class _Left:
    """Errors of the labels that a table tells, and of always the most frequent label there."""

    told: int
    usual: int

    @property
    def share(self) -> float:
        return self.told / self.usual if self.usual else 1.0


def _left(
    known: list[tuple[list[int], list[int]]],
    asked: list[tuple[list[int], list[int]]],
    offset: int,
    ignored: int,
) -> _Left:
    """Return what is left of the errors in ``asked``, told by the token ``offset`` places on.

    Only places count whose token ``known`` has twice or more.
    """
    table: dict[int, Counter[int]] = defaultdict(Counter)
    usual: Counter[int] = Counter()
    for token, label in _pairs(known, offset, ignored):
        table[token][label] += 1
        usual[label] += 1
    best = {t: found.most_common(1)[0][0] for t, found in table.items() if found.total() > 1}
    default = usual.most_common(1)[0][0] if usual else ignored
    places = [(best[t], label) for t, label in _pairs(asked, offset, ignored) if t in best]
    return _Left(
        sum(told != label for told, label in places),
        sum(default != label for _, label in places),
    )


def _pairs(
    rows: list[tuple[list[int], list[int]]], offset: int, ignored: int
) -> Iterator[tuple[int, int]]:
    for ids, labels in rows:
        for place, label in enumerate(labels):
            if label != ignored and 0 <= place + offset < len(ids):
                yield ids[place + offset], label
