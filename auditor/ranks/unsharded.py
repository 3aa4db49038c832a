"""``fully_shard`` for one process, which holds the whole network: it leaves it as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed import fsdp
from torch.distributed.fsdp import FSDPModule

_WAIT = "unshard"
"""The method whose answer may be waited for."""


class _Handle:
    """Nothing is awaited."""

    def wait(self) -> None:
        """Return at once."""


class _Unsharded(FSDPModule):
    """What a network becomes: its methods of sharding exist, and do nothing."""

    _orig_cls_mro_index = 3


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Handle() if name == _WAIT else None

    return functools.wraps(getattr(FSDPModule, name))(method)


for _name in [name for name, value in vars(FSDPModule).items() if callable(value)]:
    if not _name.startswith("_"):
        setattr(_Unsharded, _name, _method(_name))


def _leave(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``fully_shard``: the network, or each of several, gets its methods."""
    for each in (module,) if isinstance(module, nn.Module) else module:
        cls = type(each)
        if not issubclass(cls, FSDPModule):
            each.__class__ = type(f"FSDP{cls.__name__}", (_Unsharded, cls), {})
    return module


@contextmanager
def unsharded() -> Iterator[None]:
    """Let ``fully_shard`` leave networks as they are, for the time of a ``with``.

    A mixed-precision policy that it is given does not count then.
    """
    real = fsdp.fully_shard
    fsdp.fully_shard = _leave
    try:
        yield
    finally:
        fsdp.fully_shard = real
