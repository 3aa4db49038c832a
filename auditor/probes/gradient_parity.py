"""The gradient of several ranks beside that of one process on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import seed_everything
from nnaudit.loop.losses import LossCall
from nnaudit.loop.trace import patched
from nnaudit.ranks.first_step import FirstStep

_SEEDS = (1, 2)
"""Two, so that what is random in a step shows as the difference between them."""


_ALIKE = 1.02
"""Up to this ratio, gradients of different batches have one length."""


@dataclass(frozen=True)
class Parity:
    """How the ranks' gradient lies to the mean of the gradients that one process computes.

    Attributes:
        ranks: how many there are.
        factor: the former's length along the latter, in the latter's: 1 where they agree.
        rest: the part of the former that is not along the latter, of its length.
        noise: the difference between the factors that two seeds give.
        norms: the length of both.
        targets: where every loss of the step is a mean over targets, how many each rank's has, by
            rank; empty otherwise.
        normalised: several batches make one rank's gradient, and those of all batches have one
            length: something normalises them, which makes their mean shorter.
        weighs_ranks: the ranks' gradient is nearer to the mean of the ranks' gradients than to the
            one over all targets.
    """

    ranks: int
    factor: float
    rest: float
    noise: float
    norms: tuple[float, float]
    targets: tuple[int, ...] = ()
    weighs_ranks: bool = False
    normalised: bool = False


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
                "the first step is not of one network, with weights that can be put together, and "
                "of a few batches of one loader"
            )
        names = dict(audit.loop.model.named_parameters()).keys()
        if names != steps[0].weights.keys():
            return NoParity("the network has other parameters in one process")
        try:
            taken = [
                [_taken(audit, step, batch, seed) for step in steps for batch in step.batches]
                for seed in _SEEDS
            ]
        except UserCodeError as error:
            return NoParity(f"one process cannot take the step: {error}")
        found = [[gradient for gradient, _ in each] for each in taken]
        targets = tuple(count for _, count in taken[0])
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
        weighted = torch.stack([_flat(_mean(each, targets), shared) for each in found]).mean(0)
        rest = several - float(several @ middle / (middle @ middle)) * middle
        return Parity(
            ranks=len(steps),
            factor=factor,
            rest=float(rest.norm() / several.norm()),
            noise=abs(along[0] - along[1]) / square,
            norms=(float(several.norm()), square**0.5),
            targets=_by_rank(targets, len(steps)) if all(targets) else (),
            normalised=len(found[0]) > len(steps) and _are_of_one_length(found[0], shared),
            weighs_ranks=float((several - middle).norm()) < float((several - weighted).norm()) / 2,
        )


def _taken(audit: Audit, step: FirstStep, batch: Any, seed: int) -> tuple[dict[str, Tensor], int]:
    """Return the gradient that one process uses on a rank's ``batch``, from its weights.

    And over how many targets its losses are means; 0 where not every one is a mean over targets.
    """
    loop, found = audit.loop, dict[str, Tensor]()
    named = dict(loop.model.named_parameters())

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not found:
            found.update(
                {n: p.grad.detach().cpu().double() for n, p in named.items() if p.grad is not None}
            )

    def keep_before(optimizer: Any, args: Any, kwargs: Any) -> None:
        # A closure computes the gradients within the step.
        if not any(callable(value) for value in (*args[1:], *kwargs.values())):
            keep(optimizer, args, kwargs)

    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(step.weights[name])
            parameter.grad = None
    seed_everything(seed)
    hooks = (
        register_optimizer_step_pre_hook(keep_before),
        register_optimizer_step_post_hook(keep),
    )
    try:
        # The mean of what is clipped is shorter than what is clipped of the mean.
        with patched(clip_grad, "_clip_grads_with_norm_", lambda real: _leave):
            seen = loop.step(batch, losses=True).observation
    finally:
        for hook in hooks:
            hook.remove()
    return found, _targets(seen.loss_calls) if seen is not None else 0


def _leave(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def _targets(calls: Sequence[LossCall]) -> int:
    """Return how many targets the losses average over; 0 where not every one is such a mean."""
    found = 0
    for call in calls:
        classes = call.kind in ("cross_entropy", "nll") and not call.target.is_floating_point()
        if not classes or call.reduction != "mean":
            return 0
        found += int((call.target != call.arguments["ignore_index"]).sum())
    return found


def _are_of_one_length(gradients: list[dict[str, Tensor]], names: list[str]) -> bool:
    lengths = [float(_flat(each, [n for n in names if n in each]).norm()) for each in gradients]
    return max(lengths) <= _ALIKE * min(lengths)


def _by_rank(targets: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    """Add up what the batches of one rank have."""
    each = len(targets) // ranks
    return tuple(sum(targets[rank * each : (rank + 1) * each]) for rank in range(ranks))


def _mean(gradients: list[dict[str, Tensor]], weights: Sequence[int] = ()) -> dict[str, Tensor]:
    """Average over ranks; a parameter that one of them does not use has a gradient of zero."""
    names = dict.fromkeys(name for each in gradients for name in each)
    weighs = weights if any(weights) else [1] * len(gradients)
    shares = [weight / sum(weighs) for weight in weighs]
    return {
        name: sum(
            (
                each[name] * share
                for each, share in zip(gradients, shares, strict=True)
                if name in each
            ),
            torch.zeros(()),
        )
        for name in names
    }


def _flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].double().reshape(-1) for name in names])
