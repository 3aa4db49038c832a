"""DIST104: gradients that the number of ranks scales."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.gradient_parity import GradientParity, NoParity, Parity
from nnaudit.report import Kind, Numbers, Result

_NOISE = 0.3
"""Above it, 1 and a factor of 2, the smallest there is, would not be told apart for certain."""

_ALONG = 0.5
"""What of the ranks' gradient may point elsewhere, for a factor to be one: cosine 0.87."""


class RanksGradient(Check):
    """Is the gradient of all ranks the one that a single process computes from their batches?

    Why: DistributedDataParallel averages gradients. A loss that is multiplied by the number of
        ranks, or summed over them first, makes steps that grow with every GPU; one that is divided
        once more makes them shrink. Training goes on, with another learning rate than is written.
    How: The gradient that the optimizer of rank 0 used in its first step is kept, after the
        reduction, with the weights and every rank's batch. One process then takes the step of every
        rank from these weights, and the mean of its gradients is compared: batch by batch, so that
        normalisation sees the same rows. Fails when the former is the latter times the number of
        ranks, or divided by it, within `near`, and points the same way. What is random in a step
        (dropout) is measured by two seeds: where it moves the factor by more than `near`, that is
        the tolerance, and above 0.3 the check is inconclusive.
    Fix: loss = criterion(model(x), y), without `* world_size`: the wrapper averages.
    References: PyTorch documentation, DistributedDataParallel ("averages gradients").
    """

    code, name, kind = "DIST104", "gradient-parity", Kind.EXACT
    needs = (Needs.RANKS, Needs.STEPS)
    probes = (GradientParity,)
    consequence_of = ("DIST109", "DIST102")
    options: ClassVar[dict[str, float]] = {"near": 0.1}

    def run(self, audit: Audit) -> Result:
        """Judge the factor between the two gradients."""
        found = audit.probe(GradientParity)
        if isinstance(found, NoParity):
            return self.inconclusive(f"Not compared: {found.why}.")
        if found.ranks < 2:
            return self.skipped("One process averages nothing.")
        near = self.option(audit, "near")
        if found.noise > _NOISE:
            return self.inconclusive(
                f"Not judged: two seeds give factors that differ by {found.noise:.2g} (dropout, or "
                "another random layer)."
            )
        near = max(near, found.noise)
        if abs(found.factor - 1) <= near:
            return self.passed(
                f"The gradient of {found.ranks} ranks is {found.factor:.3g} times that of one "
                "process on the same batches.",
                evidence=(_numbers(found),),
            )
        for factor in (float(found.ranks), 1 / found.ranks):
            if abs(found.factor / factor - 1) <= near and found.rest <= _ALONG:
                return self._scaled(audit, found, factor)
        return self.inconclusive(
            f"Not judged: the gradient of {found.ranks} ranks is {found.factor:.3g} times that of "
            "one process on the same batches, which is no factor of the number of ranks.",
            evidence=(_numbers(found),),
        )

    def _scaled(self, audit: Audit, found: Parity, factor: float) -> Result:
        larger = factor > 1
        return self.failed(
            f"The gradient of {found.ranks} ranks is {found.factor:.3g} times that of one process "
            "on the same batches: "
            + (
                "the loss is multiplied by the number of ranks, or gradients are summed."
                if larger
                else "it is divided by the number of ranks twice."
            ),
            measured=f"{found.factor:.3g} times",
            threshold="1 time",
            evidence=(_numbers(found),),
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
            fix="loss = criterion(model(x), y)  # DistributedDataParallel averages over ranks",
        )


def _numbers(found: Parity) -> Numbers:
    return Numbers(
        title="The gradient of the first step",
        values={
            f"length, of {found.ranks} ranks": found.norms[0],
            "length, of one process": found.norms[1],
            "factor along it": found.factor,
            "part that points elsewhere": found.rest,
        },
    )
