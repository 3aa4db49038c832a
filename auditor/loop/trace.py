"""What happens in a training step, in order: gradients zeroed, made, unscaled, clipped, used.

A :class:`Recorder` listens for the time of a ``with`` block, to every thread: a script trains in
one thread and is audited from another. It changes no value. It reads the norm of the gradients at
every event, so it is for a handful of steps.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import wraps
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import clip_grad

from nnaudit.errors import is_user
from nnaudit.loop.base import Loop
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role

_MULTIPLIED = 64
"""How many of the losses that a gradient scaler multiplied are remembered: those of a step."""


class EventKind(StrEnum):
    """The kinds of events."""

    ZERO = "zero_grad"
    BACKWARD = "backward"
    UNSCALE = "unscale"
    CLIP = "clip"
    ATTEMPT = "scaler.step"
    STEP = "optimizer.step"
    SCHEDULE = "scheduler.step"


@dataclass(frozen=True)
class Clip:
    """A call of ``clip_grad_norm_`` or ``clip_grad_value_``.

    Attributes:
        limit: the norm, or the largest element, that it was to leave.
        norm_type: the p of the norm; None for ``clip_grad_value_``.
        before: the norm (the largest element) that it met.
        parameters: whose gradients.
        given: how many tensors; none where a generator was used up by the call before.
        elements: how many numbers their gradients have.
        reaches: some optimizer holds one of them.
    """

    limit: float
    norm_type: float | None
    before: float
    parameters: tuple[Tensor, ...]
    given: int = 1
    elements: int = 1
    reaches: bool = True

    def measure(self) -> float:
        """Return the present norm (largest element) of the same gradients."""
        return norm_of(self.parameters, math.inf if self.norm_type is None else self.norm_type)


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        which: the number of the optimizer, or of the scheduler, that it concerns; -1 for several.
        norms: of each optimizer's gradients: after a backward, before anything else; None where
            there are none at all.
        location: the user's line; None where the loop is not the user's.
        root: of a backward: what was back-propagated, None unless it is a scalar.
        scale: of a backward: by how much a gradient scaler had multiplied the loss; of an attempt:
            by how much it divides.
        raw: of a backward: a gradient scaler is in use, and what was back-propagated does not
            contain anything that it has multiplied.
        clip: of a clip.
        clipped: of a step: for every clip of this optimizer's gradients since its last step, the
            limit and what is there now.
        closure: of a step: the optimizer was given one, and computes its gradients itself.
        stale: of a backward: it adds to gradients that were made at other weights; outside of a
            closure, at other values of every parameter that has one.
        within: of a backward: the optimizer whose closure it happened in; -1 outside.
        skipped: of an attempt: the scaler met infinities and left the step out.
        ahead: of a schedule: the optimizer had not stepped before.
        explicit: of a schedule: it was told the epoch.
    """

    kind: EventKind
    which: int
    norms: tuple[float | None, ...]
    location: Location | None = None
    root: float | None = None
    scale: float = 1.0
    raw: bool = False
    clip: Clip | None = None
    clipped: tuple[tuple[Clip, float], ...] = ()
    closure: bool = False
    within: int = -1
    stale: bool = False
    skipped: bool = False
    ahead: bool = False
    explicit: bool = False


def norm_of(parameters: Iterable[Tensor], p: float = 2.0) -> float:
    """Return the p-norm of all the gradients of ``parameters`` as one vector; 0 without any."""
    norms = [_gradient_norm(each.grad, p) for each in parameters if each.grad is not None]
    if not norms:
        return 0.0
    return float(torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64), p))


