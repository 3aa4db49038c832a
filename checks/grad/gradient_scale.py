"""GRAD105: whether gradients keep their scale from layer to layer."""

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
"""Fewer weight matrices have no first and last ones to compare."""


class GradientScale(Check):
    """Are gradients as large in the first layers as in the last?

    Why: Through many layers gradients may shrink or grow by a factor per layer. Vanishing gradients
        leave the first layers at their random start; exploding ones make any learning rate that
        suits the last layers too large for the first.
    How: Measures, for each weight matrix or filter bank in the order of calls, the RMS of the
        gradient that the optimizer gets: the median over the first 5 steps without the first (where
        layers that start at zero hide those before them). Compares the first third of the layers
        with the last quarter.
        - Warns of vanishing gradients when the largest of the first layers is below `vanishing`
          times the median of the last in every step, and of exploding ones when the median of the
          first is above `exploding` times the largest of the last.
        - Largest against median, because a branch beside a skip connection may have tiny gradients
          anywhere (queries and keys of an untrained attention, blocks with a factor of 1e-6). The
          limits of 1e-3 and 70 in the literature are for neighbouring layers of equal shapes;
          healthy residual networks reach 70.
        - Embeddings are left out: most of their rows have no gradient in a step.
    Fix: Normalisation layers, residual connections, an initialisation that suits the activation (He
        for ReLU), ReLU or GELU instead of sigmoid or tanh; `clip_grad_norm_` where gradients
        explode.
    References: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks", 2010; Zhang et al., "AUTOTRAINER", 2021.
    """

    code, name, kind = "GRAD105", "gradient-scale", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
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
            return self.skipped(
                f"Only {len(layers)} weight matrices get a gradient; {LAYERS} are needed."
            )
        low, high = self.option(audit, "vanishing"), self.option(audit, "exploding")
        ends = [_Ends.of([step[name] for name in layers]) for step in rms]
        if not all(math.isfinite(end.typical) for end in ends):
            return self.inconclusive("Gradients are NaN or infinite.")
        values = [median(step[name] for step in rms) for name in layers]
        chart = Curve(
            title="RMS of the gradient by layer",
            x_label="layer, first to last",
            y_label="RMS of the gradient",
            series=(
                Series(name="median", x=tuple(map(float, range(len(layers)))), y=tuple(values)),
            ),
            log_y=True,
        )
        details = {"threshold": f"{low:g} to {high:g}", "evidence": (chart,)}
        if max(end.most for end in ends) < low:
            ratio = median(end.most for end in ends)
            return self.warned(
                f"Gradients vanish: in the first layers they are {ratio:.1g} times those of the "
                f"last, over {len(layers)} layers.",
                fix="Add normalisation layers or residual connections; use ReLU or GELU with He "
                "initialisation instead of sigmoid or tanh.",
                location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
                module=layers[0].rpartition(".")[0],
                measured=f"first layers / last layers: at most {ratio:.2g}",
                **details,
            )
        if min(end.least for end in ends) > high:
            ratio = median(end.least for end in ends)
            return self.warned(
                f"Gradients explode: in the first layers they are {ratio:.1g} times those of the "
                f"last, over {len(layers)} layers.",
                fix="Add normalisation layers, initialise with smaller weights, or clip: "
                "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
                location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
                module=layers[0].rpartition(".")[0],
                measured=f"first layers / last layers: at least {ratio:.2g}",
                **details,
            )
        ratio = median(end.typical for end in ends)
        return self.passed(
            f"Gradients of the first layers are typically {ratio:.2g} times those of the last.",
            measured=f"first layers / last layers: {ratio:.2g}",
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
