"""Everything an audit may disturb, and how it is put back bit for bit.

A snapshot is made in two steps. :class:`_Reach` follows references from the subjects and finds
each object whose contents could change: tensors, dictionaries, lists, generators, modules. Then
each *keeper* in :data:`OBJECTS` looks at the objects of its kind, and each keeper in
:data:`PROCESS` at the process, and hands back a callback that undoes later changes. Restoring
runs the callbacks. Nothing is rebuilt: the very same objects get their old contents back, so
references held elsewhere (an optimizer's to its parameters, a script's to its model, a CUDA
graph's to an address) stay valid, tied weights stay tied, and no dtype is cast, which a
``state_dict`` round trip would do. Tensors are kept as the raw bytes of their storage, hence any
dtype, stride or NaN payload comes back as it was.

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

import argparse
import enum
import logging
import os
import random
import sys
import threading
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.data import DataLoader, Dataset, Sampler

Undo = Callable[[], object]


@dataclass(frozen=True)
class Subjects:
    """The objects an audit may disturb, besides the state of the process."""

    models: tuple[nn.Module, ...] = ()
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    scalers: tuple[Any, ...] = ()
    loaders: tuple[Any, ...] = ()
    extras: tuple[Any, ...] = ()


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
            found = _Reach(subjects).objects
            for kind, keep in OBJECTS:
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


# --- what an audit could disturb: following references ------------------------------------------

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype})
# Entered wherever they are found. Other objects are entered only near a subject.
_OPEN = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler, Sampler)
_HOLDERS = (types.SimpleNamespace, argparse.Namespace)
# Users' classes derived from these stand for things that run, name or describe: not for state.
_OPAQUE = (type, enum.Enum, threading.Thread, logging.Logger, logging.Handler, BaseException)
_NOT_USERS = sys.stdlib_module_names | {"torch", "numpy"}
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Generators hide a few objects deep in a data set: Subset -> Compose -> list -> transform.
_DATA_DEPTH = 5
_SMALL = 1000


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


class _Reach:
    """The objects that an audit of some subjects could disturb, each once."""

    def __init__(self, subjects: Subjects) -> None:
        self._found: dict[int, Any] = {}
        # Objects are held along with their ranks: the id of a dead one would be reused.
        self._seen: dict[int, tuple[Any, int]] = {}
        self._roots = {id(root) for root in _roots(subjects)}
        self._data = {id(getattr(loader, "dataset", None)) for loader in subjects.loaders}
        self._data |= {id(each) for each in subjects.loaders if not isinstance(each, DataLoader)}
        self._todo = [_Visit(root, depth=2) for root in _roots(subjects)]
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
        elif isinstance(obj, (np.ndarray, *_GENERATORS)):
            self._found[id(obj)] = obj
        elif isinstance(obj, DataLoader):
            self._found[id(obj)] = obj
            self._push(_loader_attributes(obj).values(), 2)
        if isinstance(obj, _OPEN):
            self._enter(obj, 1)
        elif id(obj) in self._roots or (depth > 0 and _is_plain(obj)):
            self._enter(obj, depth - 1)

    def _look_at_data(self, visit: _Visit) -> None:
        """Keep the attributes' references and the generators, never the data."""
        obj, depth = visit.obj, visit.depth
        if isinstance(obj, _GENERATORS):
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
        attributes = _attributes(obj)
        if attributes is not None:
            self._found[id(attributes)] = attributes
            self._push(attributes.values(), depth, data)
        self._push(_slots(obj).values(), depth, data)
        self._push(_script_attributes(obj).values(), depth, data)

    def _push(self, objects: Iterable[Any], depth: int, data: bool = False) -> None:
        self._todo += [_Visit(obj, depth, data) for obj in objects if type(obj) not in _ATOMS]


def _roots(subjects: Subjects) -> tuple[Any, ...]:
    return (
        *subjects.models,
        *subjects.optimizers,
        *subjects.schedulers,
        *subjects.scalers,
        *subjects.loaders,
        *subjects.extras,
    )


def _is_plain(obj: Any) -> bool:
    """Is it an object of a class that the user, or a library above PyTorch, wrote?"""
    if isinstance(obj, _HOLDERS):
        return True
    if isinstance(obj, (*_OPAQUE, Tensor)):
        return False
    return type(obj).__module__.partition(".")[0] not in _NOT_USERS