def _gradient_norm(gradient: Tensor, p: float) -> float:
    values = gradient.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values() if values.is_sparse else values.to_dense()
    if values.numel() == 0:
        return 0.0
    values = values.abs() if values.is_complex() else values
    return float(torch.linalg.vector_norm(values.float(), p))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return every parameter of every group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``make`` wrap the attribute ``name`` of ``owner`` for the time of a ``with``."""
    own = name in vars(owner)
    real = getattr(owner, name)
    setattr(owner, name, make(real))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


@contextmanager
def louder_losses(factor: float) -> Iterator[None]:
    """Multiply whatever is back-propagated by ``factor`` for the time of a ``with``."""

    def make(real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
            real(tuple(root * factor for root in roots), *args, **kwargs)

        return backward

    with patched(torch.autograd, "backward", make):
        yield


class Recorder:
    """Records the events of ``loop``'s steps for the time of a ``with`` block.

    Attributes:
        events: what happened, in order; :meth:`take` empties it.
    """

    def __init__(self, loop: Loop) -> None:
        self.events: list[Event] = []
        self._loop = loop
        self._optimizers = loop.optimizers
        self._schedulers = loop.schedulers
        self._parameters = [parameters_of(optimizer) for optimizer in self._optimizers]
        self._ids = [{id(p) for p in parameters} for parameters in self._parameters]
        self._stack = ExitStack()
        self._backwards = 0
        self._scheduling = 0
        self._stepping: list[int] = []
        self._awaited: set[int] = set()
        self._scale = 1.0
        self._versions: dict[int, list[int]] = {}
        self._weights: dict[int, tuple[float, ...]] = {}
        self._multiplied: deque[Any] = deque(maxlen=_MULTIPLIED)
        self._norm_type = 2.0
        self._clips: list[Clip] = []

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

    def take(self) -> tuple[Event, ...]:
        """Return the events so far and forget them."""
        events, self.events = tuple(self.events), []
        return events

    def _install(self, stack: ExitStack) -> None:
        patches: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (torch.autograd, "backward", self._backward),
            (torch.optim.Optimizer, "zero_grad", self._zero),
            (nn.Module, "zero_grad", self._zero),
            (torch.amp.GradScaler, "scale", self._scaled),
            (torch.amp.GradScaler, "unscale_", self._unscale),
            (torch.amp.GradScaler, "step", self._attempt),
            # Whichever way the user imported clip_grad_norm_, it calls these two.
            (clip_grad, "_get_total_norm", self._total_norm),
            (clip_grad, "_clip_grads_with_norm_", self._clip_norm),
        ]
        patches += [(owner, "clip_grad_value_", self._clip_value) for owner in _importers()]
        for cls, name in _stepping_classes(self._schedulers):
            patches.append((cls, name, self._schedule))
        for owner, name, make in patches:
            stack.enter_context(patched(owner, name, make))
        for which, optimizer in enumerate(self._optimizers):
            before, after = self._before(which), self._after(which)
            stack.callback(optimizer.register_step_pre_hook(before).remove)
            stack.callback(optimizer.register_step_post_hook(after).remove)

    def _add(self, kind: EventKind, which: int, **details: Any) -> None:
        if self._loop.starting:
            return  # a script that is executed once more takes a first step of its own
        norms = tuple(_norm_or_none(parameters) for parameters in self._parameters)
        self.events.append(Event(kind, which, norms, own_line(), **details))

    def _owner(self, parameters: Iterable[Tensor]) -> int:
        """Return the one optimizer that holds ``parameters``; -1 where there is none such."""
        ids = {id(p) for p in parameters}
        owners = [which for which, held in enumerate(self._ids) if ids & held]
        return owners[0] if len(owners) == 1 else -1

    def _backward(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            within = self._stepping[-1] if self._stepping else -1
            stale = self._backwards == 0 and self._is_stale(within)
            self._backwards += 1
            try:
                real(tensors, *args, **kwargs)
            finally:
                self._backwards -= 1
            if self._backwards == 0:  # reentrant checkpointing goes back within going back
                root = _scalar(tensors)
                raw = self._is_raw(tensors)
                self._add(
                    EventKind.BACKWARD,
                    -1,
                    root=root,
                    scale=self._scale,
                    raw=raw,
                    within=within,
                    stale=stale,
                )

        return backward

    def _zero(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> None:
            held = owner.parameters() if isinstance(owner, nn.Module) else parameters_of(owner)
            held = list(held)
            self._add(EventKind.ZERO, self._owner(held))
            ids = {id(p) for p in held}
            self._clips = [c for c in self._clips if not ids & {id(p) for p in c.parameters}]
            real(owner, *args, **kwargs)

        return zero_grad

    def _scaled(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def scale(scaler: Any, outputs: Any) -> Any:
            result = real(scaler, outputs)
            self._scale = float(scaler.get_scale()) if scaler.is_enabled() else 1.0
            tensors = [result] if isinstance(result, Tensor) else [*result]
            self._multiplied.extend([getattr(each, "grad_fn", None) for each in tensors])
            return result

        return scale

    def _is_stale(self, within: int) -> bool:
        """Whether backward goes onto gradients of other weights, in an optimizer's closure or not.

        What a closure changes, the optimizer changes; the program itself may do so without a trace
        (``p.data.add_``), and is told by a few values.
        """
        if within < 0:
            held = {id(p): p for parameters in self._parameters for p in parameters}
            now = {key: _some_values(p) for key, p in held.items()}
            before, self._weights = self._weights, now
            used = [key for key, p in held.items() if p.grad is not None and now[key]]
            others = all(before.get(key, now[key]) != now[key] for key in used)
            norms = [_norm_or_none([held[key]]) for key in used]
            return bool(norms) and others and all(norms)
        parameters = self._parameters[within]
        versions = [parameter._version for parameter in parameters]
        other, self._versions[within] = versions != self._versions.get(within, versions), versions
        return other and bool(_norm_or_none(parameters))

    def _is_raw(self, roots: Any) -> bool:
        """Whether a scaler is in use, and the graph of ``roots`` holds nothing it multiplied.

        What it has multiplied without a graph, a factor made by hand, may be in any loss.
        """
        multiplied = set(self._multiplied)
        if not multiplied or None in multiplied:
            return False
        tensors = (roots,) if isinstance(roots, Tensor) else tuple(roots)
        if not all(isinstance(each, Tensor) for each in tensors):
            return False  # an edge of a graph, whose loss is unknown
        return multiplied.isdisjoint(_nodes([each.grad_fn for each in tensors]))

    def _unscale(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def unscale(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
            if scaler.is_enabled():
                self._add(EventKind.UNSCALE, self._owner(parameters_of(optimizer)))
            real(scaler, optimizer)

        return unscale

    def _attempt(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def step(scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            if not scaler.is_enabled():
                return real(scaler, optimizer, *args, **kwargs)
            which = self._owner(parameters_of(optimizer))
            steps = sum(event.kind is EventKind.STEP for event in self.events)
            factor = float(scaler.get_scale())
            result = real(scaler, optimizer, *args, **kwargs)
            skipped = steps == sum(event.kind is EventKind.STEP for event in self.events)
            self._add(EventKind.ATTEMPT, which, skipped=skipped, scale=factor)
            if skipped:
                self._forget_clips(which)
            return result

        return step

    def _total_norm(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def total(tensors: Any, norm_type: float = 2.0, *args: Any, **kwargs: Any) -> Any:
            self._norm_type = float(norm_type)
            return real(tensors, norm_type, *args, **kwargs)

        return total

    def _clip_norm(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def clip(parameters: Any, max_norm: float, total_norm: Any, *args: Any, **kw: Any) -> Any:
            held = (parameters,) if isinstance(parameters, Tensor) else tuple(parameters)
            self._clipped(held, float(max_norm), self._norm_type)
            return real(held, max_norm, total_norm, *args, **kw)

        return clip

    def _clip_value(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def clip(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> Any:
            held = (parameters,) if isinstance(parameters, Tensor) else tuple(parameters)
            self._clipped(held, float(clip_value), None)
            return real(held, clip_value, *args, **kwargs)

        return clip

    def _clipped(self, held: tuple[Tensor, ...], limit: float, norm_type: float | None) -> None:
        before = norm_of(held, math.inf if norm_type is None else norm_type)
        elements = sum(p.grad.numel() for p in held if p.grad is not None)
        reaches = any(id(p) in ids for p in held for ids in self._ids)
        clip = Clip(limit, norm_type, before, held, len(held), elements, reaches)
        self._clips.append(clip)
        self._add(EventKind.CLIP, self._owner(held), clip=clip, scale=self._scale)

    def _schedule(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            which = next((i for i, s in enumerate(self._schedulers) if s is scheduler), -1)
            outermost = self._scheduling == 0
            if outermost and which >= 0:
                optimizer = getattr(scheduler, "optimizer", None)
                # A scheduler of torch's wraps the optimizer's step to remember that it was called.
                counted = hasattr(getattr(optimizer, "step", None), "_wrapped_by_lr_sched")
                ahead = counted and not getattr(optimizer, "_opt_called", False)
                explicit = bool(args or any(v is not None for v in kwargs.values()))
                self._add(EventKind.SCHEDULE, which, ahead=ahead, explicit=explicit)
            self._scheduling += 1
            try:
                return real(scheduler, *args, **kwargs)
            finally:
                self._scheduling -= 1

        return step

    def _before(self, which: int) -> Callable[..., Any]:
        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
            outermost = not self._stepping  # an optimizer that wraps another steps once
            self._stepping.append(which)
            if not outermost:
                return None
            closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
            if len(closures) == 1 and not isinstance(optimizer, torch.optim.LBFGS):
                noted = self._noted_within(which, closures[0])
                self._awaited.add(which)

                def given(value: Any) -> Any:
                    return noted if value is closures[0] else value

                return tuple(map(given, args)), {k: given(v) for k, v in kwargs.items()}
            self._add_step(which, closure=bool(closures))
            return None

        return before

    def _add_step(self, which: int, *, closure: bool) -> None:
        now = tuple(
            (clip, clip.measure())
            for clip in self._clips
            if any(id(p) in self._ids[which] for p in clip.parameters)
        )
        self._add(EventKind.STEP, which, clipped=now, closure=closure)

    def _noted_within(self, which: int, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``closure``, after which the step is noted: that is when parameters change.

        Frameworks hand over one that does all that a plain loop does before its step. An optimizer
        that calls it again, from other parameters, computes its gradients itself.
        """
        begins, calls = len(self.events), 0

        @wraps(closure)
        @callstack.registered(Role.STANDS_IN)
        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                if calls == 2:
                    self._take_back(which, begins)
                return closure(*args, **kwargs)
            stepping, self._stepping = self._stepping, []
            try:
                result = closure(*args, **kwargs)
            finally:
                self._stepping = stepping
            self._awaited.discard(which)
            self._add_step(which, closure=False)
            return result

        return noted

    def _take_back(self, which: int, begins: int) -> None:
        """Say of the step that was noted last that it began before its closure was called."""
        within = [
            replace(e, within=which) if e.kind is EventKind.BACKWARD else e
            for e in self.events[begins:]
        ]
        steps = [e for e in within if e.kind is EventKind.STEP and e.which == which]
        rest = [e for e in within if e not in steps[-1:]]
        self.events[begins:] = [*(replace(step, closure=True) for step in steps[-1:]), *rest]

    def _after(self, which: int) -> Callable[..., None]:
        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if self._stepping:  # empty where recording began in the midst of a step: in a closure
                self._stepping.pop()
            if which in self._awaited:  # it has stepped without a call of its closure
                self._awaited.discard(which)
                self._add_step(which, closure=True)
            self._forget_clips(which)

        return after

    def _forget_clips(self, which: int) -> None:
        held = self._ids[which] if which >= 0 else set()
        self._clips = [
            clip for clip in self._clips if not any(id(p) in held for p in clip.parameters)
        ]


