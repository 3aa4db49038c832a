"""NORM102: biases that the following normalisation cancels."""

from __future__ import annotations

from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Kind, Result, Table
from nnaudit.targets.layers import StatisticsNorm
from nnaudit.wording import count, verb

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class RedundantBias(Check):
    """Does every bias have an effect, rather than being cancelled by a normalisation?

    Why: Batch and instance normalisation subtract the mean of each channel, and with it the bias
        of the layer before them. Such a bias costs memory and time and has no effect.
    How: In the first training step it is followed which modules' outputs go, unchanged, into a
        batch or instance normalisation that computes its statistics from the batch. Those of linear
        and convolutional layers with a trained bias are listed, as a note. Layer and group
        normalisation mix channels and do not cancel a bias.
    Fix: nn.Conv2d(..., bias=False) before nn.BatchNorm2d.
    References: Ioffe and Szegedy, Batch Normalization (ICML 2015), section 3.2, "the bias b can
        be ignored".
    """

    code, name, kind = "NORM102", "redundant-bias", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)

    def run(self, audit: Audit) -> Result:
        """Follow the outputs of layers into normalisations."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        seen, loop = first.completed[0], audit.loop
        modules = dict(loop.model.named_modules())
        training = {a.module for a in seen.activations if a.training}
        if not any(isinstance(modules.get(name), StatisticsNorm) for name in training):
            return self.skipped("No batch or instance normalisation is in use.")
        found = [
            (layer, norm)
            for layer, norm in dict.fromkeys(seen.flows)
            if norm in training
            and isinstance(modules.get(norm), StatisticsNorm)
            and _trains_bias(modules.get(layer))
        ]
        if not found:
            return self.passed(
                "No layer has a bias that a following batch or instance normalisation cancels."
            )
        layer, norm = found[0]
        lost = sum(modules[name].bias.numel() for name, _ in found)
        return self.noted(
            f"{count(len(found), 'layer')} {verb(len(found), 'have', 'has')} a bias that the "
            f"following normalisation cancels ({count(lost, 'unused parameter')}; first: {layer} "
            f"before {norm}).",
            fix=f"pass bias=False to {layer}",
            module=layer,
            location=loop.locate(modules[layer]) or loop.locate(loop.model),
            evidence=(
                Table(
                    title="Biases without effect",
                    columns=("layer", "normalisation"),
                    rows=tuple(found[:20]),
                ),
            ),
        )


def _trains_bias(module: nn.Module | None) -> bool:
    if not isinstance(module, _LAYERS) or module.bias is None:
        return False
    return module.bias.requires_grad
