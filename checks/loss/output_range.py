"""LOSS105: whether the targets can be reached by the last activation."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.total_loss import MainLoss
from nnaudit.probes.adversaries import Adversaries, Round
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.output_reach import REGRESSION, OutputReach, Reach
from nnaudit.report import Histogram, Kind, Result, Status

RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softplus": (0.0, math.inf),
    "Softmax": (0.0, 1.0),
    "Exp": (0.0, math.inf),
    "Elu": (-1.0, math.inf),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.279, math.inf),
}
"""What an activation can output, by its autograd node; ELU, GELU and SiLU by their minimum."""

_FAR, _HALF, _FEWEST = 3.0, 0.5, 16
"""Targets beyond so many times the largest prediction, how many of them, and of how many at least:
the largest that was found may be half of what there is."""

_SLACK, _UNMAKEABLE, _NUMBERS = 0.25, 0.02, 512
"""Of an activation's range (of its unit, where it has no end), how far outside a number of a row is
to lie, as noise on real rows is no fault; how many of them; and of how many at least."""

_FEW, _MUCH = 64, 0.1
"""With fewer targets than asked for, at least so many, and more than this share outside."""

_BATCHES = 64
"""Batches that are read, at most, to get enough targets."""


class OutputRange(Check):
    """Can the network's last activation output every target?

    Why: A ReLU on the output of a regression cannot give a negative number, a sigmoid nothing above
        1. No training brings down the loss of targets outside the range, and a unit that is pushed
        against the end of its range stops learning.
    How: Finds the activation right before a regression loss (squared, absolute, Huber) from
        autograd, looking through views (that of the model's output where the loss is written by
        hand), and counts the targets outside its range by more than a thousandth of their spread.
        Scaled and shifted afterwards, an activation has another range. Whether it has one is tried
        out then: one batch is run under weights a hundred and ten thousand times as large, changed
        at random in four ways. Predictions that do not grow are bounded.
        - Fails when more than `share` of at least `targets` targets are outside: fewer may be
          errors in the data.
        - A data set with fewer targets fails with at least 64 of them and more than 10% outside.
        - Inconclusive when all targets outside have the same value and the loss is averaged by
          hand: it may stand for "missing".
        - Fails when predictions are bounded and half of the targets are more than three times as
          large: boxes in pixels where the network gives fractions of the picture.
        - Class scores that are bounded, such as cosines, leave the cross-entropy a floor: with
          differences of at most d between C scores, log(1 + (C - 1) exp(-d)). With d twice the
          largest difference found, fails when that is more than `floor` of log(C), as where a
          temperature multiplies instead of dividing; warns above `high` of it.
        - Adversarial training: fails when the generator ends with such an activation, and 2% of the
          numbers that its discriminator gets as real are outside of the range by a quarter of it:
          the discriminator tells them by their size.
    Fix: Remove the activation from the last layer, or scale the targets into its range; divide
        cosines by a temperature of 0.05 to 0.1.
    References: Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 6.2.2. Wang et al.,
        NormFace (2017), proposition 2, on the floor of a softmax over cosines.
    """

    code, name, kind = "LOSS105", "output-range", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps, OutputReach, Adversaries)
    options: ClassVar[dict[str, float]] = {
        "targets": 512, "share": 0.01, "floor": 0.9, "high": 0.7,
    }  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Compare the targets with the range of what made the loss's input, or that was found."""
        result = self._of_activation(audit)
        if result.status in (Status.FAIL, Status.INCONCLUSIVE):
            return result
        for reach in audit.probe(OutputReach):
            if (found := self._of_reach(audit, reach)) is not None:
                return found
        for each in audit.probe(Adversaries)[:1]:
            if (found := self._of_generator(audit, each)) is not None:
                return found
        return result

    def _of_activation(self, audit: Audit) -> Result:
        first = audit.probe(FirstSteps)
        terms = [main for main in first.supervised if main.calls[0].kind in REGRESSION]
        if not terms:
            return self.skipped("No squared, absolute or Huber error of the targets is computed.")
        limited = [(m, made) for m in terms if (made := _activation(first, m)) in RANGES]
        if not limited:
            return self.skipped("No activation with a limited range comes right before the loss.")
        main, activation = limited[0]
        enough = int(self.option(audit, "targets"))
        targets = _targets(audit, first, main, enough)
        values = targets[torch.isfinite(targets)]
        if not values.numel():
            return self.inconclusive("All targets are NaN or infinite.")
        return self._judged(audit, main, activation, values)

    def _of_generator(self, audit: Audit, seen: Round) -> Result | None:
        """Compare the real rows with what the generator can make; None where it can make them."""
        name = seen.activation.rstrip("0123456789").removesuffix("Backward")
        values = seen.rows
        if name not in RANGES or values is None or values.numel() < _NUMBERS:
            return None
        low, high = RANGES[name]
        slack = _SLACK * (high - low if math.isfinite(high) else 1.0)
        share = float(((values < low - slack) | (values > high + slack)).float().mean())
        if share <= _UNMAKEABLE:
            return None
        span = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} and above"
        return self.failed(
            f"The generator ends with {name.lower()} and makes numbers in {span}, but {share:.1%} "
            f"of those that the discriminator gets as real are outside: they range from "
            f"{float(values.min()):.3g} to {float(values.max()):.3g}.",
            measured=f"{share:.1%} of the real numbers outside",
            threshold=f"{_UNMAKEABLE:.0%} outside {span}",
            evidence=(_histogram(values),),
            location=audit.loop.locate("train_loader"),
            fix=f"Scale the data into {span}: Normalize((0.5,), (0.5,)) for tanh.",
        )

    def _of_reach(self, audit: Audit, reach: Reach) -> Result | None:
        """Judge one bounded prediction; None where its bound is far enough."""
        location = reach.call.location or audit.loop.locate("loss") or audit.loop.locate("model")
        if reach.classes:
            if reach.share <= self.option(audit, "high"):
                return None
            fails = reach.share > self.option(audit, "floor")
            answer = self.failed if fails else self.warned
            return answer(
                f"The {reach.classes} scores of a row differ by no more than {reach.bound:.3g}, "
                "whatever the weights are: even at twice that the cross-entropy cannot fall below "
                f"{reach.floor:.3g}, where equal scores cost {math.log(reach.classes):.3g}.",
                measured=f"a floor of {reach.share:.0%} of log({reach.classes})",
                threshold=f"{self.option(audit, 'floor' if fails else 'high'):.0%}",
                location=location,
                fix="scores = cosine / 0.07  # a temperature divides; or let a scale be learnt",
            )
        target = reach.call.target.detach().float()
        values = target[torch.isfinite(target)]
        far = float((values.abs() > _FAR * reach.bound).float().mean()) if values.numel() else 0.0
        if values.numel() < _FEWEST or far < _HALF:
            return None
        return self.failed(
            f"{far:.0%} of {values.numel()} targets cannot be reached: the predictions stay within "
            f"{reach.bound:.3g} of 0, whatever the weights are, and the targets range from "
            f"{float(values.min()):.3g} to {float(values.max()):.3g}.",
            measured=f"{far:.0%} of the targets beyond {_FAR:g} times the largest prediction",
            threshold=f"{_HALF:.0%}",
            evidence=(_histogram(values),),
            location=location,
            fix="Scale the targets into the range of the predictions (boxes / image_size), or "
            "remove what bounds them.",
        )

    def _judged(self, audit: Audit, main: MainLoss, activation: str, values: Tensor) -> Result:
        low, high = RANGES[activation]
        name, count = activation.lower(), values.numel()
        slack = 1e-3 * float(values.amax() - values.amin())
        outside = (values < low - slack) | (values > high + slack)
        share, limit = float(outside.float().mean()), self.option(audit, "share")
        span = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} and above"
        details: dict[str, Any] = {
            "measured": f"{share:.1%} of {count} targets outside",
            "threshold": f"{limit:.0%} outside {span}",
        }
        plenty = count >= self.option(audit, "targets")
        if share <= limit and plenty:
            return self.passed(f"The targets lie within the range of {name}, {span}.", **details)
        if not plenty and (count < _FEW or share <= _MUCH):
            return self.inconclusive(f"Only {count} targets, too few to judge.", **details)
        coded = len(torch.unique(values[outside])) == 1 and main.calls[0].reduction == "none"
        if coded:
            return self.inconclusive(
                "All targets outside the range have the same value, which may mark missing ones.",
                **details,
            )
        return self.failed(
            f"{share:.1%} of {count} targets cannot be reached: the targets range from "
            f"{float(values.min()):.3g} to {float(values.max()):.3g}, the outputs of {name} are "
            f"{span}.",
            fix=f"Remove the {name} from the last layer, or scale the targets into {span}.",
            evidence=(_histogram(values),),
            location=main.calls[0].location
            or audit.loop.locate(audit.loop.model)
            or audit.loop.locate("model"),
            **details,
        )


