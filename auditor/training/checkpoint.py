"""What a network is made of, whether its state_dict says so or not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnaudit.training.evaluation import agreement

_PLUMBING = frozenset(vars(nn.Module())) | {
    "_is_full_backward_hook",
    "_forward_hooks_always_called",
}
_ATOMS = (bool, int, float, complex, str, type(None))

Anatomy = dict[str, Any]
"""By qualified name: parameters, buffers, and all other attributes that hold values."""


def anatomy(model: nn.Module) -> Anatomy:
    """Return copies of everything the modules of ``model`` hold: see :data:`Anatomy`.

    Attributes that are neither tensors, arrays, numbers, strings nor containers of these (of
    modules that are not registered, too) are left out.
    """
    found: Anatomy = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for table in (module._parameters, module._buffers):
            found |= {f"{prefix}{k}": v.detach().clone() for k, v in table.items() if v is not None}
        for key, value in vars(module).items():
            if key not in _PLUMBING and _holds_values(value):
                try:
                    found[prefix + key] = copy.deepcopy(_detached(value))
                except (RuntimeError, TypeError):
                    continue
    return found


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(_detached(part) for part in value)
    if type(value) is dict:
        return {key: _detached(part) for key, part in value.items()}
    return value


def _holds_values(value: Any, depth: int = 3) -> bool:
    if isinstance(value, (*_ATOMS, Tensor, np.ndarray, np.generic, nn.Module)):
        return True
    if depth == 0:
        return False
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_holds_values(part, depth - 1) for part in value)
    if isinstance(value, dict):
        return all(_holds_values(part, depth - 1) for part in value.values())
    return False


def differing(one: Anatomy, other: Anatomy) -> list[str]:
    """Return the names whose values are not the same in both."""
    names = dict.fromkeys((*one, *other))
    return [n for n in names if n not in one or n not in other or not _equal(one[n], other[n])]


def _equal(a: Any, b: Any) -> bool:
    left, right = list(_parts(a)), list(_parts(b))
    return len(left) == len(right) and all(
        _equal_parts(x, y) for x, y in zip(left, right, strict=True)
    )


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _parts(part)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(map(str, value))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _equal_parts(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
            return False
        if a.is_meta or b.is_meta:  # a template without values, as of a stacked ensemble
            return a.is_meta and b.is_meta
        a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
        a, b = a.detach().cpu(), b.detach().cpu()
        return bool(agreement(a, b).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return type(a) is type(b) and (both_nan or bool(a == b))


def transplant(names: Iterable[str], source: Anatomy, model: nn.Module) -> None:
    """Give ``model`` the values that ``source`` has under ``names``."""
    modules = dict(model.named_modules())
    for name in names:
        owner, _, key = name.rpartition(".")
        module = modules.get(owner)
        if module is None or name not in source:
            continue
        present = module._parameters.get(key, module._buffers.get(key))
        if present is not None and present.shape == source[name].shape:
            with torch.no_grad():
                present.copy_(source[name])
        elif key in module._buffers:
            module._buffers[key] = source[name].clone()
        elif key not in module._parameters:
            setattr(module, key, copy.deepcopy(source[name]))


def is_tensorial(value: Any) -> bool:
    """Whether ``value`` holds numbers of its own: tensors, arrays, modules."""
    return any(isinstance(part, (Tensor, np.ndarray)) for part in _parts(value))
