"""Gradients as the optimizer is about to use them, and the step that it makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.loop.observation import Gradient, Observation


def is_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds no NaN and no infinity (True for integers)."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = (
            values.coalesce().values() if values.layout is torch.sparse_coo else values.to_dense()
        )
    # A sum is finite only where everything in it is, and takes a fraction of the time. It may
    # overflow where no value does: then each is looked at.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


class GradientRecorder:
    """Records gradients before an optimizer's step, and the step's size after it.

    Trainable parameters that no optimizer holds are recorded too, at the first step of any.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, ...],
        observation: Observation,
    ) -> None:
        self._names = {id(p): name for name, p in model.named_parameters() if not is_lazy(p)}
        self._model, self._optimizers = model, optimizers
        self._began = False
        self._observation = observation
        self._before: dict[str, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Record the gradients that ``optimizer`` is about to use; a hook before its step."""
        if not self._began:
            self._began = True
            for orphan in self._orphans():
                self._record(orphan, owned=False)
        for parameter in _parameters_of(optimizer):
            name = self._names.get(id(parameter), "")
            if name:
                self._before[name] = parameter.detach().clone()
                self._record(parameter, owned=True)

    def _orphans(self) -> list[Tensor]:
        """Return what no optimizer holds by now: layers may be thawed on the way to a step."""
        owned = {id(p) for optimizer in self._optimizers for p in _parameters_of(optimizer)}
        return [
            p
            for p in self._model.parameters()
            if p.requires_grad and id(p) not in owned and id(p) in self._names
        ]

    def _record(self, parameter: Tensor, *, owned: bool) -> None:
        self._observation.gradients.append(
            Gradient(
                parameter=self._names[id(parameter)],
                weight_norm=_norm(parameter),
                owned=owned,
                **_measured(parameter.grad),
            )
        )

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Record how far the step has moved each parameter; a hook after it."""
        live = {self._names.get(id(p), ""): p for p in _parameters_of(optimizer)}
        for i, record in enumerate(self._observation.gradients):
            if record.parameter in live and record.parameter in self._before:
                parameter = live[record.parameter]
                change = self._before.pop(record.parameter).sub_(parameter.detach())
                # An optimizer that calls the closure itself has its gradients only now.
                late = _measured(parameter.grad) if record.norm is None else {}
                self._observation.gradients[i] = replace(record, update_norm=_norm(change), **late)


def _measured(gradient: Tensor | None) -> dict[str, Any]:
    if gradient is None:
        return {"norm": None, "finite": True}
    norm = _norm(gradient)
    return {"norm": norm, "finite": math.isfinite(norm) or is_finite(gradient)}


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _norm(tensor: Tensor) -> float:
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    values = values.abs() if values.is_complex() else values
    return float(torch.linalg.vector_norm(values.float()))
