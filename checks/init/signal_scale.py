"""INIT104: whether activations keep their scale from the first hidden layer to the last."""

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
from nnaudit.wording import count

_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class SignalScale(Check):
    """Do activations keep their scale from the first hidden layer to the last?

    Why: Every layer multiplies the scale of its input by some factor, and a deep network multiplies
        these factors. Where they are below one, the last layers see nothing of the data; where they
        are above one, they saturate or overflow. Gradients take the same factors on the way back.
    How: Measures the root mean square (RMS) of the outputs of the linear and convolutional layers
        in the first training step, in the order of their calls. Warns when the last RMS is more
        than `factor` times smaller or larger than the first: a factor of 2 per layer gets there in
        10 layers, while ordinary initialisations with normalisation or skip connections stayed
        within 30 in the networks we measured.
        - The output layer is left out (it may start small), and so are layers that return exact
          zeros (branches that start at zero).
        - Fewer than 3 hidden layers are not judged.
    Fix: `nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")` before a ReLU,
        `xavier_normal_` before a tanh; a normalisation after each layer; skip connections.
    References: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks" (2010), figure 6; He et al., "Delving Deep into Rectifiers" (2015).
    """

    code, name, kind = "INIT104", "signal-scale", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    options: ClassVar[dict[str, float]] = {"factor": 1e3}

    def run(self, audit: Audit) -> Result:
        """Compare the first hidden layer's output with the last one's."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        layers = _hidden(audit.loop, first.completed[0])
        if len(layers) < 3:
            return self.skipped(
                f"Only {count(len(layers), 'hidden layer')}: at least 3 are needed."
            )
        sizes = [_rms(layer) for layer in layers]
        if not all(map(math.isfinite, sizes)):
            return self.inconclusive("Activations are NaN or infinite: see GRAD106.")
        ratio, limit = sizes[-1] / sizes[0], self.option(audit, "factor")
        curve = _curve(layers, sizes)
        what = (
            f"The RMS of the activations goes from {sizes[0]:.2g} in {layers[0].module} to "
            f"{sizes[-1]:.2g} in {layers[-1].module}, over {len(layers)} hidden layers"
        )
        if 1.0 / limit <= ratio <= limit:
            return self.passed(f"{what}.", evidence=(curve,))
        modules = dict(audit.loop.model.named_modules())
        return self.warned(
            f"{what}: the signal {'vanishes' if ratio < 1.0 else 'explodes'}.",
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
        title="RMS of the activations by layer",
        x_label="layer, in order of calls",
        y_label="RMS",
        series=(Series(name="output", x=tuple(range(len(layers))), y=tuple(sizes)),),
        log_y=True,
    )
