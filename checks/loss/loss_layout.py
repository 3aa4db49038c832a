"""LOSS109: whether the loss reads classes and rows where the network and the data put them."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.box_forms import BoxForm, BoxForms
from nnaudit.probes.drawn_targets import DrawnTarget, DrawnTargets
from nnaudit.probes.loss_layout import Layout, LossLayout, layouts
from nnaudit.probes.running_sums import RunningSum, RunningSums
from nnaudit.report import Kind, Result

_APART = 1e-3
"""Losses of the same rows in two orders differ by less, as a share of one, by rounding."""


class LossLayoutOfClasses(Check):
    """Does the loss find each row's classes, and its target, where they are?

    Why: `view` and `reshape` give any tensor any shape. An output of shape (N, C, H, W) that is
        viewed as (-1, C) makes rows of neighbouring pixels, not of classes; one of shape (T, N, C)
        flattened beside targets of shape (N, T) compares each word with another's tag. Nothing is
        raised, and the loss falls a little, as far as the frequencies of the classes go.
    How: Exact. In one step, numbers are sent back through the graph from the argument of
        `cross_entropy`, `nll_loss`, `ctc_loss` or `log_softmax` to the last layer (linear,
        convolution, batch normalisation, interpolation) with as many channels as the loss has
        classes: through views, permutations, slices and a constant factor they arrive where the
        loss's numbers were.
        - Fails when most rows of the loss take their numbers from several places of that output.
          Rows that run along another whole dimension (scores of positions, as for spans) pass.
        - Fails when the rows go through the output's other two dimensions in one order and the
          targets, a field of the batch flattened, in the other. Seen where these differ in length.
        - Fails when `ctc_loss` gets an output (N, T, C) that was viewed as (T, N, C) instead of
          being transposed: each text then meets slices of all recordings.
        - Fails when a `cumsum` or a `logcumsumexp` runs over the rows' outputs in the order of the
          loader, which is that of no number of theirs, and the loss of one batch differs by more
          than 0.1% with the same rows in another order: risk sets of a Cox loss without sorting.
        - Fails when the target is what the step draws (noise, classes), and no input of the network
          depends on it, or that of another row does: seen in a second step with the same random
          numbers but for the first row of the draw. A warning where the step compares more.
        - Fails when a function of torchvision's that takes the corners of boxes is given boxes of
          the data of which at least `inverted` have a right side left of the left one, or a bottom
          above the top: centre, width and height.
        Anything but views between layer and loss is not judged.
    Fix: `output.permute(0, 2, 3, 1).reshape(-1, C)`, or no view at all:
        `cross_entropy(output, target)` takes (N, C, H, W) beside (N, H, W).
    References: PyTorch documentation of torch.Tensor.view and torch.nn.CrossEntropyLoss (shapes).
    """

    code, name, kind = "LOSS109", "loss-layout", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (LossLayout, RunningSums, DrawnTargets, BoxForms)
    options: ClassVar[dict[str, float]] = {"inverted": 0.25}

    def run(self, audit: Audit) -> Result:
        """Judge what was read across the layer's output."""
        for seen in layouts(audit.probe(LossLayout)):
            return self._mixes(seen) if seen.crossed is None else self._crosses(seen)
        unsorted = audit.probe(RunningSums)
        if unsorted is not None and _differs(unsorted):
            return self._unsorted(unsorted)
        for drawn in audit.probe(DrawnTargets):
            if drawn.moved or not drawn.seen:
                return self._elsewhere(drawn)
        for form in audit.probe(BoxForms):
            if form.trains and form.inverted >= self.option(audit, "inverted"):
                return self._no_corners(form)
        return self.passed("The loss reads classes and rows in the order of the last layer.")

    def _unsorted(self, seen: RunningSum) -> Result:
        one, other = seen.losses
        return self.failed(
            f"{seen.function} runs over the rows of the batch in the order in which they come, and "
            f"they are sorted by nothing: the loss of one batch is {one:.5g}, and {other:.5g} with "
            "the same rows in another order.",
            measured=f"{one:.5g} and {other:.5g}",
            threshold="the same loss",
            location=seen.location,
            fix="order = time.argsort(descending=True); risk, event = risk[order], event[order]",
        )

    def _elsewhere(self, drawn: DrawnTarget) -> Result:
        answer = self.failed if drawn.alone else self.warned
        said = (
            "and the network gets it in another order of the rows: each row is to say what was "
            "drawn for another one."
            if drawn.seen
            else "and nothing that the network is given depends on it: there is nothing to learn "
            "but its mean."
        )
        return answer(
            f"The target is what the step draws at random, {said}",
            measured="the inputs of other rows" if drawn.seen else "no input depends on the draw",
            threshold="the input of the same row",
            location=drawn.location,
            fix="draw once, and use the same: noise = torch.randn_like(x); "
            "loss = mse_loss(model(add_noise(x, noise, t), t), noise)",
        )

    def _no_corners(self, form: BoxForm) -> Result:
        return self.failed(
            f"{form.function} takes corners (left, top, right, bottom), and of {form.boxes} boxes "
            f"of the data {form.inverted:.0%} have their right side left of the left one, or their "
            "bottom above the top: they are in another form, such as centre, width and height.",
            measured=f"{form.inverted:.0%} of the boxes inside out",
            threshold="0%",
            location=form.location,
            fix=f'{form.function}(box_convert(predicted, "cxcywh", "xyxy"), '
            'box_convert(target, "cxcywh", "xyxy"))',
        )

    def _mixes(self, seen: Layout) -> Result:
        order = [i for i in range(len(seen.made)) if i != seen.axis] + [seen.axis]
        turned = ", ".join(map(str, order))
        classes = seen.made[seen.axis]
        return self.failed(
            f"{seen.layer} made an output of shape {seen.made}, with the {classes} classes along "
            f"dimension {seen.axis}, and the loss got it as {seen.read}: "
            f"{100 * seen.mixed:.0f}% of its rows hold numbers of several places instead of the "
            f"{classes} classes of one.",
            measured=f"{100 * seen.mixed:.0f}% of the rows",
            threshold="0%",
            location=seen.location,
            fix=f"output.permute({turned}).reshape(-1, {classes})",
        )

    def _crosses(self, seen: Layout) -> Result:
        shape = seen.crossed
        if len(seen.read) == 3:
            return self.failed(
                f"ctc_loss gets the output {seen.made} viewed as {seen.read}: its rows are still "
                "in the old order, so each sequence is made of pieces of several.",
                measured=f"a view of {seen.made}",
                threshold="a transposed tensor",
                location=seen.location,
                fix="log_probs = log_probs.transpose(0, 1)  # (N, T, C) to (T, N, C)",
            )
        return self.failed(
            f"The loss goes through the output {seen.made} in another order than through the "
            f"targets {shape}: both are flattened, and each output meets the target of another "
            "place.",
            measured="rows and targets in different orders",
            threshold="the same order",
            location=seen.location,
            fix="output.transpose(0, 1).reshape(-1, C)",
        )


def _differs(seen: RunningSum) -> bool:
    """Whether the order of the rows changes the loss beyond rounding and noise; never for NaN."""
    one, other = seen.losses
    return abs(one - other) > max(_APART * abs(one), 10 * seen.noise)
