"""What an audit of some objects could disturb: following references."""

from __future__ import annotations

import argparse
import enum
import functools
import logging
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.data import DataLoader, Dataset, Sampler

from nnaudit.state.parts import (
    GENERATORS,
    attributes_of,
    gradient_of,
    loader_attributes,
    script_attributes,
    slots_of,
)

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype})
# Entered wherever they are found. Other objects are entered only near a subject.
_OPEN = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler, Sampler)
_HOLDERS = (types.SimpleNamespace, argparse.Namespace)
# Users' classes derived from these stand for things that run, name or describe: not for state.
_OPAQUE = (type, enum.Enum, threading.Thread, logging.Logger, logging.Handler, BaseException)
_NOT_USERS = sys.stdlib_module_names | {"torch", "numpy"}
_SEQUENCES = (list, tuple, set, frozenset, deque)
# Generators hide a few objects deep in a data set: Subset -> Compose -> list -> transform.
_DATA_DEPTH = 5
_SMALL = 1000


def generators_of(functions: Iterable[Any]) -> tuple[Any, ...]:
    """Return the generators of random numbers that ``functions`` name, in the order of their names.

    As variables of their file or of the function that they are defined in, as attributes of the
    object whose methods they are, and through functions of the same file.
    """
    found: dict[int, Any] = {}
    todo, seen = list(functions), set[int]()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, GENERATORS):
            found[id(each)] = each
        elif isinstance(each, functools.partial):
            todo += [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, types.MethodType):
            own = attributes_of(each.__self__) or {}
            todo += [each.__func__, *(v for v in own.values() if isinstance(v, GENERATORS))]
        elif isinstance(each, types.FunctionType):
            todo += [value for value in _named(each).values() if _leads_on(value, each)]
    return tuple(found.values())


def _named(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables outside of ``function`` that it, or a function within it, names."""
    codes, names = [function.__code__], set[str]()
    for code in codes:
        names.update(code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    known = {n: v for n, v in function.__globals__.items() if n in names}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            known[name] = cell.cell_contents
    return dict(sorted(known.items()))


def _leads_on(value: Any, function: types.FunctionType) -> bool:
    beside = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
    return beside or isinstance(value, GENERATORS)


@dataclass(frozen=True)
class _Visit:
    """An object to look at; ``depth`` more plain objects may be entered from it."""

    obj: Any
    depth: int
    data: bool = False

    @property
    def rank(self) -> int:
        """How much of the object this visit reaches: a deeper visit repeats a shallow one."""
        return self.depth if self.data else self.depth + _DATA_DEPTH + 1


class Reach:
    """The objects that an audit of some subjects could disturb, each once."""

    def __init__(self, roots: Sequence[Any], loaders: Iterable[Any]) -> None:
        """``roots`` are the subjects, the ``loaders`` among them."""
        self._found: dict[int, Any] = {}
        # Objects are held along with their ranks: the id of a dead one would be reused.
        self._seen: dict[int, tuple[Any, int]] = {}
        self._roots = {id(root) for root in roots}
        self._data = {id(getattr(loader, "dataset", None)) for loader in loaders}
        self._data |= {id(each) for each in loaders if not isinstance(each, DataLoader)}
        self._todo = [_Visit(root, depth=2) for root in roots]
        while self._todo:
            self._look(self._todo.pop())

    @property
    def objects(self) -> list[Any]:
        """What was found."""
        return list(self._found.values())

    def _look(self, visit: _Visit) -> None:
        obj = visit.obj
        if type(obj) in _ATOMS or self._seen.get(id(obj), (None, -1))[1] >= visit.rank:
            return
        self._seen[id(obj)] = (obj, visit.rank)
        if isinstance(obj, Dataset) or id(obj) in self._data:
            self._look_at_data(_Visit(obj, _DATA_DEPTH, data=True))
        elif visit.data and not isinstance(obj, (nn.Module, Sampler, DataLoader)):
            self._look_at_data(visit)
        else:
            self._look_at_state(obj, max(visit.depth, 1) if visit.data else visit.depth)

    def _look_at_state(self, obj: Any, depth: int) -> None:
        """Keep ``obj`` and whatever it refers to."""
        if isinstance(obj, Tensor):
            self._found[id(obj)] = obj
            self._push(_tensor_parts(obj), depth)
        elif isinstance(obj, dict):
            self._found[id(obj)] = obj
            self._push([*obj.keys(), *obj.values()], depth)
        elif isinstance(obj, _SEQUENCES):
            self._found[id(obj)] = obj
            self._push(obj, depth)
        elif isinstance(obj, (np.ndarray, *GENERATORS)):
            self._found[id(obj)] = obj
        elif isinstance(obj, DataLoader):
            self._found[id(obj)] = obj
            self._push(loader_attributes(obj).values(), 2)
        if isinstance(obj, _OPEN):
            self._enter(obj, 1)
        elif id(obj) in self._roots or (depth > 0 and _is_plain(obj)):
            self._enter(obj, depth - 1)

    def _look_at_data(self, visit: _Visit) -> None:
        """Keep the attributes' references and the generators, never the data."""
        obj, depth = visit.obj, visit.depth
        if isinstance(obj, GENERATORS):
            self._found[id(obj)] = obj
        elif isinstance(obj, dict) and len(obj) <= _SMALL:
            self._push(obj.values(), depth, data=True)
        elif isinstance(obj, _SEQUENCES) and len(obj) <= _SMALL:
            self._push(obj, depth, data=True)
        if depth > 0 and (isinstance(obj, Dataset) or _is_plain(obj)):
            self._enter(obj, depth - 1, data=True)

    def _enter(self, obj: Any, depth: int, data: bool = False) -> None:
        if isinstance(obj, DataLoader):
            return
        self._found[id(obj)] = obj
        attributes = attributes_of(obj)
        if attributes is not None:
            self._found[id(attributes)] = attributes
            self._push(attributes.values(), depth, data)
        self._push(slots_of(obj).values(), depth, data)
        self._push(script_attributes(obj).values(), depth, data)

    def _push(self, objects: Iterable[Any], depth: int, data: bool = False) -> None:
        self._todo += [_Visit(obj, depth, data) for obj in objects if type(obj) not in _ATOMS]


def _is_plain(obj: Any) -> bool:
    """Is it an object of a class that the user, or a library above PyTorch, wrote?"""
    if isinstance(obj, _HOLDERS):
        return True
    if isinstance(obj, (*_OPAQUE, Tensor)):
        return False
    return type(obj).__module__.partition(".")[0] not in _NOT_USERS


def _tensor_parts(tensor: Tensor) -> list[Any]:
    parts: list[Any] = [attributes_of(tensor), gradient_of(tensor)]
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts += [getattr(tensor, name) for name in names]
    return parts