def _attributes(obj: Any) -> dict[str, Any] | None:
    """The attribute dictionary itself, past any ``__getattr__`` or property of the class."""
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return None
    return attributes if isinstance(attributes, dict) else None


def _slots(obj: Any) -> dict[types.MemberDescriptorType, Any]:
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


def _script_attributes(obj: Any) -> dict[str, Any]:
    """What a TorchScript module keeps in C++, by name; its sub-modules cannot be replaced."""
    attributes = _attributes(obj) or {}
    if not isinstance(obj, torch.jit.ScriptModule) or "_concrete_type" not in attributes:
        return {}
    names = attributes["_concrete_type"].get_attributes()
    values = {name: attributes["_c"].getattr(name) for name in names}
    values.update(attributes["_parameters"].items())
    values.update((f"module {name}", each) for name, each in attributes["_modules"].items())
    return values


def _loader_attributes(loader: Any) -> dict[str, Any]:
    """All but the persistent iterator, whose worker processes cannot be rewound."""
    return {name: value for name, value in vars(loader).items() if name != "_iterator"}


def _tensor_parts(tensor: Tensor) -> list[Any]:
    parts: list[Any] = [_attributes(tensor), _grad(tensor)]
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts += [getattr(tensor, name) for name in names]
    return parts


def _grad(tensor: Tensor) -> Tensor | None:
    """The gradient; asking an inner node of a graph for it would warn."""
    return tensor.grad if tensor.is_leaf or tensor.retains_grad else None


# --- keepers of objects --------------------------------------------------------------------------


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
    attributes = _attributes(obj) or {}
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
    attributes = _attributes(obj)
    if attributes is None:
        return None

    def undo() -> None:
        if _attributes(obj) is not attributes:
            object.__setattr__(obj, "__dict__", attributes)

    return undo


def keep_slots(obj: Any) -> Undo | None:
    """Values of ``__slots__``; a slot that was unset is unset again."""
    saved = _slots(obj)

    def undo() -> None:
        for descriptor in _slots(obj).keys() - saved.keys():
            descriptor.__delete__(obj)
        for descriptor, value in saved.items():
            descriptor.__set__(obj, value)

    return undo if any("__slots__" in vars(cls) for cls in type(obj).__mro__) else None


def keep_dict(obj: dict[Any, Any]) -> Undo:
    """Keys, values by reference, and their order, which is the order of ``parameters()``."""
    return partial(_refill, obj, list(_methods(obj).items(obj)))


