"""What an object is made of, read past any code of its class."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Undo = Callable[[], object]
"""Puts back what was kept."""

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""Kinds of objects that hold random numbers of their own."""


def attributes_of(obj: Any) -> dict[str, Any] | None:
    """The attribute dictionary itself, past any ``__getattr__`` or property of the class."""
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return None
    return attributes if isinstance(attributes, dict) else None


def slots_of(obj: Any) -> dict[types.MemberDescriptorType, Any]:
    """The values of the ``__slots__`` that are set, by their descriptors."""
    values = {}
    for cls in type(obj).__mro__:
        for descriptor in vars(cls).values() if "__slots__" in vars(cls) else ():
            if isinstance(descriptor, types.MemberDescriptorType):
                try:
                    values[descriptor] = descriptor.__get__(obj)
                except AttributeError:  # a slot that was never set
                    continue
    return values


def script_attributes(obj: Any) -> dict[str, Any]:
    """What a TorchScript module keeps in C++, by name; its sub-modules cannot be replaced."""
    attributes = attributes_of(obj) or {}
    if not isinstance(obj, torch.jit.ScriptModule) or "_concrete_type" not in attributes:
        return {}
    names = attributes["_concrete_type"].get_attributes()
    values = {name: attributes["_c"].getattr(name) for name in names}
    values.update(attributes["_parameters"].items())
    values.update((f"module {name}", each) for name, each in attributes["_modules"].items())
    return values


def loader_attributes(loader: Any) -> dict[str, Any]:
    """All but the persistent iterator, whose worker processes cannot be rewound."""
    return {name: value for name, value in vars(loader).items() if name != "_iterator"}


def gradient_of(tensor: Tensor) -> Tensor | None:
    """The gradient; asking an inner node of a graph for it would warn."""
    return tensor.grad if tensor.is_leaf or tensor.retains_grad else None