def _nodes(ends: Iterable[Any]) -> Iterator[Any]:
    """Yield every node of the graph behind ``ends``, each once."""
    waiting, seen = [end for end in ends if end is not None], set[Any]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions if following is not None]


def without_gradients(event: Event) -> Event:
    """Return ``event`` without its references to tensors."""
    bare = tuple((replace(clip, parameters=()), now) for clip, now in event.clipped)
    clip = replace(event.clip, parameters=()) if event.clip is not None else None
    return replace(event, clip=clip, clipped=bare)


def _norm_or_none(parameters: list[Tensor]) -> float | None:
    return norm_of(parameters) if any(p.grad is not None for p in parameters) else None


def _scalar(tensors: Any) -> float | None:
    roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    if len(roots) == 1 and isinstance(roots[0], Tensor) and roots[0].numel() == 1:
        return float(roots[0].detach())
    return None


def _importers() -> list[Any]:
    """Return the modules through which ``clip_grad_value_`` may be called, the user's included."""
    real = clip_grad.clip_grad_value_
    found = [clip_grad, nn.utils]
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if name and getattr(module, "clip_grad_value_", None) is real and is_user(name):
            found.append(module)
    return found


def _stepping_classes(schedulers: Iterable[Any]) -> list[tuple[type, str]]:
    """Return the classes that define how ``schedulers`` step, and the method's name."""
    found: dict[tuple[type, str], None] = {}
    for scheduler in schedulers:
        for cls in type(scheduler).__mro__:
            for name in ("step", "step_update"):
                if name in vars(cls) and callable(vars(cls)[name]):
                    found[cls, name] = None
    return list(found)


def own_line() -> Location | None:
    """Return the user's line that is being executed; None where nnaudit writes the loop."""
    calls = callstack.own_call(Role.STANDS_IN)
    return callstack.location(calls[-1]) if calls else None


def _some_values(parameter: Tensor) -> tuple[float, ...]:
    """Return the first and the last of the values of ``parameter``; none where it is not dense."""
    if is_lazy(parameter) or parameter.layout is not torch.strided or parameter.is_complex():
        return ()
    values = parameter.detach().reshape(-1)
    return tuple(torch.cat([values[:3], values[-3:]]).float().tolist())