def _methods(obj: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The plain methods: a subclass may forbid or reroute writing."""
    return OrderedDict if isinstance(obj, OrderedDict) else dict


def _refill(obj: dict[Any, Any], saved: list[tuple[Any, Any]]) -> None:
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
    saved = {n: v for n, v in _script_attributes(obj).items() if not n.startswith("module ")}

    def undo() -> None:
        for name, value in saved.items():
            obj._c.setattr(name, value)

    return undo if saved else None


def keep_loader(obj: Any) -> Undo:
    """A loader's attributes, except the iterator in flight."""
    saved = _loader_attributes(obj)

    def undo() -> None:
        running = {n: v for n, v in vars(obj).items() if n == "_iterator"}
        _refill(vars(obj), list((saved | running).items()))

    return undo


def keep_torch_generator(obj: torch.Generator) -> Undo:
    """A sampler's or a loader's own random numbers."""
    return partial(obj.set_state, obj.get_state())


def keep_numpy_generator(obj: np.random.Generator) -> Undo:
    """A NumPy generator; its state is a dictionary, which reading copies."""
    return partial(setattr, obj.bit_generator, "state", obj.bit_generator.state)


def keep_numpy_random_state(obj: np.random.RandomState) -> Undo:
    """A legacy NumPy generator."""
    return partial(obj.set_state, obj.get_state(legacy=False))


def keep_python_random(obj: random.Random) -> Undo | None:
    """A generator of the standard library; the operating system's entropy has no state."""
    if isinstance(obj, random.SystemRandom):
        return None
    return partial(obj.setstate, obj.getstate())


# --- keepers of tensors, in the order in which they must be undone --------------------------------


def keep_leaf(tensor: Tensor) -> Undo | None:
    """``requires_grad``, and having no history: a buffer updated with a graph gains one."""
    if not tensor.is_leaf:
        return None
    saved = tensor.requires_grad

    def undo() -> None:
        if not tensor.is_leaf:
            tensor.detach_()
        tensor.requires_grad_(saved)

    return undo


def keep_geometry(tensor: Tensor) -> Undo | None:
    """Storage, shape, strides, dtype, device: ``half()``, ``to()``, ``resize_``, ``.data = ``."""
    before = _geometry(tensor)
    if before is None:
        return None
    alias = tensor.data  # its own header, so that it keeps the geometry; the same storage

    def undo() -> None:
        if _geometry(tensor) != before:
            tensor.data = alias

    return undo


def keep_bytes(tensor: Tensor) -> Undo | None:
    """The bytes between a tensor's first and last element, whatever they mean."""
    if _geometry(tensor) is None or tensor.numel() == 0:
        return None
    storage = tensor.untyped_storage()
    if storage.device.type == "meta" or storage.nbytes() == 0:
        return None
    size, view = storage.nbytes(), _byte_view(tensor, storage)
    saved = _copy(view)

    def undo() -> None:
        if storage.nbytes() != size:  # sharding frees storages
            storage.resize_(size)
        # Memory mapped read-only crashes the process when written to, so look before.
        if view.device.type != "cpu" or not torch.equal(view, saved):
            view.copy_(saved)

    return undo


def keep_value(tensor: Tensor) -> Undo | None:
    """The fallback for tensors without a storage: sparse, nested, mkldnn."""
    if _geometry(tensor) is not None or is_traceable_wrapper_subclass(tensor):
        return None
    saved = tensor.detach().clone()

    def undo() -> None:
        if tensor.layout in _COMPRESSED:  # which ignore `.data = `
            tensor.copy_(saved)
        else:
            tensor.data = saved.clone()

    return undo


def keep_grad(tensor: Tensor) -> Undo:
    """The gradient by reference, ``None`` included; its value is kept like any tensor's."""
    saved = _grad(tensor)

    def undo() -> None:
        if _grad(tensor) is not saved:
            tensor.grad = saved

    return undo


def keep_tensor_hooks(tensor: Tensor) -> Undo:
    """Hooks on a parameter. Both dictionaries are created with the first hook."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    saved = {name: getattr(tensor, name) for name in names}
    contents = {name: list((hooks or {}).items()) for name, hooks in saved.items()}

    def undo() -> None:
        for name, hooks in saved.items():
            now = getattr(tensor, name)
            if now is not hooks:
                now and now.clear()  # C++ goes on calling what is in a dictionary taken away
                setattr(tensor, name, hooks)
            if hooks is not None:
                _refill(hooks, contents[name])

    return undo


def _geometry(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where the elements are and what they mean; None if there is no storage to point at."""
    if tensor.layout is not torch.strided or is_traceable_wrapper_subclass(tensor):
        return None
    try:
        storage = tensor.untyped_storage()._cdata
        place = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    except (NotImplementedError, RuntimeError):
        return None
    return (*place, tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg())


def _byte_view(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """One-dimensional integers over the span of ``tensor`` in its storage."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.storage_offset() * tensor.element_size()
    last = min(first + (reach + 1) * tensor.element_size(), storage.nbytes())
    # Eight bytes at a time compare six times as fast as one at a time.
    dtype = torch.int64 if first % 8 == 0 and last % 8 == 0 else torch.uint8
    view = torch.empty(0, dtype=dtype, device=storage.device)
    width = view.element_size()
    return view.set_(storage, first // width, ((last - first) // width,), (1,))


def _copy(view: Tensor) -> Tensor:
    try:
        return view.clone()
    except torch.OutOfMemoryError:  # slower, but the audit goes on
        return torch.empty_like(view, device="cpu").copy_(view)


# (kind, keeper): every found object of the kind goes through the keeper. The order matters:
# a tensor is a leaf before it may be repointed, and has its shape before it takes a gradient.
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
    (Tensor, keep_leaf),
    (Tensor, keep_geometry),
    (Tensor, keep_bytes),
    (Tensor, keep_value),
    (Tensor, keep_grad),
    (Tensor, keep_tensor_hooks),
)


# --- keepers of the process ----------------------------------------------------------------------


def _switch(read: Callable[[], Any], write: Callable[[Any], object]) -> Undo:
    """Write the present value back, if it changed: some setters have side effects."""
    saved = read()

    def undo() -> None:
        if read() != saved:
            write(saved)

    return undo


def _all(undos: Iterable[Undo]) -> Undo:
    todo = list(undos)

    def undo() -> None:
        for each in todo:
            each()

    return undo


def keep_python_rng() -> Undo:
    """The module ``random``."""
    return partial(random.setstate, random.getstate())


def keep_numpy_rng() -> Undo:
    """NumPy's legacy global generator."""
    return partial(np.random.set_state, np.random.get_state(legacy=False))


def keep_torch_rng() -> Undo:
    """PyTorch's generator of the CPU."""
    return partial(torch.set_rng_state, torch.get_rng_state())


def keep_accelerator_rng() -> Undo:
    """The generators of each CUDA and XPU device, without waking them."""
    return _all(_keep_device_rng(module) for module in (torch.cuda, torch.xpu))


def _keep_device_rng(module: Any) -> Undo:
    if module.is_initialized():
        return _all(map(keep_torch_generator, module.default_generators))

    def undo() -> None:
        # Woken up by the audit: seed it as waking up after the restore would have.
        if module.is_initialized():
            for generator in module.default_generators:
                generator.manual_seed(torch.initial_seed())

    return undo


def keep_mps_rng() -> Undo:
    """The generator of Apple's GPU."""
    if not torch.backends.mps.is_available():
        return _all(())
    return partial(torch.mps.set_rng_state, torch.mps.get_rng_state())


def keep_cuda_device() -> Undo:
    """The current CUDA device."""
    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return _all(())
    return _switch(cuda.current_device, cuda.set_device)


def keep_grad_mode() -> Undo:
    """``no_grad`` left on."""
    return _switch(torch.is_grad_enabled, torch._C._set_grad_enabled)


def keep_anomaly_mode() -> Undo:
    """``torch.autograd.set_detect_anomaly``."""
    return _switch(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda saved: torch.set_anomaly_enabled(*saved),
    )


def keep_autocast() -> Undo:
    """Autocasting per kind of device, and its cache."""
    return _all((*map(_keep_autocast, ("cpu", "cuda")), _keep_autocast_cache()))


def _keep_autocast(device: str) -> Undo:
    return _all(
        (
            _switch(
                lambda: torch.is_autocast_enabled(device),
                lambda saved: torch.set_autocast_enabled(device, saved),
            ),
            _switch(
                lambda: torch.get_autocast_dtype(device),
                lambda saved: torch.set_autocast_dtype(device, saved),
            ),
        )
    )


def _keep_autocast_cache() -> Undo:
    return _switch(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)


def keep_default_dtype() -> Undo:
    """``torch.set_default_dtype``."""
    return _switch(torch.get_default_dtype, torch.set_default_dtype)


def keep_default_device() -> Undo:
    """``torch.set_default_device``; not a ``with torch.device(...)`` that is being left anyway."""

    place: Any = torch._GLOBAL_DEVICE_CONTEXT

    def read() -> Any:
        context = getattr(place, "device_context", None)
        return None if context is None else context.device

    def write(saved: Any) -> None:
        torch.set_default_device(saved)
        if saved is None:  # PyTorch 2.8 would fail to read the None that it stored itself
            del place.device_context

    return _switch(read, write)


def keep_determinism() -> Undo:
    """``use_deterministic_algorithms``, its ``warn_only``, and the filling of new memory."""
    return _all(
        (
            _switch(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
            _flag(torch.utils.deterministic, "fill_uninitialized_memory"),
        )
    )


def keep_cudnn() -> Undo:
    """cuDNN's switches; TF32 is in :func:`keep_float32_precision`."""
    names = ("enabled", "benchmark", "benchmark_limit", "deterministic")
    return _all(_flag(torch.backends.cudnn, name) for name in names)


def keep_cublas() -> Undo:
    """Which reductions cuBLAS may do in half precision."""
    names = (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    return _all(_flag(torch.backends.cuda.matmul, name) for name in names)


def _flag(owner: Any, name: str) -> Undo:
    return _switch(lambda: getattr(owner, name), lambda saved: setattr(owner, name, saved))


def keep_attention() -> Undo:
    """Which implementations of attention may be chosen."""
    cuda: Any = torch.backends.cuda
    return _all(
        (
            _switch(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
            _switch(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
            _switch(cuda.math_sdp_enabled, cuda.enable_math_sdp),
            _switch(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        )
    )


def keep_float32_precision() -> Undo:
    """TF32 and its kin, through the old interface and, since PyTorch 2.9, the new one.

    The two write to common settings and the old one refuses to be read once they disagree, so
    the old is put back first and the new one corrects it. Both are silenced: they warn of each
    other. A parent ("all") comes before its children, which inherit from it when unset.
    """
    old = (
        (torch._C._get_float32_matmul_precision, torch._C._set_float32_matmul_precision),
        (torch._C._get_cublas_allow_tf32, torch._C._set_cublas_allow_tf32),
        (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
    )
    undos = [_switch(partial(_readable, read), partial(_unless_none, write)) for read, write in old]
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        new = [("generic", "all")]
        new += [(b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")]
        undos += [_keep_new_precision(*pair) for pair in new]
    undo = _all(undos)

    def quietly() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            undo()

    return quietly


def _keep_new_precision(backend: str, operation: str) -> Undo:
    c: Any = torch._C
    return _switch(
        lambda: c._get_fp32_precision_getter(backend, operation),
        lambda saved: c._set_fp32_precision_setter(backend, operation, saved),
    )


def _readable(read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except RuntimeError:  # the program used the new interface
        return None


def _unless_none(write: Callable[[Any], object], value: Any) -> None:
    if value is not None:
        write(value)


def keep_threads() -> Undo:
    """``torch.set_num_threads``, on which the order of a sum depends."""
    return _switch(torch.get_num_threads, torch.set_num_threads)


def keep_numpy_errors() -> Undo:
    """``numpy.seterr`` and ``numpy.seterrcall``."""
    return _all(
        (_switch(np.geterr, lambda s: np.seterr(**s)), _switch(np.geterrcall, np.seterrcall))
    )


def keep_warning_filters() -> Undo:
    """``warnings.filters``: the list, which ``catch_warnings`` swaps, and its contents."""
    filters, saved = warnings.filters, list(warnings.filters)

    def undo() -> None:
        if warnings.filters is not filters or filters != saved:
            warnings.filters = filters
            warnings.resetwarnings()  # also tells the C code that its cache is stale
            list.extend(filters, saved)  # type: ignore[arg-type]

    return undo


def keep_environment() -> Undo:
    """``os.environ``, and with it the environment that C code sees."""
    saved = dict(os.environ)

    def undo() -> None:
        for name in os.environ.keys() - saved.keys():
            del os.environ[name]
        os.environ.update({k: v for k, v in saved.items() if os.environ.get(k) != v})

    return undo


def keep_directory() -> Undo:
    """The working directory, unless it was deleted already."""
    try:
        return partial(os.chdir, Path.cwd())
    except FileNotFoundError:
        return _all(())


def keep_import_path() -> Undo:
    """``sys.path``, the list and its contents."""
    return _all((partial(setattr, sys, "path", sys.path), keep_list(sys.path)))


def keep_logging() -> Undo:
    """The root logger's level and handlers, and ``logging.disable``."""
    root = logging.getLogger()
    return _all(
        (
            _switch(lambda: root.level, root.setLevel),
            _switch(lambda: root.manager.disable, logging.disable),
            keep_list(root.handlers),
        )
    )


PROCESS: tuple[Callable[[], Undo], ...] = (
    keep_python_rng,
    keep_numpy_rng,
    keep_torch_rng,
    keep_accelerator_rng,
    keep_mps_rng,
    keep_cuda_device,
    keep_grad_mode,
    keep_anomaly_mode,
    keep_autocast,
    keep_default_dtype,
    keep_default_device,
    keep_determinism,
    keep_cudnn,
    keep_cublas,
    keep_attention,
    keep_float32_precision,
    keep_threads,
    keep_numpy_errors,
    keep_warning_filters,
    keep_environment,
    keep_directory,
    keep_import_path,
    keep_logging,
)
