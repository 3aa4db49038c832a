"""Listening to the collectives that a script's processes call, in Python.

Those of DistributedDataParallel are called in C++: they are written down where its forward and
backward passes begin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from nnaudit.ranks.journal import Journal
from nnaudit.ranks.record import Collective, Returned
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered

SAME_SHAPE = ("all_reduce", "broadcast", "reduce")
"""Collectives whose first tensor must have one shape on all ranks."""

OTHERS = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "all_to_all_single",
    "barrier", "broadcast_object_list", "gather", "gather_object", "monitored_barrier",
    "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list",
)  # fmt: skip

GRADIENTS, BUFFERS = "DDP gradient reduction", "DDP buffer broadcast"

_C10D: Any = distributed_c10d


class Collectives:
    """Writes down every collective that is entered, and that it has returned."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._within = threading.local()
        self._forwards: list[tuple[str, tuple[int, ...]]] = []

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen for the time of a ``with``."""
        with ExitStack() as stack:
            for name in (*SAME_SHAPE, *OTHERS):
                real = getattr(distributed_c10d, name)
                heard = self._heard(name, real)
                for owner in (distributed_c10d, distributed):
                    setattr(owner, name, heard)
                    stack.callback(setattr, owner, name, real)
            for owner in (distributed_c10d, distributed):
                for name in ("init_process_group", "new_group"):
                    self._patch(stack, owner, name, self._meeting)
            self._patch(stack, DistributedDataParallel, "__init__", self._meeting)
            self._patch(stack, DistributedDataParallel, "_pre_forward", self._pre_forward)
            self._patch(stack, torch.autograd, "backward", self._backward)
            yield

    @staticmethod
    def _patch(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        real = getattr(owner, name)
        setattr(owner, name, make(real))
        stack.callback(setattr, owner, name, real)

    @contextmanager
    def _entered(self, op: str, group: tuple[int, ...], what: str) -> Iterator[None]:
        """Write down a collective, unless it is part of another."""
        journal = self._journal
        if getattr(self._within, "one", False) or journal.over:
            yield
            return
        number = journal.collectives
        journal.collectives += 1
        journal.meetings += 1
        at = callstack.user_line()
        journal.add(
            Collective(number=number, op=op, group=group, what=what, doing=journal.doing, at=at)
        )
        self._within.one = True
        try:
            yield
        finally:
            self._within.one = False
        # Not where it raised: it stands there still.
        journal.add(Returned(number=number))

    def _meeting(self, real: Any) -> Any:
        """Ranks wait for one another, or nearly, in what is no collective of its own."""

        @wraps(real)
        @registered(Role.STANDS_IN)
        def meeting(*args: Any, **kwargs: Any) -> Any:
            self._journal.meetings += 1
            return real(*args, **kwargs)

        return meeting

    def _heard(self, name: str, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def collective(*args: Any, **kwargs: Any) -> Any:
            group = kwargs.get("group")
            group = group or next((a for a in args if isinstance(a, _C10D.ProcessGroup)), None)
            what = _form(args, kwargs) if name in SAME_SHAPE else ""
            with self._entered(name, _ranks(group), what):
                return real(*args, **kwargs)

        return collective

    def _pre_forward(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def pre_forward(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
            group = _ranks(wrapper.process_group)
            reduces = torch.is_grad_enabled() and wrapper.require_backward_grad_sync
            if not wrapper._check_sync_bufs_pre_fwd():
                made = real(wrapper, *args, **kwargs)
            else:
                with self._entered(BUFFERS, group, type(wrapper.module).__name__):
                    made = real(wrapper, *args, **kwargs)
            if reduces:
                self._forwards.append((type(wrapper.module).__name__, group))
            return made

        return pre_forward

    def _backward(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def backward(*args: Any, **kwargs: Any) -> Any:
            if not self._forwards:
                return real(*args, **kwargs)
            network, group = self._forwards[0]
            self._forwards.clear()
            with self._entered(GRADIENTS, group, network):
                return real(*args, **kwargs)

        return backward


def _ranks(group: Any) -> tuple[int, ...]:
    if not distributed.is_initialized():
        return ()
    try:
        return tuple(distributed.get_process_group_ranks(group))
    except (KeyError, ValueError):  # this process is no member
        return ()


def _form(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    if tensor is None:
        return ""
    shape = "x".join(str(size) for size in tensor.shape) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
