"""Taps on a whole process: what a script makes, asks its loaders for, calls and steps.

Patches are put in once for all runs of a script. They report to one listener at a time, and only
what happens in the script's own thread while it has control: the auditor's doings are not seen.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import count
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import distributed, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader

from nnaudit.targets.callstack import Role, registered

WRAPPERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("accelerate.data_loader", ("DataLoaderShard", "DataLoaderDispatcher")),
    ("fastai.data.load", ("DataLoader",)),
    ("timm.data.loader", ("PrefetchLoader",)),
    ("torch_geometric.loader.prefetch", ("PrefetchLoader",)),
)
"""Loader classes that are not DataLoaders or hold one, by module: the outermost one is tapped."""


def is_wrapper(thing: Any) -> bool:
    """Whether ``thing`` is a loader of one of the classes in :data:`WRAPPERS`."""
    kinds = {(cls.__module__, cls.__name__) for cls in type(thing).__mro__}
    return any((module, name) in kinds for module, names in WRAPPERS for name in names)


class Listener(Protocol):
    """What a run hears of its script."""

    @property
    def leads(self) -> bool:
        """The script takes the steps that the auditor wants."""

    @property
    def repeats(self) -> bool:
        """The script is executed again in this process."""

    def on_create(self, kind: str, thing: Any) -> None:
        """An object of ``kind`` (module, optimizer, scheduler, scaler, loader) is being built."""

    def on_optimizer_built(self, optimizer: Optimizer) -> None:
        """An optimizer has its parameter groups, as the script gave them."""

    def on_iterate(self, iterator: TappedIterator) -> None:
        """The script began to iterate over a loader."""

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """The script asks for the next batch: return it, or raise StopIteration."""

    def on_forward(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The script calls an outermost module: return what ``run`` makes of the arguments."""

    def on_backward(self, root: torch.Tensor) -> bool:
        """The script back-propagates ``root``; returns whether it shall."""

    def on_loss_scaled(self, loss: Any, result: Any) -> None:
        """The script's gradient scaler multiplied ``loss``."""

    def on_scaler_step(self) -> None:
        """The script's gradient scaler took a step, or skipped it."""

    def on_zero_grad(self) -> None:
        """The script set gradients to zero."""

    def on_step_start(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer is about to step, with a ``closure`` that calls the network itself."""

    def on_step_end(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""


class Patches:
    """Puts the patches in for the time of a ``with``.

    Attributes:
        listener: who is told; None while the auditor has control.
        usage: what an argparse parser last complained about, with its usage line.
        propagating: how many backward passes the script is in.
    """

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.usage = ""
        self.inside = 0
        self.propagating = 0
        self._depth = 0
        self._calls = 0
        self._thread = threading.get_ident()
        self._stack = ExitStack()
        self._tapped: set[type] = set()
        self._patched: set[tuple[Any, str]] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._install(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def active_listener(self) -> Listener | None:
        """Return the listener, if the caller is the script in control."""
        return self.listener if threading.get_ident() == self._thread else None

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Silence the taps for the time of a ``with``."""
        listener, self.listener = self.listener, None
        try:
            yield
        finally:
            self.listener = listener

    @contextmanager
    def within(self) -> Iterator[None]:
        """A loader is at work: the loaders that it iterates over are its own affair."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def _install(self, stack: ExitStack) -> None:
        self._patch(stack, nn.Module, "__init__", lambda f: self._constructor("module", f))
        self._patch(stack, nn.Module, "__setstate__", lambda f: self._constructor("module", f))
        for owner in (nn.Module, nn.RNNBase):  # which has one of its own
            self._patch(stack, owner, "__getstate__", self._module_state)
        self._patch(stack, Optimizer, "__init__", lambda f: self._constructor("optimizer", f))
        for zeroed in (nn.Module, Optimizer):
            self._patch(stack, zeroed, "zero_grad", self._zero_grad)
        for cls in vars(lr_scheduler).values():
            if (
                isinstance(cls, type)
                and issubclass(cls, lr_scheduler.LRScheduler)
                and "__init__" in vars(cls)
            ):
                self._patch(stack, cls, "__init__", lambda f: self._constructor("scheduler", f))
        self._patch(stack, lr_scheduler.LRScheduler, "step", self._scheduler_step)
        scaler = torch.amp.GradScaler
        self._patch(stack, scaler, "__init__", lambda f: self._constructor("scaler", f))
        self._patch(stack, scaler, "scale", self._scaler_scale)
        self._patch(stack, scaler, "step", self._scaler_step)
        self._patch(stack, DataLoader, "__init__", lambda f: self._constructor("loader", f))
        self._tap_loader_class(DataLoader, stack)
        self._patch(stack, torch.autograd, "backward", self._backward)
        self._patch(stack, argparse.ArgumentParser, "error", self._parser_error)
        if distributed.is_available():
            stack.callback(_leave_group, distributed.is_initialized())
            for name in ("init_process_group", "destroy_process_group"):
                self._patch(stack, distributed, name, self._once_for_all)
        for handle in (
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            stack.callback(handle.remove)

    def patch_once(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace a framework's function by ``make`` of it, until the taps are closed."""
        if (owner, name) not in self._patched:
            self._patched.add((owner, name))
            self._patch(self._stack, owner, name, make)

    @staticmethod
    def _patch(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        own = name in vars(owner)
        real = getattr(owner, name)
        setattr(owner, name, make(real))
        stack.callback(setattr, owner, name, real) if own else stack.callback(delattr, owner, name)

    def _constructor(self, kind: str, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def construct(thing: Any, *args: Any, **kwargs: Any) -> None:
            listener = self.active_listener()
            if listener is not None:
                listener.on_create(kind, thing)
                self._tap_known_wrappers()
                if kind == "loader":
                    for cls in type(thing).__mro__:
                        if "__iter__" in vars(cls) and issubclass(cls, DataLoader):
                            self._tap_loader_class(cls, self._stack)
            real(thing, *args, **kwargs)
            if listener is not None and kind == "optimizer":
                listener.on_optimizer_built(thing)

        return construct

    def _tap_known_wrappers(self) -> None:
        for module, names in WRAPPERS:
            if module in sys.modules:
                for name in names:
                    cls = getattr(sys.modules[module], name, None)
                    if isinstance(cls, type):
                        self._tap_loader_class(cls, self._stack)

    def _tap_loader_class(self, cls: type, stack: ExitStack) -> None:
        if cls not in self._tapped:
            self._tapped.add(cls)
            self._patch(stack, cls, "__iter__", self._iter)

    def _iter(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def iterate(loader: Any) -> Any:
            listener = self.active_listener()
            if listener is None or self.inside:
                return real(loader)
            iterator = TappedIterator(self, loader, real)
            listener.on_iterate(iterator)
            return iterator

        return iterate

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Report calls of outermost modules for the time of a ``with``.

        Not by a global hook: the presence of one makes ``torch.compile`` complain. Runs on top of
        one another share one patch, or each call would be reported once for each run.
        """
        with ExitStack() as stack:
            stack.callback(setattr, self, "_depth", self._depth)
            self._depth = 0
            if not self._calls:
                self._patch(stack, nn.Module, "__call__", self._call)
            stack.callback(setattr, self, "_calls", self._calls)
            self._calls += 1
            yield

    def _call(self, real: Any) -> Any:
        @registered(Role.STANDS_IN)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            listener = self.active_listener()
            if listener is None or self._depth or self.inside:
                return real(module, *args, **kwargs)

            @registered(Role.STANDS_IN)
            def run(args: Any, kwargs: Any) -> Any:
                self._depth += 1
                try:
                    return real(module, *args, **kwargs)
                finally:
                    self._depth -= 1

            return listener.on_forward(module, run, args, kwargs)

        return call

    def _backward(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            listener = self.active_listener()
            wanted = True
            if listener is not None:
                for root in _scalars(tensors, args[0] if args else kwargs.get("grad_tensors")):
                    wanted = listener.on_backward(root) and wanted
            if wanted:
                self.propagating += 1
                try:
                    real(tensors, *args, **kwargs)
                finally:
                    self.propagating -= 1

        return backward

    def _module_state(self, real: Any) -> Any:
        """A network that the script pickles, or copies, goes without the auditor's hooks."""

        def state(module: nn.Module) -> Any:
            found = real(module)
            if self.active_listener() is None or not isinstance(found, dict):
                return found
            kept = {
                name: type(hooks)((key, h) for key, h in hooks.items() if not _is_auditors(h))
                for name in ("_forward_hooks", "_forward_pre_hooks")
                if (hooks := found.get(name))
            }
            return {**found, **kept}

        return state

    def _scheduler_step(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            listener = self.active_listener()
            try:
                real(scheduler, *args, **kwargs)
            except (ValueError, LookupError):
                # The end of its plan: an audit may take more steps than the script would have.
                if listener is None or not listener.leads:
                    raise

        return step

    def _scaler_scale(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def scale(scaler: Any, outputs: Any) -> Any:
            result = real(scaler, outputs)
            listener = self.active_listener()
            if listener is not None:
                listener.on_loss_scaled(outputs, result)
            return result

        return scale

    def _scaler_step(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(scaler, optimizer, *args, **kwargs)
            listener = self.active_listener()
            if listener is not None:
                listener.on_scaler_step()
            return result

        return step

    def _once_for_all(self, real: Any) -> Any:
        """A process has one group of processes: later executions take the first one's."""

        @wraps(real)
        @registered(Role.STANDS_IN)
        def once(*args: Any, **kwargs: Any) -> None:
            listener = self.active_listener()
            if listener is None or not (listener.repeats and distributed.is_initialized()):
                real(*args, **kwargs)

        return once

    def _zero_grad(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(owner, *args, **kwargs)
            listener = self.active_listener()
            if listener is not None:
                listener.on_zero_grad()
            return result

        return zero_grad

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        listener = self.active_listener()
        if listener is not None:
            closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
            listener.on_step_start(optimizer, closure)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        listener = self.active_listener()
        if listener is not None:
            listener.on_step_end(optimizer)

    def _parser_error(self, real: Any) -> Any:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def error(parser: argparse.ArgumentParser, message: str) -> None:
            self.usage = f"{parser.format_usage().strip()}\n{parser.prog}: error: {message}"
            real(parser, message)

        return error


def _leave_group(was_there: bool) -> None:
    if distributed.is_initialized() and not was_there:
        distributed.destroy_process_group()


def _is_auditors(hook: Any) -> bool:
    function = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(function, "__module__", "")).partition(".")[0] == "nnaudit"


def _scalars(tensors: Any, gradients: Any) -> Iterator[torch.Tensor]:
    """Yield what is minimised: a root of one element, or the product of root and gradient."""
    roots = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
    weights = (gradients,) if isinstance(gradients, torch.Tensor) else tuple(gradients or ())
    for i, root in enumerate(roots):
        weight = weights[i] if i < len(weights) else None
        if not isinstance(root, torch.Tensor):
            continue
        if root.numel() == 1:
            yield root
        elif isinstance(weight, torch.Tensor) and weight.shape == root.shape:
            yield (root.detach() * weight).sum()


_NUMBERS = count(1)


class TappedIterator:
    """Stands between a loader's iterator and the script.

    Attributes:
        loader: whose iterator it is.
        key: a number of its own.
        count: how many batches the script was given.
        exhausted: the script was told that there are no more.
        latest: a copy of the last batch, kept while the run finds out what is what.
    """

    def __init__(self, taps: Patches, loader: Any, start: Callable[[Any], Any]) -> None:
        self.loader = loader
        self.key = next(_NUMBERS)
        self.count = 0
        self.exhausted = False
        self.latest: Any = None
        self._taps = taps
        self._start = start
        self._raw: Any = None

    @property
    def raw(self) -> Any:
        """The loader's own iterator, begun when it is first needed."""
        if self._raw is None:
            with self._taps.within():
                self._raw = self._start(self.loader)
        return self._raw

    def remembered(self) -> TappedIterator:
        """Return a copy that keeps neither the loader's own iterator nor this one alive."""
        other = TappedIterator(self._taps, self.loader, self._start)
        other.key, other.count, other.latest = self.key, self.count, self.latest
        return other

    def begin(self) -> None:
        """Start the loader's own iterator now, where the script expects it to be started."""
        _ = self.raw

    def draw(self) -> Any:
        """Return the loader's own next batch."""
        with self._taps.within():
            return next(self.raw)

    def __iter__(self) -> TappedIterator:
        return self

    def __next__(self) -> Any:
        listener = self._taps.active_listener()
        if listener is None or self._taps.inside:
            return self.draw()
        return listener.on_next_batch(self)

    def __len__(self) -> int:
        return len(self.raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.raw, name)
