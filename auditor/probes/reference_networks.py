"""Networks that are called in training and that nothing trains: teachers, references, features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.movement import same
from nnaudit.targets.layers import Dropout, StatisticsNorm
from nnaudit.training.optimizers import held_by

STEPS = 3


@dataclass(frozen=True)
class ReferenceNetwork:
    """A network beside the main one whose weights stood still in some steps that called it.

    Attributes:
        model: its number among the loop's models.
        type: its class.
        dropouts: how many of its layers dropped out something in these steps.
        normalisations: how many normalised by the batch's statistics.
    """

    model: int
    type: str
    dropouts: int
    normalisations: int


class ReferenceNetworks(Probe[tuple[ReferenceNetwork, ...]]):
    """Takes a few steps, and notes in which mode such networks are called."""

    def measure(self, audit: Audit) -> tuple[ReferenceNetwork, ...]:
        """Return the networks that are called with layers in train mode.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        networks = dict(_untrained(loop))
        if not networks:
            return ()
        active: set[int] = set()
        before = {n: [p.detach().clone() for p in m.parameters()] for n, m in networks.items()}
        with ExitStack() as stack:
            for network in networks.values():
                for layer in modal_layers(network):
                    stack.callback(layer.register_forward_pre_hook(_noting(active)).remove)
            for batch in consecutive_batches(loop, STEPS):
                audit.clock.check()
                loop.step(batch)
        still = (
            number
            for number, network in networks.items()
            if all(map(same, network.parameters(), before[number]))
        )
        found = (_described(number, networks[number], active) for number in still)
        return tuple(each for each in found if each.dropouts or each.normalisations)


def _untrained(loop: Loop) -> Iterator[tuple[int, nn.Module]]:
    """Yield the networks beside the main one that no optimizer holds any part of."""
    held = {id(p) for p in held_by(loop)}
    for number, model in enumerate(loop.models):
        ids = {id(p) for p in model.parameters()}
        if number > 0 and ids and held.isdisjoint(ids) and any(True for _ in modal_layers(model)):
            yield number, model


def modal_layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers whose mode makes a difference."""
    for layer in network.modules():
        drops = isinstance(layer, Dropout) and layer.p > 0.0
        keeps = isinstance(layer, StatisticsNorm) and layer.track_running_stats
        if drops or keeps:
            yield layer


def _noting(active: set[int]) -> Callable[..., None]:
    def note(module: nn.Module, args: Any) -> None:
        if module.training:
            active.add(id(module))

    return note


def _described(number: int, network: nn.Module, active: set[int]) -> ReferenceNetwork:
    layers = [layer for layer in modal_layers(network) if id(layer) in active]
    dropouts = sum(isinstance(layer, Dropout) for layer in layers)
    return ReferenceNetwork(number, type(network).__name__, dropouts, len(layers) - dropouts)
