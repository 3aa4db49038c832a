"""Whether the labels of tokens stand one place beside the tokens that they are of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

_OFFSETS = (-2, -1, 0, 1, 2)

_FEWEST_ROWS, _FEWEST_TOKENS = 64, 1000

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
        explained, own: the share of labels that the token there tells right, and the label's own.
        first: the token that begins every row, and has labels of several kinds.
    """

    offset: int
    explained: float
    own: float
    first: int


def label_shift(texts: Sequence[tuple[Tensor, Tensor]], ignored: int) -> LabelShift | None:
    """Return how labels are shifted against token ids, both of shape ``(N, T)``; None if not.

    Two things must be seen. Every row begins with the same token, and that has labels of several
    kinds, the most frequent under 90%: a token that is always the same says nothing. And of half
    of the rows a table from tokens to labels tells the other half's labels by the token beside,
    but not by the label's own (:data:`_EXPLAINED`, :data:`_UNEXPLAINED`).
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
    right = {offset: _told(rows[:half], rows[half:], offset, ignored) for offset in _OFFSETS}
    counts = Counter(y for _, labels in rows[half:] for y in labels if y != ignored)
    total = sum(counts.values())
    wrong = total - counts.most_common(1)[0][1]
    best = max(right, key=lambda offset: right[offset])
    if total < _FEWEST_TOKENS or best == 0 or wrong == 0:
        return None
    left, own = ((total - right[offset]) / wrong for offset in (best, 0))
    if left > _EXPLAINED or own < _UNEXPLAINED:
        return None
    return LabelShift(best, right[best] / total, right[0] / total, first)


def _constant_first(rows: Iterable[tuple[list[int], list[int]]], ignored: int) -> int | None:
    """Return the token that begins every row, where its labels differ; None otherwise."""
    tokens, labels = set[int](), Counter[int]()
    for ids, theirs in rows:
        tokens.add(ids[0])
        labels[theirs[0]] += 1
    if len(tokens) != 1 or ignored in labels:
        return None
    share = labels.most_common(1)[0][1] / sum(labels.values())
    return tokens.pop() if share < 0.9 else None


def _told(
    known: list[tuple[list[int], list[int]]],
    asked: list[tuple[list[int], list[int]]],
    offset: int,
    ignored: int,
) -> int:
    """Return how many labels of ``asked`` the token ``offset`` places on tells right."""
    table: dict[int, Counter[int]] = defaultdict(Counter)
    usual: Counter[int] = Counter()
    for ids, labels in known:
        for place, label in enumerate(labels):
            if label != ignored:
                usual[label] += 1
                if 0 <= place + offset < len(ids):
                    table[ids[place + offset]][label] += 1
    default = usual.most_common(1)[0][0] if usual else ignored
    best = {token: found.most_common(1)[0][0] for token, found in table.items()}
    right = 0
    for ids, labels in asked:
        for place, label in enumerate(labels):
            if label != ignored:
                there = place + offset
                token = ids[there] if 0 <= there < len(ids) else -1
                right += best.get(token, default) == label
    return right
