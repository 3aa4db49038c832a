"""DATA111: inputs that are constant, or far from the scale that weights are drawn for."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.probes.first_layer_inputs import LEAST_ROWS, FirstLayer, FirstLayerInputs, Inputs
from nnaudit.probes.image_inputs import ImageDoor
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import verb

_PICTURES = 16
"""With fewer, a way to read them may be smoother by chance."""


_NEARLY_ALL = 0.99
"""Share of the variance of a sum from which its other parts are lost in what is left of it."""


class InputScale(Check):
    """Do the inputs vary, and do they have the scale that initial weights are made for?

    Why: Weights are initialised so that inputs with a standard deviation near 1 give outputs near
        1. Pixels of 0 to 255 or a column in the thousands saturate the first layer and give its
        weights far larger gradients than all others; an image divided by 255 twice is drowned by
        the biases. Inputs that are all the same (a wrong column, a lost index) teach nothing.
    How: Records the inputs of the first layers with weights in up to 16 training steps, after any
        scaling inside the network.
        - Fails when every row that the model was called with is the same, over at least 32 rows,
          while the targets differ: an exact test.
        - Fails when the pictures that the first convolution over colours is given (at least 16) are
          smoother once their values are read as rows of pixels of three colours: in the median the
          sum of differences between neighbours is below `scrambled` of what it is, and less in 95%
          of them. They were reshaped from (height, width, colour), not permuted; a picture that is
          read rightly becomes rougher, and noise stays as it is.
        - Warns when a convolution is given one value only, at all places of at least 32 rows.
        - Warns when the root mean square (RMS) of a channel is above `large`: ten times what
          standardised inputs reach, and above the raw values 0 to 16 of small images.
        - Warns when the norm of whole inputs (of a kernel's patch, for a convolution) is below
          `small`, a tenth of what biases are drawn for.
        - Warns when no channel varies by `flat` of its size (pixels divided twice, then shifted).
        - Passes when a normalisation follows the layer and removes the scale, unless a convolution
          is given pixels of 0 to 255, or one of three or more columns of a table has over 99% of
          their variance: the sum that is normalised is then this column alone. Ids, one-hot vectors
          and pixels in [0, 1] are well within the limits.
    Fix: `x = (x - mean) / std` by channel, with the mean and standard deviation of the training
        set; `x = x / 255` once, for images, and `x.permute(2, 0, 1)`, not `x.reshape(3, h, w)`.
    References: LeCun et al., Efficient BackProp (1998), section 4.3. He et al., Delving Deep into
        Rectifiers (2015).
    """

    code = "DATA111"
    name = "input-scale"
    kind = Kind.EXACT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (FirstLayerInputs, ImageDoor)
    consequence_of = ("DATA103",)
    options: ClassVar[dict[str, float]] = {
        "large": 20.0, "small": 0.1, "flat": 0.02, "scrambled": 0.75,
    }  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Look for variety first, then at the scale of what each first layer is given."""
        inputs = audit.probe(FirstLayerInputs)
        if inputs.constant and inputs.rows >= LEAST_ROWS:
            return self._constant(audit, inputs)
        if (scrambled := self._scrambled(audit)) is not None:
            return scrambled
        for layer in inputs.layers:
            if _is_blank(layer):
                return self._blank(audit, layer)
        if not inputs.layers:
            return self.skipped("No layer with weights reads raw numeric inputs.")
        layers = [
            layer
            for layer in inputs.layers
            if layer.rows >= LEAST_ROWS
            and not layer.normalised
            and bool((layer.deviation > 0).any())
        ]
        found = [answer for layer in layers if (answer := self._judged(audit, layer)) is not None]
        # A normalisation hides that pictures were not scaled, and does not show that it is meant.
        hidden = [layer for layer in inputs.layers if layer.normalised]
        raw = [layer for layer in hidden if _is_raw_picture(layer) or _is_outweighed(layer)]
        if not found and raw and float(raw[0].rms.max()) > self.option(audit, "large"):
            return self._large(audit, raw[0], hidden=True)
        return found[0] if found else self._sound(inputs, layers)

    def _scrambled(self, audit: Audit) -> Result | None:
        """Fail where pictures make sense only when they are read in another order."""
        try:
            door = audit.probe(ImageDoor)
        except UserCodeError:
            return None  # the model cannot be called on a batch outside of a step
        if door is None or len(door.pictures) < _PICTURES:
            return None
        ratios = roughness_as_pixels(door.pictures)
        median, most = float(ratios.median()), float(ratios.quantile(0.95))
        if median >= self.option(audit, "scrambled") or most >= 1:
            return None
        height, width = door.pictures.shape[-2:]
        return self.failed(
            "The pictures are scrambled: read as rows of pixels of three colours they are "
            f"{1 - median:.0%} smoother. They were reshaped from ({height}, {width}, 3) to "
            f"(3, {height}, {width}), which mixes places and colours.",
            measured=f"{median:.2f} of the differences between neighbours",
            threshold="more differences when read in another order",
            module=door.module,
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="x = x.permute(2, 0, 1)  # of a batch x.permute(0, 3, 1, 2); not reshape or view",
        )

    def _judged(self, audit: Audit, layer: FirstLayer) -> Result | None:
        if float(layer.rms.max()) > self.option(audit, "large"):
            return self._large(audit, layer)
        if layer.norm < self.option(audit, "small"):
            return self._small(audit, layer)
        if layer.variation < self.option(audit, "flat"):
            return self._flat(audit, layer)
        return None

    def _sound(self, inputs: Inputs, layers: list[FirstLayer]) -> Result:
        if not layers and any(layer.normalised for layer in inputs.layers):
            return self.passed(
                "A normalisation follows the first layer and removes the scale of the inputs."
            )
        if not layers:
            return self.inconclusive(
                f"Fewer than {LEAST_ROWS} different input rows were seen, too few to judge their "
                "scale."
            )
        layer = layers[0]
        return self.passed(
            f"Inputs of {_named(layer)} range from {layer.low:.3g} to {layer.high:.3g}; the "
            f"largest RMS of a channel is {float(layer.rms.max()):.3g}.",
            evidence=(_table(layer),),
        )

    def _constant(self, audit: Audit, inputs: Inputs) -> Result:
        message = f"The model gets the same input values in all {inputs.rows:,} rows"
        if not inputs.targets_vary:
            return self.noted(f"{message}; the targets do not vary either, or there are none.")
        return self.failed(
            f"{message}, while the targets differ.",
            measured="1 different row",
            threshold="different rows",
            location=audit.loop.locate("train_loader"),
            fix="print(next(iter(train_loader)))  # find where the inputs become constant",
        )

    def _blank(self, audit: Audit, layer: FirstLayer) -> Result:
        return self.warned(
            f"All inputs of {_named(layer)} are {layer.low:.4g}, at every place in "
            f"{layer.rows:,} rows: there is nothing in its inputs to learn from.",
            measured="1 value",
            threshold="inputs that vary",
            module=layer.name,
            location=audit.loop.locate(layer.module) or audit.loop.locate("train_loader"),
            fix="print(next(iter(train_loader)))  # find where they are lost: // 255, an int cast",
        )

    def _large(self, audit: Audit, layer: FirstLayer, *, hidden: bool = False) -> Result:
        large = self.option(audit, "large")
        count = int((layer.rms > large).sum())
        k = int(layer.rms.argmax())
        outweighed = _is_outweighed(layer)
        but = ". The normalisation after it rescales the output, " + (
            f"of which this channel alone makes {_outweighing(layer):.1%}: the others are lost"
            if outweighed
            else "but not the weight gradients or the zero padding"
        )
        return self.warned(
            f"{count} of the {len(layer.rms)} input channels of {_named(layer)} "
            f"{verb(count, 'are', 'is')} far from unit scale (RMS above {large:g}): channel {k} "
            f"has mean {float(layer.mean[k]):.3g} and standard deviation "
            f"{float(layer.deviation[k]):.3g}{but if hidden else ''}.",
            measured=f"RMS {float(layer.rms[k]):.3g}",
            threshold=f"RMS {large:g}",
            evidence=(_table(layer),),
            module=layer.name,
            location=audit.loop.locate(layer.module) or audit.loop.locate("train_loader"),
            fix="x = x / 255" if _has_pixels(layer) else "x = (x - mean) / std  # by channel",
        )

    def _small(self, audit: Audit, layer: FirstLayer) -> Result:
        return self.warned(
            f"Inputs of {_named(layer)} are very small (norm {layer.norm:.2g}, values from "
            f"{layer.low:.2g} to {layer.high:.2g}): its biases outweigh them.",
            measured=f"norm {layer.norm:.2g}",
            threshold=f"norm {self.option(audit, 'small'):g}",
            evidence=(_table(layer),),
            module=layer.name,
            location=audit.loop.locate(layer.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # or divide by 255 only once",
        )

    def _flat(self, audit: Audit, layer: FirstLayer) -> Result:
        k = int(layer.rms.argmax())
        return self.warned(
            f"Inputs of {_named(layer)} hardly vary: channel {k} has mean "
            f"{float(layer.mean[k]):.3g} and standard deviation {float(layer.deviation[k]):.2g}.",
            measured=f"varies by {layer.variation:.2%} of its size",
            threshold=f"{self.option(audit, 'flat'):.0%}",
            evidence=(_table(layer),),
            module=layer.name,
            location=audit.loop.locate(layer.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # once, with the mean and std of the training set as loaded",
        )


def roughness_as_pixels(pictures: Tensor) -> Tensor:
    """Return how rough ``pictures`` (N, C, H, W) are when their values are read as (H, W, C).

    One number for each: the sum of differences between neighbours, over what it is as they are. 1
    for a blank one, which has no order.
    """
    n, colours, height, width = pictures.shape
    as_pixels = pictures.reshape(n, height, width, colours).permute(0, 3, 1, 2)
    rough = _roughness(pictures)
    return (_roughness(as_pixels) / rough.clamp_min(1e-12)).where(rough > 0, 1.0)


def _roughness(pictures: Tensor) -> Tensor:
    across, down = (pictures.diff(dim=axis).abs().flatten(1).mean(1) for axis in (-1, -2))
    return across + down


def _is_blank(layer: FirstLayer) -> bool:
    """Whether a convolution is given one value only, at all places and in many rows."""
    convolved = isinstance(layer.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return convolved and layer.rows >= LEAST_ROWS and layer.low == layer.high


def _has_pixels(layer: FirstLayer) -> bool:
    return layer.low >= 0 and 200 <= layer.high <= 255


def _is_raw_picture(layer: FirstLayer) -> bool:
    """Whether a convolution over a plane is given the bytes of grey or coloured pictures."""
    plane = isinstance(layer.module, nn.Conv2d) and layer.module.in_channels in (1, 3, 4)
    return plane and _has_pixels(layer) and layer.rows >= LEAST_ROWS


def _is_outweighed(layer: FirstLayer) -> bool:
    """Whether one column of a table makes nearly all that a linear layer computes of it."""
    several = isinstance(layer.module, nn.Linear) and int((layer.deviation > 0).sum()) >= 3
    return several and layer.rows >= LEAST_ROWS and _outweighing(layer) > _NEARLY_ALL


def _outweighing(layer: FirstLayer) -> float:
    """Return the largest column's share of the variance, under weights of one size."""
    variance = layer.deviation.double().square()
    return float(variance.max() / variance.sum().clamp_min(1e-30))


def _named(layer: FirstLayer) -> str:
    kind = type(layer.module).__name__
    return f"layer {layer.name} ({kind})" if layer.name else f"the {kind}"


def _table(layer: FirstLayer, most: int = 8) -> Table:
    worst = layer.rms.argsort(descending=True)[:most].tolist()
    mean, deviation, rms = layer.mean, layer.deviation, layer.rms
    return Table(
        title=f"Inputs of {_named(layer)} over {layer.rows:,} vectors, largest channels first",
        columns=("channel", "mean", "standard deviation", "RMS"),
        rows=tuple((float(k), float(mean[k]), float(deviation[k]), float(rms[k])) for k in worst),
    )
