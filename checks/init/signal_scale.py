"""INIT104: whether activations keep their size from the first hidden layer to the last."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.observation import Activation, Observation
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Curve, Kind, Result, Series

_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class SignalScale(Check):
    """Do activations keep their size from the first hidden layer to the last?

    Why: A layer multiplies the size of its input by some factor, and a deep network multiplies
        these factors. Where they are below one, the last layers see nothing of the data; where
        they are above one, they saturate or overflow. Gradients take the same factors on the way
        back.
    How: Judgement. The root mean square of what each linear and convolutional layer returns in
        the first training step, in the order of their calls, without the last one (an output
        layer may begin small) and without those that return exact zeros (branches that begin at
        zero). It warns where the last is less than a thousandth of the first, or more than a
        thousand times as large: a factor of 2 per layer gets there in 10 layers, while an
        ordinary initialisation with normalisation or shortcuts stays within 30 in those we
        measured. Fewer than 3 hidden layers are not judged.
    Fix: nn.init.kaiming_normal_(layer.weight, nonlinearity="relu") for ReLU, xavier for tanh; a
        normalisation after each layer; shortcuts.
    References: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks" (2010), figure 6; He et al., "Delving Deep into Rectifiers" (2015).
    """

    code, name, kind = "INIT104", "signal-scale", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"factor": 1e3}

    def run(self, audit: Audit) -> Result:
        """Compare the first hidden layer's output with the last one's."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        layers = _hidden(audit.loop, first.completed[0])
        if len(layers) < 3:
            return self.skipped(f"{len(layers)} hidden layers are too few to lose a signal in.")
        sizes = [_rms(layer) for layer in layers]
        if not all(map(math.isfinite, sizes)):
            return self.inconclusive("Activations are not finite: see GRAD106.")
        ratio, limit = sizes[-1] / sizes[0], self.option(audit, "factor")
        curve = _curve(layers, sizes)
        what = (
            f"The root mean square of the activations goes from {sizes[0]:.2g} in "
            f"{layers[0].module} to {sizes[-1]:.2g} in {layers[-1].module}, over {len(layers)} "
            "hidden layers"
        )
        if 1.0 / limit <= ratio <= limit:
            return self.passed(f"{what}.", evidence=(curve,))
        modules = dict(audit.loop.model.named_modules())
        return self.warned(
            f"{what}: {'the signal dies out' if ratio < 1.0 else 'the signal grows'} on its way.",
            measured=f"{ratio:.2g} times",
            threshold=f"{1 / limit:g} to {limit:g} times",
            evidence=(curve,),
            module=layers[-1].module,
            location=audit.loop.locate(modules[layers[-1].module])
            or audit.loop.locate(audit.loop.model)
            or audit.loop.locate("model"),
            fix="nn.init.kaiming_normal_(layer.weight, nonlinearity='relu') for each layer before "
            "a ReLU (xavier_normal_ before a tanh), or a normalisation after each layer",
        )


def _hidden(loop: Loop, seen: Observation) -> list[Activation]:
    modules = dict(loop.model.named_modules())
    called = [a for a in seen.activations if isinstance(modules.get(a.module), _LAYERS)]
    return [a for a in called[:-1] if _rms(a) != 0.0]


def _rms(activation: Activation) -> float:
    return math.hypot(activation.mean, activation.std)


def _curve(layers: list[Activation], sizes: list[float]) -> Curve:
    return Curve(
        title="Size of the activations by layer",
        x_label="layer, in order of calls",
        y_label="root mean square",
        series=(Series(name="output", x=tuple(range(len(layers))), y=tuple(sizes)),),
        log_y=True,
    )
