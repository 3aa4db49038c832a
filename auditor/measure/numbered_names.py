"""Names that two data sets number: vocabularies and lists of classes among their attributes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

_NUMBERING = re.compile(
    r"vocab|stoi|itos|words?$|tokens?$|alphabet|charset|class|categor|label_?names|"
    r"(word|token|char|label|tag|name)s?_?(2|to)_?(i|idx|id|index|int)",
    re.IGNORECASE,
)
"""Names of attributes by which an item's words or classes become numbers."""

_FEWEST = 3
"""Names in common below which two lists are hardly of the same things."""

_DEPTH = 6


@dataclass(frozen=True)
class Renamed:
    """One name that both data sets number differently.

    Attributes:
        attribute: which holds the numbers: "vocab".
        name: the name; ``train`` and ``val`` are its numbers.
        differing, common: how many names have two numbers, of those that both sets have.
    """

    attribute: str
    name: str
    train: int
    val: int
    differing: int
    common: int


def renamed(train: Any, val: Any) -> Renamed | None:
    """Return what the data sets ``train`` and ``val``, of one class, number differently, if any."""
    for mine, theirs in zip(_views(train), _views(val), strict=False):
        if mine is theirs or type(mine) is not type(theirs) or not hasattr(mine, "__dict__"):
            continue
        found: list[Renamed] = []
        for attribute, value in vars(mine).items():
            one, other = _numbers(value, mine), _numbers(vars(theirs).get(attribute), theirs)
            common = [name for name in one if name in other]
            differing = [name for name in common if one[name] != other[name]]
            if len(common) < _FEWEST:
                continue
            if not differing:
                return None  # by this the items may be numbered
            if _NUMBERING.search(attribute):
                name = differing[0]
                of = len(differing), len(common)
                found.append(Renamed(attribute, name, one[name], other[name], *of))
        if found:
            return found[0]
    return None


def _views(dataset: Any) -> Iterator[Any]:
    """Yield the data set and those that it is a view of, outermost first."""
    for _ in range(_DEPTH):
        if dataset is None:
            return
        if not isinstance(dataset, Subset):
            yield dataset
        dataset = getattr(dataset, "dataset", None)


def _numbers(value: Any, dataset: Any) -> dict[str, int]:
    """Return the number of each name; empty for what numbers none, such as a text for each row."""
    if isinstance(value, Mapping):
        found = {name: number for name, number in value.items() if isinstance(name, str)}
        whole = all(type(number) is int for number in found.values())
        return found if whole and len(found) == len(value) else {}
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        return {}
    if len(set(value)) < len(value) or len(value) == _length(dataset):
        return {}
    return {name: number for number, name in enumerate(value)}


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return -1
