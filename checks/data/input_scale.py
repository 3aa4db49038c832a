"""DATA111: inputs that are constant, or far from the scale that weights are drawn for."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_layer_inputs import LEAST_ROWS, Door, DoorInputs, Inputs
from nnaudit.report import Kind, Result, Table


class InputScale(Check):
    """Do the inputs vary, and are they of the scale that initial weights are made for?

    Why: Weights are drawn so that inputs with a standard deviation near 1 come out near 1. Pixels
        of 0 to 255 or a column in the thousands saturate the first layer and give its weights
        gradients of another size than all others; an image divided by 255 twice is drowned by the
        biases. Inputs that are all the same, a wrong column or a lost index, teach nothing.
    How: Watches what the first layers of weights are given in up to 16 training steps, after
        whatever the network does to its input itself. It fails when every row that the model was
        called with is the same, over at least 32 rows, while the targets are not: an exact test.
        The scale is a judgement and only warned of: a channel whose root mean square is above 20,
        ten times what standardised inputs reach and above the raw 0..16 of small images, or whole
        inputs whose norm (of a kernel's patch, for a convolution) is below 0.1, a tenth of what
        biases are drawn for, or in which no channel varies by 2 % of its size (pixels divided
        twice, then shifted). It is silent where the layer's output goes through a normalisation,
        which takes the scale out, unless a convolution is given pixels of 0 to 255. Ids, one-hot
        vectors, pixels in [0, 1] are well within.
    Fix: `x = (x - mean) / std` by channel, with mean and deviation of the training set;
        `x = x / 255` once, for images.
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
            return self.skipped("No layer of weights takes numbers that were not learnt before.")
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
            return self.passed("A normalisation after the first layer takes the scale out.")
        if not doors:
            return self.inconclusive(f"Fewer than {LEAST_ROWS} different rows were seen.")
        door = doors[0]
        return self.passed(
            f"Values from {door.low:.3g} to {door.high:.3g} enter {_named(door)}; the largest root "
            f"mean square of a channel is {float(door.rms.max()):.3g}.",
            evidence=(_table(door),),
        )

    def _constant(self, audit: Audit, inputs: Inputs) -> Result:
        message = f"The model is called with the same values in all of {inputs.rows:,} rows"
        if not inputs.targets_vary:
            return self.noted(f"{message}; so are the targets, or there are none.")
        return self.failed(
            f"{message}, while the targets differ.",
            measured="1 different row",
            threshold="different rows",
            location=audit.loop.locate("train_loader"),
            fix="print(next(iter(train_loader)))  # and find where the inputs get lost",
        )

    def _large(self, audit: Audit, door: Door, *, hidden: bool = False) -> Result:
        large = self.option(audit, "large")
        count = int((door.rms > large).sum())
        k = int(door.rms.argmax())
        but = (
            ". The normalisation after it takes that out of its output, and not out of its "
            "gradient or its padding"
        )
        return self.warned(
            f"{count} of the {len(door.rms)} input channels of {_named(door)} are far larger than "
            f"1: channel {k} has mean {float(door.mean[k]):.3g} and deviation "
            f"{float(door.deviation[k]):.3g}{but if hidden else ''}.",
            measured=f"root mean square {float(door.rms[k]):.3g}",
            threshold=f"{large:g}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = x / 255" if _has_pixels(door) else "x = (x - mean) / std  # by channel",
        )

    def _small(self, audit: Audit, door: Door) -> Result:
        return self.warned(
            f"What {_named(door)} is given has a norm of {door.norm:.2g}, so its biases outweigh "
            f"it: values from {door.low:.2g} to {door.high:.2g}.",
            measured=f"norm {door.norm:.2g}",
            threshold=f"{self.option(audit, 'small'):g}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # or divide by 255 only once",
        )

    def _flat(self, audit: Audit, door: Door) -> Result:
        k = int(door.rms.argmax())
        return self.warned(
            f"What {_named(door)} is given hardly varies: channel {k} has mean "
            f"{float(door.mean[k]):.3g} and deviation {float(door.deviation[k]):.2g}.",
            measured=f"{door.variation:.2%} of its size",
            threshold=f"{self.option(audit, 'flat'):.0%}",
            evidence=(_table(door),),
            module=door.name,
            location=audit.loop.locate(door.module) or audit.loop.locate("train_loader"),
            fix="x = (x - mean) / std  # of the train set as it is, and only once",
        )


def _has_pixels(door: Door) -> bool:
    return door.low >= 0 and 200 <= door.high <= 255


def _is_raw_picture(door: Door) -> bool:
    """Whether a convolution over a plane is given the bytes of grey or coloured pictures."""
    plane = isinstance(door.module, nn.Conv2d) and door.module.in_channels in (1, 3, 4)
    return plane and _has_pixels(door) and door.rows >= LEAST_ROWS


def _named(door: Door) -> str:
    kind = type(door.module).__name__
    return f"the layer {door.name} ({kind})" if door.name else f"the {kind}"


def _table(door: Door, most: int = 8) -> Table:
    worst = door.rms.argsort(descending=True)[:most].tolist()
    mean, deviation, rms = door.mean, door.deviation, door.rms
    return Table(
        title=f"Inputs of {_named(door)} over {door.rows:,} vectors, largest channels first",
        columns=("channel", "mean", "deviation", "root mean square"),
        rows=tuple((float(k), float(mean[k]), float(deviation[k]), float(rms[k])) for k in worst),
    )
