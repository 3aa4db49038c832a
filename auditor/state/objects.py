"""Keepers of objects: each looks at one kind, and returns what undoes later changes."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from nnaudit.state.parts import (
    Undo,
    attributes_of,
    loader_attributes,
    script_attributes,
    slots_of,
)


def keep_class(obj: Any) -> Undo:
    """Lazy modules and parametrisations change the class of a living object.

    A class of the same name is the same one, defined anew by a script that has been run again.
    """
    cls = type(obj)

    def undo() -> None:
        now = type(obj)
        if (now.__module__, now.__qualname__) != (cls.__module__, cls.__qualname__):
            object.__setattr__(obj, "__class__", cls)

    return undo


def keep_parametrised_class(obj: Any) -> Undo | None:
    """A parametrised module has a class of its own, whose properties come and go."""
    attributes = attributes_of(obj) or {}
    if "parametrizations" not in attributes.get("_modules", ()):
        return None
    cls = type(obj)
    saved = dict(vars(cls))

    def undo() -> None:
        for name in vars(cls).keys() - saved.keys():
            delattr(cls, name)
        for name in saved.keys() - vars(cls).keys():
            setattr(cls, name, saved[name])

    return undo


def keep_attribute_dict(obj: Any) -> Undo | None:
    """The dictionary itself, should somebody have assigned another to ``__dict__``."""
    attributes = attributes_of(obj)
    if attributes is None:
        return None

    def undo() -> None:
        if attributes_of(obj) is not attributes:
            object.__setattr__(obj, "__dict__", attributes)

    return undo


def keep_slots(obj: Any) -> Undo | None:
    """Values of ``__slots__``; a slot that was unset is unset again."""
    saved = slots_of(obj)

    def undo() -> None:
        for descriptor in slots_of(obj).keys() - saved.keys():
            descriptor.__delete__(obj)
        for descriptor, value in saved.items():
            descriptor.__set__(obj, value)

    return undo if any("__slots__" in vars(cls) for cls in type(obj).__mro__) else None


TIES = ("_trainer", "_fabric")
"""The attributes by which a LightningModule is tied to the trainer that runs it.

A snapshot does not bring them back: after the script was executed again that is another trainer.
"""


def keep_dict(obj: dict[Any, Any]) -> Undo:
    """Keys, values by reference, and their order, which is the order of ``parameters()``."""
    saved = list(_methods(obj).items(obj))
    if not any(name in obj for name in TIES):
        return partial(refill, obj, saved)

    def undo() -> None:
        ties = {name: obj[name] for name in TIES if name in obj}
        refill(obj, [(key, ties.get(key, value)) for key, value in saved])

    return undo


def _methods(obj: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The plain methods: a subclass may forbid or reroute writing."""
    return OrderedDict if isinstance(obj, OrderedDict) else dict


def refill(obj: dict[Any, Any], saved: list[tuple[Any, Any]]) -> None:
    """Give ``obj`` the items ``saved``, in their order, unless these are what it holds."""
    plain = _methods(obj)
    now = list(plain.items(obj))
    if len(now) == len(saved) and all(
        a[0] is b[0] and a[1] is b[1] for a, b in zip(now, saved, strict=True)
    ):
        return
    plain.clear(obj)
    for key, value in saved:
        plain.__setitem__(obj, key, value)


def keep_list(obj: list[Any]) -> Undo:
    """The elements, by reference."""
    return partial(list.__setitem__, obj, slice(None), list.copy(obj))


def keep_set(obj: set[Any]) -> Undo:
    """The elements, by reference; refilled only if they differ, which may reorder them."""
    saved = list(obj)

    def undo() -> None:
        if [id(each) for each in obj] != [id(each) for each in saved]:
            set.clear(obj)
            set.update(obj, saved)

    return undo


def keep_deque(obj: deque[Any]) -> Undo:
    """The elements, by reference."""
    saved = list(obj)

    def undo() -> None:
        obj.clear()
        obj.extend(saved)

    return undo


def keep_array(obj: np.ndarray[Any, Any]) -> Undo | None:
    """The values of a NumPy array, in place; a read-only one (a memory map) cannot change."""
    return partial(np.copyto, obj, obj.copy()) if obj.flags.writeable else None


def keep_script(obj: Any) -> Undo | None:
    """TorchScript attributes live in C++; among them the mode, lists and dictionaries."""
    saved = {n: v for n, v in script_attributes(obj).items() if not n.startswith("module ")}

    def undo() -> None:
        for name, value in saved.items():
            obj._c.setattr(name, value)

    return undo if saved else None


def keep_loader(obj: Any) -> Undo:
    """A loader's attributes, except the iterator in flight."""
    saved = loader_attributes(obj)

    def undo() -> None:
        running = {n: v for n, v in vars(obj).items() if n == "_iterator"}
        refill(vars(obj), list((saved | running).items()))

    return undo


def generator_state(obj: Any) -> Any:
    """Return where a generator of random numbers is; None for what is none, or has no state."""
    if isinstance(obj, torch.Generator):
        return obj.get_state()
    if isinstance(obj, np.random.Generator):
        return obj.bit_generator.state
    if isinstance(obj, np.random.RandomState):
        return obj.get_state(legacy=False)
    if isinstance(obj, random.Random) and not isinstance(obj, random.SystemRandom):
        return obj.getstate()
    return None


def set_generator_state(obj: Any, state: Any) -> None:
    """Put a generator to where :func:`generator_state` says that one of its kind was."""
    if isinstance(obj, np.random.Generator):
        obj.bit_generator.state = state
    elif isinstance(obj, random.Random):
        obj.setstate(state)
    else:
        obj.set_state(state)


def keep_generator(obj: Any) -> Undo | None:
    """A generator of random numbers of any kind; None for what is none, or has no state."""
    state = generator_state(obj)
    return None if state is None else partial(set_generator_state, obj, state)


def keep_torch_generator(obj: torch.Generator) -> Undo:
    """A sampler's or a loader's own random numbers."""
    return partial(set_generator_state, obj, generator_state(obj))


def keep_numpy_generator(obj: np.random.Generator) -> Undo:
    """A NumPy generator; its state is a dictionary, which reading copies."""
    return partial(set_generator_state, obj, generator_state(obj))


def keep_numpy_random_state(obj: np.random.RandomState) -> Undo:
    """A legacy NumPy generator."""
    return partial(set_generator_state, obj, generator_state(obj))


def keep_python_random(obj: random.Random) -> Undo | None:
    """A generator of the standard library; the operating system's entropy has no state."""
    return keep_generator(obj)


OBJECTS: tuple[tuple[Any, Callable[[Any], Undo | None]], ...] = (
    (object, keep_class),
    (nn.Module, keep_parametrised_class),
    (object, keep_attribute_dict),
    (object, keep_slots),
    (dict, keep_dict),
    (list, keep_list),
    (set, keep_set),
    (deque, keep_deque),
    (np.ndarray, keep_array),
    (torch.jit.ScriptModule, keep_script),
    (DataLoader, keep_loader),
    (torch.Generator, keep_torch_generator),
    (np.random.Generator, keep_numpy_generator),
    (np.random.RandomState, keep_numpy_random_state),
    (random.Random, keep_python_random),
)
"""By kind: every object of it goes through the keeper. The order matters."""
