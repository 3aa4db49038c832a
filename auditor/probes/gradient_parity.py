"""The gradient of several ranks beside that of one process on the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import seed_everything

_SEEDS = (1, 2)
"""Two, so that what is random in a step shows as the difference between them."""


@dataclass(frozen=True)
class Parity:
    """How the ranks' gradient lies to the mean of the gradients that one process computes.

    Attributes:
        ranks: how many there are.
        factor: the former's length along the latter, in the latter's: 1 where they agree.
        rest: the part of the former that is not along the latter, of its length.
        noise: the difference between the factors that two seeds give.
        norms: the length of both.
    """

    ranks: int
    factor: float
    rest: float
    noise: float
    norms: tuple[float, float]


@dataclass(frozen=True)
class NoParity:
    """Why the two cannot be compared."""

    why: str


class GradientParity(Probe[Parity | NoParity]):
    """Takes the first step of every rank again, in one process, from the same weights."""

    def measure(self, audit: Audit) -> Parity | NoParity:
        """Compare the gradient that the ranks used with the mean of what each of them computes.

        Batch by batch: layers that normalise over a batch see the rows that they saw on the rank.
        """
        assert audit.ranks is not None  # Needs.RANKS
        steps = audit.ranks.first_steps
        if not steps:
            return NoParity(
                "the first step of every rank takes several batches, networks or sharded weights"
            )
        names = dict(audit.loop.model.named_parameters()).keys()
        if names != steps[0].weights.keys():
            return NoParity("the network has other parameters in one process")
        try:
            found = [[_gradient(audit, step, seed) for step in steps] for seed in _SEEDS]
        except UserCodeError as error:
            return NoParity(f"one process cannot take the step: {error}")
        reduced = steps[0].gradients
        means = [_mean(each) for each in found]
        shared = [n for n in reduced if all(n in mean for mean in means)]
        if not shared:
            return NoParity("no parameter has a gradient in both")
        several = _flat(reduced, shared)
        one, again = (_flat(mean, shared) for mean in means)
        # What is random in both is no part of their product, as it would be of either's square.
        square = float(one @ again)
        along = float(several @ one), float(several @ again)
        if square <= 0 or not float(several.norm()):
            return NoParity("the gradient is zero, or random for the most part")
        factor = sum(along) / 2 / square
        middle = (one + again) / 2
        rest = several - float(several @ middle / (middle @ middle)) * middle
        return Parity(
            ranks=len(steps),
            factor=factor,
            rest=float(rest.norm() / several.norm()),
            noise=abs(along[0] - along[1]) / square,
            norms=(float(several.norm()), square**0.5),
        )


def _gradient(audit: Audit, step: Any, seed: int) -> dict[str, Tensor]:
    """Return the gradient that one process uses on a rank's first batch, from its weights."""
    loop, found = audit.loop, dict[str, Tensor]()
    named = dict(loop.model.named_parameters())

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not found:
            found.update(
                {n: p.grad.detach().cpu().double() for n, p in named.items() if p.grad is not None}
            )

    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(step.weights[name])
            parameter.grad = None
    seed_everything(seed)
    hook = register_optimizer_step_pre_hook(keep)
    try:
        loop.step(step.batch)
    finally:
        hook.remove()
    return found


def _mean(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average over ranks; a parameter that one of them does not use has a gradient of zero."""
    names = dict.fromkeys(name for each in gradients for name in each)
    return {
        name: sum((each[name] for each in gradients if name in each), torch.zeros(()))
        / len(gradients)
        for name in names
    }


def _flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].double().reshape(-1) for name in names])
