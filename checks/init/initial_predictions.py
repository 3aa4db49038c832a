"""INIT102: what an untrained network predicts, against how often each class occurs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.loop.total_loss import MainLoss
from nnaudit.measure.output_layer import has_bias, output_layer
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import attribute

_MOST_CLASSES = 50
"""With more, the bias of each class is too long a line to write."""

_LEAST = 128
"""Targets needed to estimate class shares: these are then known to within 5%."""


@dataclass(frozen=True)
class _Predictions:
    """What the first step predicted, and what was right.

    Attributes:
        probabilities: shape (N, C); for a binary loss over one output C is 2.
        target: shape (N,), classes that count.
        binary: one output per answer, so that its bias is a log-odds.
    """

    probabilities: Tensor
    target: Tensor
    binary: bool

    @property
    def confidence(self) -> float:
        return float(self.probabilities.amax(1).mean())

    @property
    def accuracy(self) -> float:
        return float((self.probabilities.argmax(1) == self.target).float().mean())

    @property
    def commonest(self) -> float:
        """The share of the class that is predicted most."""
        counts = torch.bincount(self.probabilities.argmax(1))
        return float(counts.max()) / len(self.target)


class InitialPredictions(Check):
    """Does the untrained network make no confident guesses?

    Why: Before training the best prediction is how often each class occurs. A network that is
        confident at random has logits that are too large, and must unlearn them first. One that
        predicts equal shares where classes are rare spends its first steps, with large gradients,
        on learning the shares, which the output bias can hold from the start.
    How: Compares the predictions of the first step's cross-entropy, multi-class or binary, with the
        targets.
        - Warns when the mean confidence is above `sure` and exceeds the accuracy by more than
          `excess`: an ordinary initialisation predicts with a confidence close to 1 / C, and loaded
          weights are mostly right where they are confident.
        - Notes which bias to set when predicted and true class shares differ by more than `nats`
          (Kullback-Leibler divergence; 0.2 nats are shares of 1 to 4 for two classes), over the
          targets of the first 5 steps, at least 128.
        - Predicting one class for nearly all samples means nothing by itself.
    Fix: Scale the last layer down: `nn.init.normal_(head.weight, std=0.02)`. For rare classes set
        the output bias: `nn.init.constant_(head.bias, math.log(p / (1 - p)))`.
    References: Karpathy, "A Recipe for Training Neural Networks" (2019), "init well"; Lin et al.,
        Focal Loss for Dense Object Detection (ICCV 2017), section 4.1.
    """

    code, name, kind = "INIT102", "initial-predictions", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    consequence_of = ("INIT101", "LOSS101", "DATA102", "DATA104")
    options: ClassVar[dict[str, float]] = {"sure": 0.9, "excess": 0.3, "nats": 0.2}

    def run(self, audit: Audit) -> Result:
        """Compare the first predictions with the answers, and with their shares."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        main = first.main_loss
        seen = _predictions(main.calls[0]) if main is not None else None
        if main is None or seen is None:
            return self.skipped("The loss is not a cross-entropy of class logits.")
        if reason := first.own_targets(main):
            return self.skipped(f"{reason}: they are not class labels.")
        excess = seen.confidence - seen.accuracy
        sure = seen.confidence > self.option(audit, "sure")
        if sure and excess > self.option(audit, "excess"):
            return self._sure(audit, main, seen)
        return self._shares(audit, main, seen)

    def _sure(self, audit: Audit, main: MainLoss, seen: _Predictions) -> Result:
        return self.warned(
            f"Before training, the predictions are {seen.confidence:.0%} confident on average but "
            f"right for only {seen.accuracy:.0%} of {len(seen.target)} targets (one class is "
            f"predicted for {seen.commonest:.0%}): the logits are too large.",
            measured=f"confidence {seen.confidence:.0%}, accuracy {seen.accuracy:.0%}",
            threshold=f"confidence {self.option(audit, 'sure'):.0%}, unless right",
            location=main.calls[0].location or audit.loop.locate("model"),
            fix=f"Scale the last layer down, nn.init.normal_({_output(audit, main)[0]}.weight, "
            "std=0.02), and normalise the inputs.",
        )

    def _shares(self, audit: Audit, main: MainLoss, seen: _Predictions) -> Result:
        classes = seen.probabilities.shape[1]
        targets = [p.target for call in main.calls if (p := _predictions(call)) is not None]
        answers = torch.cat(targets)
        prior = torch.bincount(answers, minlength=classes)[:classes].double() / len(answers)
        predicted = seen.probabilities.double().mean(0)
        apart = _divergence(prior, predicted)
        said = (
            f"Before training, the predictions are {seen.confidence:.0%} confident on average, and "
            f"predicted and true class shares differ by {apart:.2g} nats"
        )
        details: dict[str, Any] = {
            "measured": f"{apart:.2g} nats",
            "threshold": f"{self.option(audit, 'nats'):g} nats",
            "evidence": (_table(prior, predicted),),
        }
        balanced = apart <= self.option(audit, "nats")
        # With few targets for each class, their shares are noise.
        few = len(answers) < max(_LEAST, 8 * classes)
        weighted = any(main.calls[0].arguments.get(n) is not None for n in ("weight", "pos_weight"))
        if balanced or few or weighted or classes > _MOST_CLASSES:
            return self.passed(f"{said}.", **details)
        return self.noted(
            f"{said}: the first steps will be spent on learning how often each class occurs.",
            fix=_bias(prior, seen.binary, *_output(audit, main)),
            location=audit.loop.locate("model"),
            **details,
        )


