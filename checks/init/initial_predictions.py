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
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Kind, Result, Table

_MOST_CLASSES = 50
"""With more, the bias that each class should have is no line to write."""

_LEAST = 128
"""Targets that must be seen before a prior is spoken of: its shares are then known to 5 %."""


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
    """Does the untrained network predict no more than it can know?

    Why: Before training the best answer is how often each class occurs. A network that is sure of
        one class at random has logits that are too large, and unlearns them first. One that
        predicts equal shares where classes are rare spends its first steps, with large gradients,
        on learning the shares, which the bias of the output layer can be told beforehand.
    How: Judgement, from the logits and targets of the first step's cross-entropy, multi-class or
        binary. It warns where the chosen class has a probability above 0.9 on average, and is
        right in a share of cases that is more than 0.3 less: an ordinary initialisation chooses
        classes with a probability close to 1 / C, and loaded weights are mostly right where they
        are sure. That one class is chosen for nearly all samples means nothing by itself. A note
        says which bias to set where predicted shares and true ones are more than 0.2 nats apart
        (Kullback-Leibler), the targets of the first 5 steps counted, at least 128 of them:
        0.2 nats are 1 : 4 for two classes. Balanced sampling makes it 0.
    Fix: scale the last layer down; nn.init.constant_(head.bias, math.log(p / (1 - p))).
    References: Karpathy, "A Recipe for Training Neural Networks" (2019), "init well"; Lin et al.,
        Focal Loss for Dense Object Detection (ICCV 2017), section 4.1.
    """

    code, name, kind = "INIT102", "initial-predictions", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
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
            return self.skipped("The loss is not a cross-entropy of classes and logits.")
        if reason := first.own_targets(main):
            return self.skipped(f"{reason}: they are no labels that have shares.")
        excess = seen.confidence - seen.accuracy
        sure = seen.confidence > self.option(audit, "sure")
        if sure and excess > self.option(audit, "excess"):
            return self._sure(audit, main, seen)
        return self._shares(audit, main, seen)

    def _sure(self, audit: Audit, main: MainLoss, seen: _Predictions) -> Result:
        return self.warned(
            f"The first predictions are sure of {seen.confidence:.0%} on average and right in "
            f"{seen.accuracy:.0%} of {len(seen.target)} cases (the commonest is predicted for "
            f"{seen.commonest:.0%}): the logits are too large.",
            measured=f"confidence {seen.confidence:.2f}, accuracy {seen.accuracy:.2f}",
            threshold=f"confidence {self.option(audit, 'sure'):g}, unless it is right",
            location=main.calls[0].location or audit.loop.locate("model"),
            fix="Scale the last layer down, nn.init.normal_(head.weight, std=0.02), and normalise "
            "the inputs.",
        )

    def _shares(self, audit: Audit, main: MainLoss, seen: _Predictions) -> Result:
        classes = seen.probabilities.shape[1]
        targets = [p.target for call in main.calls if (p := _predictions(call)) is not None]
        answers = torch.cat(targets)
        prior = torch.bincount(answers, minlength=classes)[:classes].double() / len(answers)
        predicted = seen.probabilities.double().mean(0)
        apart = _divergence(prior, predicted)
        said = (
            f"The first predictions are sure of {seen.confidence:.0%} on average; their shares and "
            f"the true ones are {apart:.2g} nats apart"
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
            f"{said}: the first steps will go into learning how often each class occurs.",
            fix=_bias(prior, seen.binary),
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


def _bias(prior: Tensor, binary: bool) -> str:
    if binary:
        share = min(max(float(prior[1]), 1e-4), 1 - 1e-4)
        value = math.log(share / (1 - share))
        return f"nn.init.constant_(head.bias, {value:.2f})  # log-odds of {share:.2g}"
    values = prior.clamp_min(1e-4).log()
    shown = ", ".join(f"{float(v):.2f}" for v in values[:10])
    more = ", ..." if len(values) > 10 else ""
    return f"head.bias.data = torch.tensor([{shown}{more}])  # logarithms of the shares"


def _table(prior: Tensor, predicted: Tensor) -> Table:
    return Table(
        title="Shares of the classes",
        columns=("class", "true", "predicted at first"),
        rows=tuple(
            (str(i), float(a), float(b))
            for i, (a, b) in enumerate(zip(prior, predicted, strict=True))
        )[:50],
    )