def _activation(first: First, main: MainLoss) -> str:
    """Return what made the input of the loss: of one written by hand, the model's output."""
    made = (
        {call.producer for call in main.calls}
        if main.formula is None
        else {seen.made_by for seen in first.completed}
    )
    names = {name.rstrip("0123456789").removesuffix("Backward") for name in made}
    return names.pop() if len(names) == 1 else ""


def _targets(audit: Audit, first: First, main: MainLoss, enough: int) -> Tensor:
    """Return at least ``enough`` targets, flat, where the data has as many."""
    found = [call.target.float().cpu().reshape(-1) for call in main.calls]
    if first.repeats_one_batch:
        return found[0]
    # More than the steps used only where the batch's target is the very one the loss is given.
    known = first.targets[0]
    given = (
        isinstance(known, Tensor)
        and known.numel() == found[0].numel()
        and torch.equal(known.float().cpu().reshape(-1), found[0])
    )
    if sum(len(values) for values in found) < enough and given:
        try:
            more = [
                audit.loop.split_batch(b).target for b in islice(audit.loop.batches(), _BATCHES)
            ]
        except UserCodeError:
            more = []
        tensors = [t.float().cpu().reshape(-1) for t in more if isinstance(t, Tensor)]
        if sum(map(len, tensors)) > sum(map(len, found)):
            found = tensors
    return torch.cat(found)


def _histogram(values: Tensor) -> Histogram:
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, bins=30, min=low, max=high)
    edges = torch.linspace(low, high, 31)
    return Histogram(
        title="Targets",
        x_label="target",
        edges=tuple(edges.tolist()),
        counts=tuple(int(c) for c in counts),
    )
