"""GRAD105: whether gradients keep their size from layer to layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from torch import nn
from torch.nn.parameter import is_lazy

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.observation import Observation
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Curve, Kind, Result, Series

LAYERS = 4
"""Fewer weight matrices have no beginning and end that could be compared."""


class GradientScale(Check):
    """Do gradients arrive at the first layers as large as they are at the last?

    Why: Through many layers gradients may shrink or grow by a factor per layer. Vanishing, they
        leave the first layers at their random start; exploding, they make any learning rate that
        suits the last layers too large for the first.
    How: A judgement. For each weight matrix or filter bank, in the order in which the layers are
        called, the norm of the gradient that the optimizer is given over the square root of its
        number of elements; the median over the first 5 steps, without the first, where layers
        that start at zero hide those before them. The first third of the layers is compared with
        the last quarter. A branch beside a shortcut may have tiny gradients wherever it stands
        (queries and keys of an untrained attention, blocks with a factor of 1e-6 at their end), so
        each side is given the benefit of its others: gradients vanish when the largest of the
        first layers is under 1e-3 of the median of the last, they explode when the median of the
        first is over 1000 times the largest of the last, if it is so in every step. The limits of
        1e-3 and 70 found in the literature are for a pair of neighbours with equal shapes:
        healthy residual networks of which the first layer is a small filter bank reach 70.
        Embeddings are left out, as most of their rows have no gradient in a step.
    Fix: normalisation layers, residual connections, an initialisation that suits the activation
        (He for ReLU), ReLU or GELU instead of sigmoid or tanh; clip_grad_norm_ where they explode.
    References: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks", 2010; Zhang et al., "AUTOTRAINER", 2021.
    """

    code, name, kind = "GRAD105", "gradient-scale", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
    probes = (FirstSteps,)
    consequence_of = ("GRAD106", "NORM101")
    options: ClassVar[dict[str, float]] = {"vanishing": 1e-3, "exploding": 1e3}

    def run(self, audit: Audit) -> Result:
        """Compare the first layers with the last."""
        first = audit.probe(FirstSteps)
        first.require()
        seen = first.completed[1:] or first.completed
        if not seen:
            return self.skipped("No step could be observed.")
        sizes = {
            n: p.numel()
            for n, p in audit.loop.model.named_parameters()
            if not is_lazy(p) and p.ndim >= 2 and p.numel()
        }
        order = _order(seen[0], audit.loop.model, sizes)
        rms = [_rms(observation, sizes) for observation in seen]
        layers = [name for name in order if all(name in step for step in rms)]
        if len(layers) < LAYERS:
            return self.skipped(f"The model has {len(layers)} layers of weights with a gradient.")
        low, high = self.option(audit, "vanishing"), self.option(audit, "exploding")
        ends = [_Ends.of([step[name] for name in layers]) for step in rms]
        if not all(math.isfinite(end.typical) for end in ends):
            return self.inconclusive("Gradients are not finite.")
        values = [median(step[name] for step in rms) for name in layers]
        chart = Curve(
            title="Gradient by layer (norm over the square root of the size)",
            x_label="layer, first to last",
            y_label="gradient",
            series=(
                Series(name="median", x=tuple(map(float, range(len(layers)))), y=tuple(values)),
            ),
            log_y=True,
        )
        details = {"threshold": f"{low:g} to {high:g}", "evidence": (chart,)}
        if max(end.most for end in ends) < low:
            ratio = median(end.most for end in ends)
            return self.warned(
                f"Gradients vanish: in the first layers they are {ratio:.1g} of what they are in "
                f"the last ones, over {len(layers)} layers.",
                fix="Add normalisation layers or residual connections; use ReLU or GELU with He "
                "initialisation instead of sigmoid or tanh.",
                location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
                module=layers[0].rpartition(".")[0],
                measured=f"first layers over last: {ratio:.2g} at most",
                **details,
            )
        if min(end.least for end in ends) > high:
            ratio = median(end.least for end in ends)
            return self.warned(
                f"Gradients explode: in the first layers they are {ratio:.1g} times what they are "
                f"in the last ones, over {len(layers)} layers.",
                fix="Add normalisation layers, initialise with smaller weights, or clip: "
                "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
                location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
                module=layers[0].rpartition(".")[0],
                measured=f"first layers over last: {ratio:.2g} at least",
                **details,
            )
        ratio = median(end.typical for end in ends)
        return self.passed(
            f"Gradients of the first layers are typically {ratio:.2g} times those of the last.",
            measured=f"first layers over last: {ratio:.2g}",
            **details,
        )


def _order(seen: Observation, model: nn.Module, sizes: dict[str, int]) -> list[str]:
    """Return the weights by the order in which their modules finished, embeddings left out."""
    tables = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag))
    }
    rank: dict[str, int] = {}
    for position, activation in enumerate(seen.activations):
        if activation.is_leaf or not rank.get(activation.module):
            rank.setdefault(activation.module, position)
    named = [name for name in sizes if name not in tables and name.rpartition(".")[0] in rank]
    return sorted(named, key=lambda name: rank[name.rpartition(".")[0]])


def _rms(seen: Observation, sizes: dict[str, int]) -> dict[str, float]:
    return {
        g.parameter: g.norm / math.sqrt(sizes[g.parameter])
        for g in seen.gradients
        if g.norm and g.parameter in sizes
    }


@dataclass(frozen=True)
class _Ends:
    """The first layers' gradients over those of the last, in one step.

    Attributes:
        most: of the largest among the first to the median of the last.
        typical: of median to median.
        least: of the median of the first to the largest among the last.
    """

    most: float
    typical: float
    least: float

    @classmethod
    def of(cls, values: list[float]) -> _Ends:
        """Compare the first third of ``values`` with the last quarter."""
        early, late = values[: math.ceil(len(values) / 3)], values[-max(1, len(values) // 4) :]
        return cls(
            max(early) / median(late), median(early) / median(late), median(early) / max(late)
        )
