"""DATA111: inputs that are constant, or far from the scale that weights are drawn for."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_layer_inputs import LEAST_ROWS, Door, DoorInputs, Inputs
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import verb


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
        - Warns when the root mean square (RMS) of a channel is above `large`: ten times what
          standardised inputs reach, and above the raw values 0 to 16 of small images.
        - Warns when the norm of whole inputs (of a kernel's patch, for a convolution) is below
          `small`, a tenth of what biases are drawn for.
        - Warns when no channel varies by `flat` of its size (pixels divided twice, then shifted).
        - Passes when a normalisation follows the layer and removes the scale, unless a convolution
          is given pixels of 0 to 255. Ids, one-hot vectors and pixels in [0, 1] are well within the
          limits.
    Fix: `x = (x - mean) / std` by channel, with the mean and standard deviation of the training
        set; `x = x / 255` once, for images.
    References: LeCun et al., Efficient BackProp (1998), section 4.3. He et al., Delving Deep into
        Rectifiers (2015).
    """

    code = "DATA111"
    name = "input-scale"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (DoorInputs,)
    consequence_of = ("DATA103",)
    options: ClassVar[dict[str, float]] = {"large": 20.0, "small": 0.1, "flat": 0.02}

    def run(self, audit: Audit) -> Result:
        """Look for variety first, then at the scale of each door."""
        inputs = audit.probe(DoorInputs)
        if inputs.constant and inputs.rows >= LEAST_ROWS:
            return self._constant(audit, inputs)
        if not inputs.doors:
            return self.skipped("No layer with weights reads raw numeric inputs.")
        doors = [
            door
            for door in inputs.doors
            if door.rows >= LEAST_ROWS and not door.normalised and bool((door.deviation > 0).any())
        ]
        found = [answer for door in doors if (answer := self._judged(audit, door)) is not None]
        # A normalisation hides that pictures were not scaled, and does not show that it is meant.
        raw = [door for door in inputs.doors if door.normalised and _is_raw_picture(door)]
        if not found and raw and float(raw[0].rms.max()) > self.option(audit, "large"):
            return self._large(audit, raw[0], hidden=True)
        return found[0] if found else self._sound(inputs, doors)

    def _judged(self, audit: Audit, door: Door) -> Result | None:
        if float(door.rms.max()) > self.option(audit, "large"):
            return self._large(audit, door)
        if door.norm < self.option(audit, "small"):
            return self._small(audit, door)
        if door.variation < self.option(audit, "flat"):
            return self._flat(audit, door)
        return None

    def _sound(self, inputs: Inputs, doors: list[Door]) -> Result:
        if not doors and any(door.normalised for door in inputs.doors):
            return self.passed(
                "A normalisation follows the first layer and removes the scale of the inputs."
            )
        if not doors:
            return self.inconclusive(
                f"Fewer than {LEAST_ROWS} different input rows were seen, too few to judge their "
                "scale."
            )
        door = doors[0]
        return self.passed(
            f"Inputs of {_named(door)} range from {door.low:.3g} to {door.high:.3g}; the largest "
            f"RMS of a channel is {float(door.rms.max()):.3g}.",
            evidence=(_table(door),),
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

    def _large(self, audit: Audit, door: Door, *, hidden: bool = False) -> Result:
        large = self.option(audit, "large")
        count = int((door.rms > large).sum())
        k = int(door.rms.argmax())
        but = (
            ". The normalisation after it rescales the output, but not the weight gradients or "
            "the zero padding"
        )
        return self.warned(
            f"{count} of the {len(door.rms)} input channels of {_named(door)} {verb(count, 'are')} "
            f"far from unit scale (RMS above {large:g}): channel {k} has mean "
            f"{float(door.mean[k]):.3g} and standard deviation {float(door.deviation[k]):.3g}"
            f"{but if hidden else ''}.",
            measured=f"RMS {float(door.rms[k]):.3g}",
            threshold=f"RMS {large:g}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = x / 255" if _has_pixels(door) else "x = (x - mean) / std  # by channel",
        )

    def _small(self, audit: Audit, door: Door) -> Result:
        return self.warned(
            f"Inputs of {_named(door)} are very small (norm {door.norm:.2g}, values from "
            f"{door.low:.2g} to {door.high:.2g}): its biases outweigh them.",
            measured=f"norm {door.norm:.2g}",
            threshold=f"norm {self.option(audit, 'small'):g}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # or divide by 255 only once",
        )

    def _flat(self, audit: Audit, door: Door) -> Result:
        k = int(door.rms.argmax())
        return self.warned(
            f"Inputs of {_named(door)} hardly vary: channel {k} has mean "
            f"{float(door.mean[k]):.3g} and standard deviation {float(door.deviation[k]):.2g}.",
            measured=f"varies by {door.variation:.2%} of its size",
            threshold=f"{self.option(audit, 'flat'):.0%}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # once, with the mean and std of the training set as loaded",
        )


def _has_pixels(door: Door) -> bool:
    return door.low >= 0 and 200 <= door.high <= 255


def _is_raw_picture(door: Door) -> bool:
    """Whether a convolution over a plane is given the bytes of grey or coloured pictures."""
    plane = isinstance(door.module, nn.Conv2d) and door.module.in_channels in (1, 3, 4)
    return plane and _has_pixels(door) and door.rows >= LEAST_ROWS


def _named(door: Door) -> str:
    kind = type(door.module).__name__
    return f"layer {door.name} ({kind})" if door.name else f"the {kind}"


def _table(door: Door, most: int = 8) -> Table:
    worst = door.rms.argsort(descending=True)[:most].tolist()
    mean, deviation, rms = door.mean, door.deviation, door.rms
    return Table(
        title=f"Inputs of {_named(door)} over {door.rows:,} vectors, largest channels first",
        columns=("channel", "mean", "standard deviation", "RMS"),
        rows=tuple((float(k), float(mean[k]), float(deviation[k]), float(rms[k])) for k in worst),
    )
