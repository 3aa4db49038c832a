"""What the names in a script say of what they stand for: data to train on, or to validate with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

Purpose = Literal["training", "validation"]
Named = Literal["data", "text", "function"]
"""What has a name that tells a purpose."""

VALIDATION = (
    ("val", "valid", "validation"), ("dev",), ("eval", "evaluation"), ("test",),
    ("holdout", "heldout"),
)  # fmt: skip
"""Words in the names that scripts give to their validation data, the best first."""

TRAINING = frozenset({"train", "training"})

_VALIDATES = frozenset(word for meant in VALIDATION for word in meant)
_SHORT = {"tr": "train", "trn": "train", "va": "val", "te": "test", "tst": "test"}
"""As in ``Xtr`` and ``y_te``."""

_FUNCTIONS = frozenset({"val", "valid", "validate", "validation", "dev", "test"})
"""Words in the names of functions; many an ``evaluate`` is called with training data, too."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LOADERS = re.compile(r"(data)?(loaders?|sets?|iter|batch(es)?|dl|ds|gen|generator)$")
_MANY = 200
"""Entries beyond which a dictionary is data: a vocabulary, an index."""
_ITEMS = 10_000
_LETTERS = 24
"""Beyond this a text is no name of a part of the data."""


def words(name: str) -> set[str]:
    """Return the words of a name in snake or camel case, in lower case.

    What is written together with a word for a loader counts by itself: ``testloader``.
    """
    found = {word.lower() for word in _WORD.findall(name)}
    return found | {_LOADERS.sub("", word) for word in found}


def held_by(value: Any) -> list[tuple[str, Any]]:
    """Return what a dictionary, or an object of a class of the script's own, holds by name."""
    own = type(value).__module__ == "__main__"
    held = value if type(value) is dict else getattr(value, "__dict__", None) if own else None
    if not isinstance(held, dict) or len(held) > _MANY:
        return []
    return [(name, each) for name, each in list(held.items()) if isinstance(name, str)]


def named_values() -> Iterator[tuple[str, Any]]:
    """Yield what the variables of the calling thread's user frames hold, and what that holds."""
    seen: set[int] = set()
    for frame in callstack.user_frames():
        for variables in (frame.f_globals, frame.f_locals):
            if id(variables) in seen:
                continue
            seen.add(id(variables))
            for name, value in list(variables.items()):
                yield name, value
                yield from held_by(value)


def names_of(things: Iterable[Any]) -> set[str]:
    """Return the words of all names under which any of the ``things`` is held."""
    wanted = {id(thing) for thing in things if thing is not None}
    names = {name for name, value in named_values() if id(value) in wanted}
    return {word for name in names for word in words_of_data(name)}


def purpose_of(tensors: Sequence[Tensor]) -> tuple[Purpose, Named] | None:
    """Return what a network is called with ``tensors`` for, as far as the script's names tell.

    First by the variables that hold the tensors, or what they are a part of; then by a text in a
    variable of the functions on the way (``split="val"``); then by the names of these functions.
    Returned with which of these tell, for each says less than the one before.
    """
    functions = [frame for frame in callstack.user_frames() if not callstack.is_module(frame)]
    told: dict[Named, set[str]] = {
        "data": _holders(tensors),
        "text": _texts(functions),
        "function": {
            "val" if word in _FUNCTIONS else word
            for frame in functions
            for word in words(frame.f_code.co_name) & (_FUNCTIONS | TRAINING)
        },
    }
    found = ((meaning(names), named) for named, names in told.items())
    return next(((purpose, named) for purpose, named in found if purpose is not None), None)


def meaning(names: Collection[str]) -> Purpose | None:
    """Return what words mean; None where they say nothing, or both."""
    validates, trains = not _VALIDATES.isdisjoint(names), not TRAINING.isdisjoint(names)
    if validates == trains:
        return None
    return "validation" if validates else "training"


def _texts(frames: Iterable[FrameType]) -> set[str]:
    values = [value for frame in frames for value in frame.f_locals.values()]
    texts = [value for value in values if type(value) is str and len(value) <= _LETTERS]
    return {word for text in texts for word in words(text)}


def _holders(tensors: Sequence[Tensor]) -> set[str]:
    """Return the words of the names that hold one of the ``tensors``, else the least around it."""
    exact: set[str] = set()
    around: list[tuple[int, set[str]]] = []
    for name, value in named_values():
        for tensor in tensors:
            if is_held(tensor, value):
                exact |= words_of_data(name)
            elif isinstance(value, Tensor) and _lies_within(tensor, value):
                around.append((value.numel(), words_of_data(name)))
    if meaning(exact) is not None or not around:
        return exact
    least = min(size for size, _ in around)
    return {word for size, found in around if size == least for word in found}


def words_of_data(name: str) -> set[str]:
    """Return the words of a name of data: those behind an x or y, and what short ones stand for."""
    found = words(name)
    found |= {word[1:] for word in found if word[0:1] in ("x", "y") and len(word) > 2}
    return found | {_SHORT[word] for word in found if word in _SHORT}


def is_held(tensor: Tensor, value: Any) -> bool:
    """Whether ``value`` is ``tensor``, or a list of batches one of which holds it."""
    if isinstance(value, Tensor):
        return same_memory(tensor, value)
    if type(value) not in (list, tuple) or len(value) > _ITEMS:
        return False
    for item in value:
        parts = item.values() if isinstance(item, dict) else item
        if isinstance(item, Tensor):
            parts = (item,)
        elif not isinstance(item, (tuple, list, dict)) or len(item) > _MANY:
            continue
        if any(isinstance(part, Tensor) and same_memory(tensor, part) for part in parts):
            return True
    return False


def same_memory(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are one, or views of the same elements."""
    if left is right:
        return True
    if left.shape != right.shape or left.layout != right.layout or not left.numel():
        return False
    return bool(batches.place(left)[0] == batches.place(right)[0])


def _lies_within(part: Tensor, whole: Tensor) -> bool:
    if part.layout is not torch.strided or whole.layout is not torch.strided:
        return False
    if part.device != whole.device or not part.numel() or part.numel() >= whole.numel():
        return False
    (start, end), (first, last) = _span(part), _span(whole)
    return first <= start and end <= last


def _span(tensor: Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()
