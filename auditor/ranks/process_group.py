"""What a script's call of ``init_process_group`` comes to in an audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from nnaudit.loop.trace import patched
from nnaudit.targets.callstack import Role, registered

Begin = Callable[..., None]


@contextmanager
def gloo_without_gpu() -> Iterator[None]:
    """Let a script that asks for NCCL have gloo where there is no GPU, for the time of a ``with``.

    So the script of a cluster is audited on a machine that has none.
    """

    def init(real: Begin, backend: Any = None, *args: Any, **kwargs: Any) -> None:
        if backend is not None and "nccl" in str(backend):
            backend = "gloo"
            kwargs.pop("device_id", None)
        real(backend, *args, **kwargs)

    if torch.cuda.is_available():
        yield
        return
    with _begun_by(init):
        yield


@contextmanager
def only_process() -> Iterator[None]:
    """Let a script that names its number of processes go on alone, for the time of a ``with``."""

    def init(real: Begin, *args: Any, **kwargs: Any) -> None:
        told = {"rank": 0, "world_size": 1}
        real(*args, **{name: told.get(name, value) for name, value in kwargs.items()})

    with _begun_by(init):
        yield


@contextmanager
def waiting_for_none() -> Iterator[None]:
    """Let DistributedDataParallel go on without gradients, for the time of a ``with``."""

    def making(real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def make(wrapper: Any, *args: Any, **kwargs: Any) -> None:
            real(wrapper, *args, **{**kwargs, "find_unused_parameters": True})

        return make

    with patched(DistributedDataParallel, "__init__", making):
        yield


@contextmanager
def _begun_by(init: Callable[..., None]) -> Iterator[None]:
    """Let ``init`` be called with the real function and what the script gives."""

    def beginning(real: Begin) -> Begin:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            init(real, *args, **kwargs)

        return init_process_group

    with patched(distributed, "init_process_group", beginning):
        yield
