"""DIST104: gradients that the number of ranks scales."""

from __future__ import annotations

from math import isclose
from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.gradient_parity import GradientParity, NoParity, Parity
from nnaudit.ranks.record import Clipped, Ranks
from nnaudit.report import Kind, Numbers, Result

_NOISE = 0.3
"""Above it, 1 and a factor of 2, the smallest there is, would not be told apart for certain."""

_ALONG = 0.5
"""What of the ranks' gradient may point elsewhere, for a factor to be one: cosine 0.87."""


_NORMS = 1e-3
"""Norms of one gradient differ less between ranks: their bits are the same, or nearly."""


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
        the tolerance, and above 0.3 the check is inconclusive. Before that, the norms by which
        `clip_grad_norm_` clips are compared between ranks: fails when they differ, since what is
        averaged has one norm. Warns when each rank's loss is a mean over classes of its own
        targets, one has `unequal` times as many as another, and nothing weighs the ranks by them.
    Fix: loss = criterion(model(x), y), without `* world_size`: the wrapper averages. Gradients that
        are summed by hand are divided by the number of ranks, once.
    References: PyTorch documentation, DistributedDataParallel ("averages gradients").
    """

    code, name, kind = "DIST104", "gradient-parity", Kind.EXACT
    needs = (Needs.RANKS, Needs.STEPS)
    probes = (GradientParity,)
    consequence_of = ("DIST109", "DIST102")
    options: ClassVar[dict[str, float]] = {"near": 0.1, "unequal": 1.25}

    def run(self, audit: Audit) -> Result:
        """Judge the factor between the two gradients."""
        assert audit.ranks is not None  # Needs.RANKS
        if (clips := _unequal_clips(audit.ranks)) is not None:
            return self._clipped(*clips)
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
            if self._unequal(audit, found):
                return self._per_rank(audit, found)
            return self.passed(
                f"The gradient of {found.ranks} ranks is {found.factor:.3g} times that of one "
                "process on the same batches.",
                evidence=(_numbers(found),),
            )
        for factor in (float(found.ranks), 1 / found.ranks):
            near_it = abs(found.factor / factor - 1) <= near and found.rest <= _ALONG
            if near_it and not found.normalised:
                return self._scaled(audit, found, factor)
        return self.inconclusive(
            f"Not judged: the gradient of {found.ranks} ranks is {found.factor:.3g} times that of "
            "one process on the same batches, which is no factor of the number of ranks.",
            evidence=(_numbers(found),),
        )

    def _unequal(self, audit: Audit, found: Parity) -> bool:
        counts = found.targets
        return (
            found.weighs_ranks
            and len(counts) > 1
            and max(counts) >= self.option(audit, "unequal") * min(counts)
        )

    def _per_rank(self, audit: Audit, found: Parity) -> Result:
        fewest, most = min(found.targets), max(found.targets)
        return self.warned(
            f"Each rank averages its loss over its own targets ({fewest:,} to {most:,} in the first "
            "step): a target counts for more where there are few.",
            measured=f"{most / fewest:.3g} times as many on one rank as on another",
            threshold=f"{self.option(audit, 'unequal'):g} times",
            evidence=(_numbers(found),),
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
            fix="divide the sum of the losses by the mean of the ranks' counts: all_reduce them",
        )

    def _clipped(self, one: Clipped, other: Clipped) -> Result:
        return self.failed(
            f"The ranks clip gradients of different norms ({one.norm:.3g} and {other.norm:.3g} in "
            f"step {one.step + 1}): each clips its own before they are averaged, by a factor of its "
            "own.",
            measured=f"{one.norm:.4g} and {other.norm:.4g}",
            threshold="one norm on all ranks",
            location=one.at,
            fix="average the gradients first, and clip what all ranks step with",
        )

    def _scaled(self, audit: Audit, found: Parity, factor: float) -> Result:
        assert audit.ranks is not None  # Needs.RANKS
        larger = factor > 1
        wrapped = any(rank.wrapped for rank in audit.ranks.ranks)
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
            fix="loss = criterion(model(x), y)  # DistributedDataParallel averages over ranks"
            if wrapped
            else "p.grad /= dist.get_world_size()  # once, after dist.all_reduce(p.grad)",
        )


def _unequal_clips(seen: Ranks) -> tuple[Clipped, Clipped] | None:
    """Return how two ranks with the same weights clipped, in a step in which the norms differ."""
    if not _in_step(seen):
        return None
    for a, b in seen.pairs():
        for mine, others in zip(a.clips, b.clips, strict=False):
            if mine.step != others.step:
                break
            clipped = max(mine.norm / mine.limit, others.norm / others.limit) > 1
            if clipped and not isclose(mine.norm, others.norm, rel_tol=_NORMS):
                return mine, others
    return None


def _in_step(seen: Ranks) -> bool:
    """Whether all ranks hold the same weights at every moment: they are replicas."""
    states = [{w.when: w.parameters for w in rank.weights} for rank in seen.ranks]
    return all(each == states[0] and len(each) > 1 for each in states) and any(states[0].values())


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
