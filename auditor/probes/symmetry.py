"""Units that begin as copies of each other, and whether training tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.observation import Observation
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.perturbation import warmed_up

APART = 1e-3
"""Two rows that differ by less than this share of what they moved by are still the same: what
breaks a symmetry is as large as the gradient, what rounding adds is a ten-thousandth of it."""

_MOST = 512
"""Rows of a layer that are compared with each other, at most."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


@dataclass(frozen=True)
class DuplicateUnits:
    """Units of one layer that begin with equal weights.

    Attributes:
        module, parameter, type: of the layer, and which of its parameters.
        units: how many rows the parameter has.
        alike: how many of them began as a copy of another one.
        still: how many of these have moved and are a copy of another one after some steps.
        constant: every weight of the layer is the same number.
    """

    module: str
    parameter: str
    type: str
    units: int
    alike: int
    still: int
    constant: bool


class Symmetry(Probe[tuple[DuplicateUnits, ...]]):
    """Looks for equal rows in the weights of hidden layers; where there are some, takes steps."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> tuple[DuplicateUnits, ...]:
        """Return the layers at least half of whose units begin as copies of another one.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        output = set(_output_layers(audit.loop.model, first.completed[0])) if first.steps else set()
        before = {
            name: parameter.detach().clone()
            for name, parameter in _weights(audit.loop.model, output)
            if 2 * _copies(parameter) >= parameter.shape[0]
        }
        if not before:
            return ()
        warmed_up(audit)
        modules = dict(audit.loop.model.named_modules())
        now = dict(audit.loop.model.named_parameters())
        return tuple(_compared(name, was, now, modules) for name, was in before.items())


def _weights(model: nn.Module, output: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the trainable weight matrices of hidden layers, one row for each unit."""
    for module_name, module in model.named_modules():
        if not isinstance(module, _LAYERS) or module_name in output:
            continue
        # Filters of different groups see different channels: equal ones are no copies.
        if isinstance(module, nn.modules.conv._ConvNd) and (module.groups > 1 or module.transposed):
            continue
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if parameter.ndim > 1 and parameter.shape[0] > 1 and parameter.requires_grad:
                yield name, parameter


def _output_layers(model: nn.Module, seen: Observation) -> Iterator[str]:
    """Yield the layers whose output no later layer takes: the targets tell their units apart."""
    modules = dict(model.named_modules())
    called = [(a.module, modules[a.module]) for a in seen.activations if a.module in modules]
    layers = [(name, module) for name, module in called if isinstance(module, _LAYERS)]
    for position, (name, module) in enumerate(layers):
        width = _outputs(module)
        if not any(_takes(later, width) for _, later in layers[position + 1 :]):
            yield name


def _outputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.RNNBase):
        return module.hidden_size * (2 if module.bidirectional else 1)
    assert isinstance(module, nn.modules.conv._ConvNd)
    return module.out_channels


def _takes(module: nn.Module, width: int) -> bool:
    if isinstance(module, nn.RNNBase):
        return module.input_size == width
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels == width
    # Feature maps are flattened before a linear layer.
    return isinstance(module, nn.Linear) and module.in_features % width == 0


def _copies(weight: Tensor) -> int:
    """Count the rows that are equal, bit for bit, to another one."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    _, counts = torch.unique(rows, dim=0, return_counts=True)
    return int(counts[counts > 1].sum())


def _compared(
    name: str, was: Tensor, now: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> DuplicateUnits:
    before = was.reshape(was.shape[0], -1)[:_MOST].abs().double().cpu()
    after = now[name].detach().reshape(was.shape[0], -1)[:_MOST].abs().double().cpu()
    moved = (after - before).norm(dim=1)
    apart = torch.cdist(after, after)
    began = torch.cdist(before, before, compute_mode="donot_use_mm_for_euclid_dist") == 0.0
    began.fill_diagonal_(False)
    close = began & (apart <= APART * moved[:, None]) & (moved[:, None] > 0.0)
    module = name.rpartition(".")[0]
    return DuplicateUnits(
        module=module,
        parameter=name,
        type=type(modules[module]).__name__,
        units=len(before),
        alike=int(began.any(1).sum()),
        still=int(close.any(1).sum()),
        constant=bool((was == was.flatten()[0]).all()),
    )
