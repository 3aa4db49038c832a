"""LOSS106: whether an auxiliary loss outweighs the main one."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import is_given
from nnaudit.probes.loss_terms import LossTerms, Term, Terms
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches

_MEAN, _SUM = (0.7, 1.3), (1.7, 2.3)
"""By what the gradient grows when all rows come twice. Noise that each row draws (dropout, a
sampled code) averages out a little more in twice as many."""


class AuxiliaryBalance(Check):
    """Is the gradient of the main loss larger than that of the terms added to it?

    Why: Regularisers, distillation, commitment and consistency terms are meant to support the main
        loss. What counts is not their value but their gradient: a term of 0.01 can have ten times
        the gradient of one of 2.3, and the network then optimises that term.
    How: Splits the total loss of 3 batches into the terms of its sum, and computes each term's
        gradient on the parameters that all terms share, in one backward pass per term. The main
        term is the one whose loss function compares with the loader's targets or, where all are
        written by hand, the one whose gradient changes when the targets of the rows are exchanged.
        - Warns when another term's gradient is more than `warn` times as large as the main one's on
          every batch; notes it from `note` times on. Some methods do so by design, and terms that
          are large at first may shrink, so it never fails.
        - Warns when one term is a mean over the batch and another a sum: with every row of the
          first batch twice, the gradient of the one stays (0.7 to 1.3 times) and that of the other
          doubles (1.7 to 2.3 times). A penalty on the weights does not depend on the batch.
        - Not judged otherwise: several or no such main terms (multi-task learning, deep
          supervision), one output compared with the same targets in two orders (mixup, CutMix), and
          sums of more than 8 terms.
    Fix: `loss = main + 0.1 * auxiliary`, or raise the weight over the first epochs.
    References: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks" (ICML 2018).
    """

    code, name, kind = "LOSS106", "auxiliary-balance", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS, Needs.SAME_BATCH)
    probes = (LossTerms,)
    options: ClassVar[dict[str, float]] = {"note": 2.0, "warn": 10.0}

    def run(self, audit: Audit) -> Result:
        """Compare each term's gradient with the main one's."""
        found = audit.probe(LossTerms)
        if not found.terms:
            return self.skipped("The loss is a single term, or its terms share no parameter.")
        if len({len(terms) for terms in found.terms}) > 1:
            return self.inconclusive("The loss has different terms on different batches.")
        if (pair := _mixed(found)) is not None:
            return self._mixed_reductions(audit, found, *pair)
        if _mixes_targets(found):
            return self.skipped(
                "The terms compare one output with the batch's targets in two orders (mixup, "
                "CutMix): they are one loss of mixed targets."
            )
        main = _main(found)
        if main is None:
            return self.skipped(
                "No single term compares with the loader's targets, so none is the main one."
            )
        ratios = [
            min(_ratio(terms[i], terms[main]) for terms in found.terms)
            for i in range(len(found.terms[0]))
        ]
        ratios[main] = 0.0
        worst = max(range(len(ratios)), key=lambda i: ratios[i])
        return self._judged(audit, found, main, worst, ratios[worst])

    def _mixed_reductions(self, audit: Audit, found: Terms, mean: int, total: int) -> Result:
        one, other = found.terms[0][mean], found.terms[0][total]
        call = found.call(total) or found.call(mean)
        return self.warned(
            f"One term of the loss is a mean over the batch, {found.name(mean)}, and another a "
            f"sum, {found.name(total)}: with every row twice their gradients grow by "
            f"{one.growth:.3g} and {other.growth:.3g}, so the batch size sets the weight between "
            "them.",
            measured=f"gradients grow by {one.growth:.2g} and {other.growth:.2g}",
            threshold="the same growth",
            evidence=(_table(found),),
            location=(call.location if call is not None else None)
            or audit.loop.locate("loss")
            or audit.loop.locate("training_step"),
            fix="sum each term over the features of a row, and divide it by len(x)",
        )

    def _judged(self, audit: Audit, found: Terms, main: int, worst: int, ratio: float) -> Result:
        said = (
            f"On the shared parameters the gradient of {found.name(worst)} is {ratio:.3g} times "
            f"that of the main term, {found.name(main)}"
        )
        table = _table(found)
        if ratio <= self.option(audit, "note"):
            return self.passed(f"{said}.", evidence=(table,))
        call = found.call(worst) or found.call(main)
        weight = (
            f"{self.option(audit, 'note') / (2 * ratio):.1g}" if math.isfinite(ratio) else "0.1"
        )
        answer = self.warned if ratio > self.option(audit, "warn") else self.noted
        return answer(
            f"{said}.",
            measured=f"{ratio:.3g} times",
            threshold=f"{self.option(audit, 'note'):g} times",
            evidence=(table,),
            location=(call.location if call is not None else None)
            or audit.loop.locate("loss")
            or audit.loop.locate("training_step"),
            fix=f"loss = main + {weight} * auxiliary  # or raise the weight from 0 during training",
        )


def _mixed(found: Terms) -> tuple[int, int] | None:
    """Return a term that is a mean over the rows, and one that is a sum; None where all agree.

    A penalty on the weights is the same for every batch, and is neither.
    """
    terms = found.terms[0]
    means, totals = [], []
    for i, term in enumerate(terms):
        pulls = [each[i].pull for each in found.terms]
        fixed = len(pulls) < 2 or max(pulls) - min(pulls) <= 1e-5 * max(pulls)
        if term.growth is None or fixed:
            continue
        if _MEAN[0] < term.growth < _MEAN[1]:
            means.append(i)
        elif _SUM[0] < term.growth < _SUM[1]:
            totals.append(i)
    return (means[0], totals[0]) if means and totals else None


def _mixes_targets(found: Terms) -> bool:
    """Whether each term compares one and the same output with the same targets, reordered."""
    calls = [found.call(i) for i in range(len(found.terms[0]))]
    compared = [call for call in calls if call is not None and call.compares]
    if len(compared) < len(calls) or len({call.kind for call in compared}) > 1:
        return False
    first, *others = compared
    return all(
        batches.same_values(call.input, first.input) and _is_reordered(call.target, first.target)
        for call in others
    )


def _is_reordered(target: Tensor, other: Tensor) -> bool:
    """Whether both hold the same rows; the order may differ."""
    if target.shape != other.shape or target.is_complex() or not target.ndim:
        return False
    counted = [
        torch.unique(each.reshape(len(each), -1), dim=0, return_counts=True)
        for each in (target, other)
    ]
    return all(a.equal(b) for a, b in zip(*counted, strict=True))


def _table(found: Terms) -> Table:
    terms = found.terms[0]
    return Table(
        title="Terms of the loss on the first batch",
        columns=("term", "gradient norm on shared parameters"),
        rows=tuple((found.name(i), term.pull) for i, term in enumerate(terms)),
    )


def _main(found: Terms) -> int | None:
    given = [
        i
        for i in range(len(found.terms[0]))
        if (call := found.call(i)) is not None and is_given(call, found.batch)
    ]
    if not given:  # written by hand
        given = [i for i, term in enumerate(found.terms[0]) if term.of_targets]
    return given[0] if len(given) == 1 else None


def _ratio(term: Term, main: Term) -> float:
    return term.pull / main.pull if main.pull > 0.0 else math.inf
