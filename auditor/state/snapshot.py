"""Everything an audit may disturb, and how it is put back bit for bit.

A snapshot is made in two steps. :class:`~nnaudit.state.reach.Reach` follows references from the
subjects and finds each object whose contents could change: tensors, dictionaries, lists,
generators, modules. Then each *keeper* in :data:`KEEPERS` looks at the objects of its kind, and
each keeper in :data:`~nnaudit.state.process.PROCESS` at the process, and hands back a callback that
undoes later changes. Restoring runs the callbacks. Nothing is rebuilt: the very same objects get
their old contents back, so references held elsewhere (an optimizer's to its parameters, a script's
to its model, a CUDA graph's to an address) stay valid, tied weights stay tied, and no dtype is
cast, which a ``state_dict`` round trip would do. Tensors are kept as the raw bytes of their
storage, hence any dtype, stride or NaN payload comes back as it was.

Restored:

* modules: parameters and buffers (persistent or not) with their identity, shape, dtype, device,
  class (a lazy parameter is uninitialised again), gradient, ``requires_grad`` and hooks;
  sub-modules, modes, hooks, parametrisations, attributes and slots; TorchScript attributes;
* optimizers, schedulers, gradient scalers, whatever else is handed over: all attributes, through
  nested lists, dictionaries, sets, deques, tensors and arrays. A plain object of the user's is
  entered when a subject holds it, not when another plain object does;
* loaders: attributes, samplers, and the random generators within reach of the data set. The data
  themselves are not copied: of a data set, attributes get their old references back;
* the process: the random numbers of Python, NumPy, the CPU, CUDA, XPU and MPS; PyTorch's modes
  and flags; warning filters, environment variables, working directory, import path, NumPy's error
  handling, the root logger.

Not restored: files, sockets, threads, child processes and what they hold (a loader's workers); an
iterator in flight; an autograd graph in flight (writing to a parameter makes its backward pass
raise, never lie); data changed in place inside a data set; state hidden in closures, globals,
class attributes or C extensions; PyTorch's *global* module and optimizer hooks, which are the
auditor's own taps; JIT and ``torch.compile`` caches, which alter time and not results.

Two rules for callers. A hook that is present when a snapshot is taken returns with it, so take
snapshots before hooking. Grad mode, autocast, anomaly mode, the default device, NumPy's error
handling belong to a thread: take and restore in the thread that trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nnaudit.state.objects import OBJECTS
from nnaudit.state.parts import Undo
from nnaudit.state.process import PROCESS
from nnaudit.state.reach import Reach
from nnaudit.state.tensors import TENSORS

KEEPERS = (*OBJECTS, *TENSORS)
"""(kind, keeper): every object of the kind goes through the keeper, in this order."""


@dataclass(frozen=True)
class Subjects:
    """The objects an audit may disturb, besides the state of the process."""

    models: tuple[nn.Module, ...] = ()
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    scalers: tuple[Any, ...] = ()
    loaders: tuple[Any, ...] = ()
    extras: tuple[Any, ...] = ()

    @property
    def roots(self) -> tuple[Any, ...]:
        """All of them."""
        return (
            *self.models,
            *self.optimizers,
            *self.schedulers,
            *self.scalers,
            *self.loaders,
            *self.extras,
        )


class Snapshot:
    """The state of some subjects and of the process at one moment."""

    def __init__(self, objects: list[Undo], process: list[Undo]) -> None:
        self._objects = objects
        self._process = process

    @classmethod
    def take(cls, subjects: Subjects) -> Snapshot:
        """Keep the present state; costs about one copy of the tensors."""
        process = [keep() for keep in PROCESS]
        objects: list[Undo] = []
        with _bare_tensors():
            found = Reach(subjects.roots, subjects.loaders).objects
            for kind, keep in KEEPERS:
                undos = (keep(obj) for obj in found if isinstance(obj, kind))
                objects += [undo for undo in undos if undo is not None]
        return cls(objects, process)

    def restore(self) -> None:
        """Put everything back; may be called any number of times.

        Raises:
            ExceptionGroup: something could not be put back. All the rest was.
        """
        errors: list[Exception] = []
        with _bare_tensors():
            for undo in self._objects:
                _attempt(undo, errors)
        # Last and outside `no_grad`, for grad mode is one of the things to be put back.
        for undo in self._process:
            _attempt(undo, errors)
        if errors:
            raise ExceptionGroup("the audit could not put everything back", errors)


@contextmanager
def preserved(subjects: Subjects) -> Iterator[Snapshot]:
    """Restore ``subjects`` and the process when the body ends, also when it raises."""
    snapshot = Snapshot.take(subjects)
    try:
        yield snapshot
    finally:
        snapshot.restore()


@contextmanager
def _bare_tensors() -> Iterator[None]:
    """Neither autograd nor a tensor subclass has a say in how its bytes are copied."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


def _attempt(undo: Undo, errors: list[Exception]) -> None:
    try:
        undo()
    except Exception as error:
        errors.append(error)
