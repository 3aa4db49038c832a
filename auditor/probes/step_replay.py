"""Whether a step's gradients depend on what the step before left behind."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.control import without_dropout
from nnaudit.loop.trace import EventKind, parameters_of
from nnaudit.probes.step_trace import StepTrace, Trace
from nnaudit.training.fitting import updates_by

LOUD = 4.0
"""How much larger than its gradient is what is left behind: clipping must not hide it."""


@dataclass(frozen=True)
class Remainder:
    """One parameter's gradient in steps that differ only in what was left behind.

    Attributes:
        parameter: its name.
        change: how much the gradient changed, against its own size.
        noise: how much it changed though nothing differed.
        alignment: the cosine between the change and what was left behind.
    """

    parameter: str
    change: float
    noise: float
    alignment: float

    @property
    def kept(self) -> bool:
        """Whether what was left behind is in the gradient of the next step.

        It would make up nearly all of it: a gradient that is zeroed does not change at all.
        """
        return self.change > 0.5 and self.alignment > 0.9 and self.noise < 0.1 * self.change


class StepReplay(Probe[tuple[Remainder, ...]]):
    """Repeats a step on one batch, at the same weights, after leaving gradients of our own.

    After the step of the last optimizer that uses a parameter its ``.grad`` is overwritten with
    random numbers R. A program that zeroes its gradients, before or after, never sees them; in one
    that does not they come back in the next step, with -R turned round. Four steps are taken: to
    plant, with R, with -R, and with R once more for the noise.
    """

    probes = (StepTrace,)
    steps = 8

    def measure(self, audit: Audit) -> tuple[Remainder, ...]:
        """Take four steps with the same random numbers, none of which changes the weights.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop, trace = audit.loop, audit.probe(StepTrace)
        with ExitStack() as stack:
            for model in loop.models:
                stack.enter_context(without_dropout(model))
            stack.enter_context(updates_by(loop, None))
            planter = _Planter(loop, trace, audit.seed)
            for optimizer in loop.optimizers:
                stack.callback(optimizer.register_step_pre_hook(planter.before).remove)
                stack.callback(optimizer.register_step_post_hook(planter.after).remove)
            seen = []
            for sign in (1.0, -1.0, 1.0, 1.0):
                audit.clock.check()
                planter.begin(sign)
                seed_everything(audit.seed)
                loop.step(trace.batches[0])
                seen.append(planter.gradients)
        return _compared(planter, seen[1], seen[2], seen[3])


class _Planter:
    """Reads the gradients of each step and leaves others behind."""

    def __init__(self, loop: Loop, trace: Trace, seed: int) -> None:
        self.gradients: dict[int, Tensor] = {}
        self.planted: dict[int, Tensor] = {}
        self.names = _names(loop)
        self._last = _last_users(loop, trace)
        self._generator = torch.Generator().manual_seed(seed)
        self._sign = 1.0

    def begin(self, sign: float) -> None:
        """A step begins, at whose end ``sign`` times the random numbers are left."""
        self._sign, self.gradients = sign, {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._read(optimizer, late=False)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if closure:
            self._read(optimizer, late=True)
        with torch.no_grad():
            for parameter in parameters_of(optimizer):
                if self._last.get(id(parameter)) == id(optimizer):
                    self._plant(parameter)

    def _read(self, optimizer: torch.optim.Optimizer, *, late: bool) -> None:
        for parameter in parameters_of(optimizer):
            gradient = parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                continue
            if late or id(parameter) not in self.gradients:
                self.gradients[id(parameter)] = gradient.detach().clone()

    def _plant(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.layout is not torch.strided or not gradient.numel():
            return
        if id(parameter) not in self.planted:
            size = float(torch.linalg.vector_norm(gradient.abs().float()))
            if not 0.0 < size < float("inf"):
                return
            random = torch.randn(gradient.shape, generator=self._generator)
            random *= LOUD * size / max(float(torch.linalg.vector_norm(random)), 1e-30)
            self.planted[id(parameter)] = random.to(gradient.device, gradient.dtype)
        gradient.copy_(self._sign * self.planted[id(parameter)])


def _names(loop: Loop) -> dict[int, str]:
    names: dict[int, str] = {}
    for n, optimizer in enumerate(loop.optimizers):
        for i, parameter in enumerate(parameters_of(optimizer)):
            names[id(parameter)] = f"optimizer {n + 1}, tensor {i}"
    for model in reversed(loop.models):
        names.update({id(p): name for name, p in model.named_parameters()})
    return names


def _last_users(loop: Loop, trace: Trace) -> dict[int, int]:
    """Return, by parameter, the optimizer that is the last to use its gradient in a round."""
    found: dict[int, int] = {}
    for event in trace.steps[-1].of(EventKind.STEP):
        optimizer = loop.optimizers[event.which]
        found.update({id(parameter): id(optimizer) for parameter in parameters_of(optimizer)})
    return found


def _compared(
    planter: _Planter, plus: dict[int, Tensor], minus: dict[int, Tensor], again: dict[int, Tensor]
) -> tuple[Remainder, ...]:
    found = []
    for key, planted in planter.planted.items():
        a, b, c = (seen.get(key) for seen in (plus, minus, again))
        if a is None and b is None and c is None:
            continue  # zeroed, and not used in these steps
        zero = torch.zeros_like(planted)
        a, b, c = (zero if each is None else each for each in (a, b, c))
        size = max(_norm(a), 1e-30)
        found.append(
            Remainder(
                parameter=planter.names[key],
                change=_norm(a - b) / size,
                noise=_norm(a - c) / size,
                alignment=_cosine(a - b, planted),
            )
        )
    return tuple(found)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.abs().float()))


def _cosine(a: Tensor, b: Tensor) -> float:
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = a.flatten().float(), b.flatten().float()
    length = float(a.norm()) * float(b.norm())
    return float(a @ b) / length if length > 0.0 else 0.0