def _predictions(call: LossCall) -> _Predictions | None:
    """Return probabilities and classes; None for other losses, soft targets and margins."""
    if call.kind not in ("cross_entropy", "bce_with_logits"):
        return None
    if any("VectorNorm" in name or "CosineSimilarity" in name for name in call.lineage):
        return None  # cosines that the author scales
    logits, target = call.input.detach().float().cpu(), call.target.detach().cpu()
    if call.kind == "bce_with_logits":
        return _binary(logits, target)
    if target.is_floating_point() or logits.ndim != target.ndim + 1:
        return None
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    answers = target.reshape(-1)
    ignored = int(call.arguments.get("ignore_index", -100))
    counts = (answers != ignored) & (answers >= 0) & (answers < flat.shape[1])
    if not bool(counts.any()):
        return None
    return _Predictions(flat[counts].softmax(1), answers[counts].long(), binary=False)


def _binary(logits: Tensor, target: Tensor) -> _Predictions | None:
    if logits.shape != target.shape or not bool(((target == 0) | (target == 1)).all()):
        return None
    # Several labels per row have priors of their own.
    if logits.numel() < 2 or (logits.ndim > 1 and logits.shape[1] > 1):
        return None
    p = logits.reshape(-1).sigmoid()
    return _Predictions(torch.stack([1 - p, p], 1), target.reshape(-1).long(), binary=True)


def _divergence(prior: Tensor, predicted: Tensor) -> float:
    there = prior > 0
    ratio = prior[there] / predicted[there].clamp_min(1e-30)
    return float((prior[there] * ratio.log()).sum())


def _output(audit: Audit, main: MainLoss) -> tuple[str, bool]:
    """The output layer as the program may call it, and whether it is known to have no bias."""
    model = audit.loop.model
    layer = output_layer(model, audit.probe(FirstSteps).completed[0], main.calls[0])
    return (attribute(f"model.{layer}"), not has_bias(model, layer)) if layer else ("head", False)


def _bias(prior: Tensor, binary: bool, layer: str, lacking: bool) -> str:
    bias = f"{layer}.bias"
    first = f"give {layer} a bias (bias=True), then " if lacking else ""
    if binary:
        share = min(max(float(prior[1]), 1e-4), 1 - 1e-4)
        value = math.log(share / (1 - share))
        return (
            f"{first}nn.init.constant_({bias}, {value:.2f})  # log-odds of a share of {share:.2g}"
        )
    values = prior.clamp_min(1e-4).log()
    shown = ", ".join(f"{float(v):.2f}" for v in values[:10])
    more = ", ..." if len(values) > 10 else ""
    return f"{first}{bias}.data = torch.tensor([{shown}{more}])  # logarithms of the class shares"


def _table(prior: Tensor, predicted: Tensor) -> Table:
    return Table(
        title="Shares of the classes",
        columns=("class", "true share", "predicted share"),
        rows=tuple(
            (str(i), float(a), float(b))
            for i, (a, b) in enumerate(zip(prior, predicted, strict=True))
        )[:50],
    )
