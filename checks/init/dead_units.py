"""INIT105: units that are inactive for every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.graph import Firing
from nnaudit.loop.observation import Observation
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.first_steps import First, FirstSteps, initial_steps
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.wording import count

_BATCHES = 16
"""Batches that are looked at, at most, to reach the number of samples."""

_FEWEST = 128
"""A training set of fewer samples says little, even all of it."""


@dataclass
class _Layer:
    """One activation function's units over some samples."""

    after: str
    kind: str
    active: Tensor

    @property
    def dead(self) -> float:
        """The share of units that no sample activated."""
        return 1.0 - float(self.active.float().mean())


class DeadUnits(Check):
    """Are most units of every layer active for some samples?

    Why: A ReLU that is negative for every sample, and a sigmoid or tanh at its bound for every
        sample, pass no gradient on: the layers before them do not learn. The causes are inputs that
        are not centred, large negative biases, and weights that are too large.
    How: For each call of ReLU, sigmoid or tanh, as a module or a function, counts the units
        (channels, features) that leave the flat part for at least one sample: above zero, or more
        than 0.001 from the bounds. Warns when more than `share` of a layer's units never do, over
        at least `samples` samples at the initial weights.
        - Half of the ReLUs are negative for one given sample; being negative for all of 512 is not
          normal under any initialisation.
        - A training set of fewer samples is judged as a whole, from 128 samples on.
        - The first training step is enough when all is well; only a suspicious one is followed by
          more batches.
        - Layers with fewer than `units` units, and gates inside torch's recurrent layers, are not
          judged.
    Fix: Normalise the inputs; keep the framework's default initialisation with zero biases, or use
        `nn.LeakyReLU` or `nn.GELU`.
    References: Lu et al., "Dying ReLU and Initialization: Theory and Numerical Examples" (2019);
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
        networks" (2010), section 3, on saturation.
    """

    code, name, kind = "INIT105", "dead-units", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"share": 0.5, "samples": 512, "units": 8}

    def run(self, audit: Audit) -> Result:
        """Count the units that are active, over more batches where many are not."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        layers = _layers(first.completed[0])
        if not layers:
            return self.skipped("No ReLU, sigmoid or tanh is called.")
        samples = batches.size(first.batches[0])
        if self._dead(audit, layers):
            layers, samples = self._more(audit, first, layers)
        dead = self._dead(audit, layers)
        if not dead:
            worst = max(layers, key=lambda layer: layer.dead)
            return self.passed(
                f"At most {worst.dead:.0%} of the units of any layer are inactive on all {samples} "
                "samples.",
                evidence=(_table(layers),),
            )
        if samples < min(self.option(audit, "samples"), _all_there_are(audit)):
            return self.inconclusive(
                f"{dead[0].dead:.0%} of the units after {dead[0].after or 'the input'} are "
                f"inactive on all {samples} samples, which are too few to judge.",
                evidence=(_table(layers),),
            )
        return self._warned(audit, layers, dead, samples)

    def _warned(
        self, audit: Audit, layers: list[_Layer], dead: list[_Layer], samples: int
    ) -> Result:
        first = dead[0]
        modules = dict(audit.loop.model.named_modules())
        flat = "never active" if first.kind == "relu" else "saturated"
        more = f" ({count(len(dead) - 1, 'other layer')} too)" if len(dead) > 1 else ""
        return self.warned(
            f"{first.dead:.0%} of the {len(first.active)} {first.kind} units after "
            f"{first.after or 'the input'} are {flat} on all {samples} samples{more}: they pass no "
            "gradient on.",
            measured=f"{first.dead:.0%} of the units",
            threshold=f"{self.option(audit, 'share'):.0%} of the units",
            evidence=(_table(layers),),
            module=first.after,
            location=audit.loop.locate(modules[first.after])
            or audit.loop.locate(audit.loop.model)
            or audit.loop.locate("model"),
            fix="normalise the inputs; keep the default initialisation with zero biases, or use "
            "nn.LeakyReLU",
        )

    def _dead(self, audit: Audit, layers: list[_Layer]) -> list[_Layer]:
        share, least = self.option(audit, "share"), self.option(audit, "units")
        return [each for each in layers if each.dead > share and len(each.active) >= least]

    def _more(self, audit: Audit, first: First, layers: list[_Layer]) -> tuple[list[_Layer], int]:
        """Add batches at the initial weights until there are samples enough, or units alive."""
        samples, enough = 0, self.option(audit, "samples")
        known: set[str] = set()
        for batch in consecutive_batches(audit.loop, _BATCHES):
            if batches.digest(batch) in known:
                continue
            known.add(batches.digest(batch))
            seen = next(initial_steps(audit, [batch])).observation
            samples += batches.size(batch)
            if seen is not None:
                _add(layers, _layers(seen))
            if samples >= enough or not self._dead(audit, layers):
                break
        return layers, samples


def _all_there_are(audit: Audit) -> float:
    """The size of the training set; infinity where it is unknown or very small."""
    try:
        rows = len(audit.loop.train_loader.dataset)
    except (AttributeError, TypeError):
        return math.inf
    return rows if rows >= _FEWEST else math.inf


def _layers(seen: Observation) -> list[_Layer]:
    found: dict[tuple[str, str, int], _Layer] = {}
    for each in seen.firings:
        key = _key(each)
        if key in found:
            found[key].active = found[key].active | each.active
        else:
            found[key] = _Layer(each.after, each.kind, each.active.clone())
    return list(found.values())


def _key(each: Firing) -> tuple[str, str, int]:
    return each.after, each.kind, len(each.active)


def _add(layers: list[_Layer], more: list[_Layer]) -> None:
    known = {(each.after, each.kind, len(each.active)): each for each in more}
    for layer in layers:
        other = known.get((layer.after, layer.kind, len(layer.active)))
        if other is not None:
            layer.active = torch.logical_or(layer.active, other.active)


def _table(layers: list[_Layer]) -> Table:
    return Table(
        title="Units that are inactive for every sample",
        columns=("after", "activation", "units", "inactive"),
        rows=tuple(
            (each.after or "(input)", each.kind, float(len(each.active)), f"{each.dead:.0%}")
            for each in layers[:30]
        ),
    )
