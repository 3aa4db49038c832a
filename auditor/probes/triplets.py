"""Triplets that a loss compares, and how near their inputs are to one another as they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit import stats
from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor

_BATCHES = 8
_FEWEST = 100
_KINDS = frozenset({"triplet_margin", "triplet_margin_with_distance"})


@dataclass(frozen=True)
class Triplets:
    """How many anchors are nearer to one of the two others, by the distance of the inputs.

    Attributes:
        rows: triplets of which the two distances differ.
        nearer: those whose anchor is nearer to the positive.
    """

    rows: int
    nearer: int

    @property
    def p_of_so_few(self) -> float:
        """The chance of no more, if each of the two were as often the nearer one."""
        return stats.binomial_sf(self.rows - self.nearer, self.rows, 0.5)


class TripletInputs(Probe[Triplets | None]):
    """Takes a few steps, and follows what a triplet loss of torch's compares to the inputs.

    None without such a loss, or where its three arguments are no outputs of three calls of the
    model with one tensor each.
    """

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> Triplets | None:
        """Count the triplets of :data:`_BATCHES` batches.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        if not any(c.kind in _KINDS for seen in first.observations[:1] for c in seen.loss_calls):
            return None
        rows = nearer = 0
        try:
            with preserved(audit.loop.subjects):
                for batch in consecutive_batches(audit.loop, _BATCHES):
                    audit.clock.check()
                    found = _of_step(audit, batch)
                    if found is None:
                        return None
                    toward, away = found
                    rows += int((toward != away).sum())
                    nearer += int((toward < away).sum())
        except UserCodeError:
            return None
        return Triplets(rows, nearer) if rows >= _FEWEST else None


def _of_step(audit: Audit, batch: Any) -> tuple[Tensor, Tensor] | None:
    """Return the distances (N,) of the anchors' inputs to the positives' and to the negatives'."""
    called: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        given, made = [t for _, t in batches.tensors(args)], main_tensor(output)
        if len(given) == 1 and given[0].is_floating_point() and made is not None:
            called.append((given[0].detach(), made.detach().clone()))

    with ExitStack() as stack:
        for model in audit.loop.models:
            if not isinstance(model, torch.jit.ScriptModule):
                stack.callback(model.register_forward_hook(note).remove)
        seen = audit.loop.step(batch, losses=True).observation
    calls = [call for call in (seen.loss_calls if seen else ()) if call.kind in _KINDS]
    if len(calls) != 1:
        return None
    inputs: list[Tensor] = []
    for part in ("anchor", "positive", "negative"):
        value = calls[0].arguments.get(part)
        of = [
            x
            for x, made in called
            if isinstance(value, Tensor) and batches.same_values(made, value)
        ]
        if len(of) != 1:
            return None
        inputs.append(of[0].double().reshape(len(of[0]), -1))
    if len({each.shape for each in inputs}) != 1:
        return None
    anchor, positive, negative = inputs
    return (anchor - positive).norm(dim=1), (anchor - negative).norm(dim=1)
