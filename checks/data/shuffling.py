"""DATA104: the order in which the training set is visited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from nnaudit import stats
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs, seed_everything
from nnaudit.measure.epoch_targets import Targets, codes_of, counts_of
from nnaudit.measure.recurrence import Recurrence
from nnaudit.probes.epoch_order import EpochOrder, Order, order_of
from nnaudit.probes.recurrent_states import CarriedStates
from nnaudit.report import Curve, Evidence, Kind, Numbers, Result, Series, Status

FEWEST_ROWS = 64
"""Below this, neither clumps nor a drift can be told from chance."""
FEWEST_UNITS = 8
GROUPS = 8
SCREENING = 500
PERMUTATIONS = 20_000

_SHUFFLE = "DataLoader(..., shuffle=True)"
_RANK = (Status.FAIL, Status.WARN, Status.NOTE)


@dataclass(frozen=True)
class Finding:
    """Something about the order, and how bad it is."""

    question: str
    status: Status
    message: str
    fix: str
    measured: str = ""
    threshold: str = ""


def draws_at_random(loader: Any) -> bool:
    """Whether torch's own random sampler draws the rows of ``loader``, in batches of several."""
    return (
        isinstance(loader, DataLoader)
        and type(loader.sampler) is RandomSampler
        and type(loader.batch_sampler) is BatchSampler
    )


class Shuffling(Check):
    """Is the training set visited in a new random order every epoch?

    Why: A gradient is an unbiased estimate only if its batch is a random sample of the data. Where
        batches come sorted or in blocks, each step pulls the network towards the current class and
        the next steps pull it back; where the order is the same in every epoch, the noise of the
        steps repeats and does not average out. It is the commonest reason for a loss that
        oscillates once per epoch.
    How: Asks three questions about real batches and, where the loader has an index, about the
        indices of two epochs.
        - Neighbours: do consecutive samples share their target? Counts neighbours of equal class
          (for quantities, the rank correlation of neighbours) against the exact mean and variance
          over all orders. Fails above `z` when the excess is more than `excess` of the possible one
          (or the correlation more than `correlation`) and a second epoch agrees. Asked only of
          torch's own samplers: a user's sampler may put K rows of each of P classes into a batch by
          design.
        - Drift: does the class mix change along the epoch? Compares the total variation between
          eighths of the epoch and the whole with permutations of the batches (of the rows, for
          torch's own samplers). Fails when fewer than 1 permutation in 10,000 reaches it, it
          exceeds that of random batches by more than `drift`, and a second epoch agrees.
        - Same order: does the next epoch repeat the order? Nine in ten positions must match; a
          random order gives about one match. Fails for a loader that reads its data set in sequence
          for no reason. Warns where there is a reason (windows of one sequence, blocks of text, a
          stream, the user's own sampler) or when the sampler waits for `set_epoch()` and the script
          does not call it between epochs. Where the program makes its batches itself, it warns
          when 9 in 10 rows come again after one and the same number of others.
        - Warns where torch's random sampler draws the rows, and a recurrent layer begins each batch
          with the state that it had at the end of the batch before: of other rows.
        - One batch per epoch has no order, and batches that continue each other (truncated
          back-propagation through time) must keep theirs.
    Fix: `DataLoader(..., shuffle=True)`. For a stream, shuffle the files and use a buffer that
        spans many classes. Seed the loader's generator once, not in every `__iter__`; call
        `sampler.set_epoch(epoch)`.
    References: Bottou, Stochastic Gradient Descent Tricks (2012). Bengio, Practical
        Recommendations for Gradient-Based Training of Deep Architectures (2012). Wald and
        Wolfowitz, An Exact Test for Randomness in the Non-Parametric Case Based on Serial
        Correlation (1943).
    """

    code = "DATA104"
    name = "shuffling"
    kind = Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER,)
    probes = (EpochOrder, CarriedStates)
    options: ClassVar[dict[str, float]] = {
        "z": 4.0,
        "excess": 0.2,
        "correlation": 0.3,
        "drift": 0.15,
    }

    def _carries(self, audit: Audit, layer: str) -> Result:
        if not draws_at_random(audit.loop.train_loader):
            return self.passed(
                f"{layer or 'The network'} begins each batch with the state that the batch before "
                "has left (truncated BPTT), so the order must not be random."
            )
        modules = dict(audit.loop.model.named_modules())
        return self.warned(
            f"{layer or 'The network'} begins each batch with the state that the batch before has "
            "left, while the rows are drawn at random: the state is of other, unrelated rows.",
            measured="state carried over a random order",
            threshold="rows that continue those of the batch before, or a state that begins anew",
            module=layer,
            location=audit.loop.locate("train_loader") or audit.loop.locate(modules.get(layer)),
            fix="begin with state = None for every batch; or shuffle=False with row i of each "
            "batch the continuation of row i of the one before",
        )

    def run(self, audit: Audit) -> Result:
        """Ask the three questions, and the first two again of another epoch."""
        order = audit.probe(EpochOrder)
        if order.one_batch or audit.loop.epoch_per_step:
            return self.passed("Each step uses the whole training set, so there is no order.")
        if order.first.continues:
            return self.passed(
                "Each batch continues the previous one (truncated BPTT), so the order must not be "
                "random."
            )
        if layer := audit.probe(CarriedStates):
            return self._carries(audit, layer)
        found = self._composition(audit, order)
        if any(each.status is Status.FAIL for each in found) and order.repeated is None:
            seed_everything(audit.seed + 1)
            again = {each.question for each in self._composition(audit, order_of(audit))}
            if not all(each.question in again for each in found):
                return self.inconclusive(
                    f"{found[0].message} A second epoch did not confirm it.",
                    evidence=_evidence(order),
                )
        fixed = _fixed_order(order)
        if fixed is not None:
            found.append(fixed)
        if found:
            return self._answer(audit, order, min(found, key=lambda each: _RANK.index(each.status)))
        return self._nothing_found(order)

    def _answer(self, audit: Audit, order: Order, worst: Finding) -> Result:
        return self.answer(
            worst.status,
            worst.message,
            measured=worst.measured,
            threshold=worst.threshold,
            evidence=_evidence(order),
            location=audit.loop.locate("train_loader"),
            fix=worst.fix,
        )

    def _composition(self, audit: Audit, order: Order) -> list[Finding]:
        """Questions (a) and (b)."""
        targets = order.targets
        if targets is None or len(targets.values) < FEWEST_ROWS or targets.kinds < 2:
            return []
        clumps = self._clumps(audit, order, targets)
        if clumps is not None and clumps.status is Status.FAIL:
            return [clumps]  # a drift would add nothing but time
        drift = self._drift(audit, order, targets)
        found = (clumps, drift, _single_class_batches(order, targets))
        return [each for each in found if each is not None]

    def _clumps(self, audit: Audit, order: Order, targets: Targets) -> Finding | None:
        clumps = clumps_of(targets)
        if clumps is None or clumps.deviation.z <= self.option(audit, "z"):
            return None
        few = not order.rows_are_exchangeable and len(targets.sizes) < 2 * FEWEST_UNITS
        if not order.rows_are_exchangeable and not (few and clumps.effect > 0.5):
            return None
        if clumps.effect <= self.option(audit, clumps.option):
            return None
        may_fail = order.rows_are_exchangeable and not order.sequence
        return Finding(
            "clumps",
            Status.FAIL if may_fail else Status.WARN,
            f"{clumps.sentence} (z = {clumps.deviation.z:.1f}){_because(order.sequence)}.",
            _SHUFFLE,
            measured=clumps.measured,
            threshold=f"z > {self.option(audit, 'z'):g}, "
            f"effect > {self.option(audit, clumps.option):g}",
        )

    def _drift(self, audit: Audit, order: Order, targets: Targets) -> Finding | None:
        drift = drift_of(targets, order.rng, rows=order.rows_are_exchangeable)
        if drift is None or drift.observed - drift.mean <= self.option(audit, "drift"):
            return None
        effect = drift.observed - drift.mean
        what = "classes" if targets.discrete else "targets"
        message = (
            f"The mix of {what} changes during the epoch: the total variation between its parts "
            f"and the whole is {drift.observed:.2f}, {drift.mean:.2f} expected if shuffled (p < "
            f"{stats.ALPHA:g})"
        )
        return Finding(
            "drift",
            _status_of_drift(order, effect),
            f"{message}{_because(order.sequence or _design(order))}.",
            _SHUFFLE if order.access else "shuffle the files, and use a larger shuffle buffer",
            measured=f"total variation {drift.observed:.2f}, {drift.mean:.2f} if shuffled",
            threshold=f"p < {stats.ALPHA:g}, effect > {self.option(audit, 'drift'):g}",
        )

    def _nothing_found(self, order: Order) -> Result:
        targets, evidence = order.targets, _evidence(order)
        fresh = _fresh_order(order)
        if targets is not None and targets.kinds == 1:
            if not fresh and order.first.ended:
                return self.skipped("All targets are equal, so their order does not matter.")
            if not fresh:
                return self.inconclusive(
                    f"All {order.first.rows:,} targets read are equal.",
                    evidence=evidence,
                )
        drift = targets is not None and len(targets.values) >= FEWEST_ROWS and targets.kinds > 1
        if not fresh and not drift:
            return self.inconclusive(
                "Not measured: too few samples have one target each, and no two epochs can be "
                "compared.",
                evidence=evidence,
            )
        first = "Targets are evenly mixed over the epoch" if drift else ""
        second = fresh if not first or not fresh else f"{fresh[0].lower()}{fresh[1:]}"
        said = "; ".join(part for part in (first, second) if part)
        return self.passed(f"{said}.", evidence=evidence)


# --- (a) neighbours -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Clumps:
    """How alike neighbours are; ``effect`` is 0 in a random order and 1 when sorted."""

    deviation: stats.Deviation
    effect: float
    option: str
    sentence: str
    measured: str


def clumps_of(targets: Targets) -> Clumps | None:
    """Compare each target with the next; None for too few rows."""
    values = targets.values[: targets.near]
    n = len(values)
    if n < FEWEST_ROWS:
        return None
    if targets.discrete:
        found = stats.equal_neighbours(values)
        possible = n - 1 - found.mean
        share, expected = found.observed / (n - 1), found.mean / (n - 1)
        sentence = (
            f"{share:.0%} of neighbouring training samples share their class, {expected:.0%} "
            "expected in a random order"
        )
        effect = (found.observed - found.mean) / possible if possible > 0 else 0.0
        return Clumps(found, effect, "excess", sentence, f"{share:.0%} equal neighbours")
    found = stats.lag_one(values)
    sentence = (
        f"Targets of neighbouring training samples are correlated: rank correlation "
        f"{found.observed:.2f}, 0 expected in a random order"
    )
    measured = f"rank correlation {found.observed:.2f}"
    return Clumps(found, found.observed, "correlation", sentence, measured)


# --- (b) drift ----------------------------------------------------------------------------------


def drift_of(targets: Targets, rng: np.random.Generator, *, rows: bool) -> stats.Deviation | None:
    """Return the mean total variation between parts of the epoch and the whole, if no chance.

    Against permutations of the batches, or of single ``rows``. None where these are too few, or
    where more than one permutation in 10,000 does as much.
    """
    codes = codes_of(targets.values)
    sizes = np.ones(len(codes), dtype=int) if rows else np.asarray(targets.sizes)
    units = len(sizes)
    if units < FEWEST_UNITS:
        return None
    table = counts_of(codes, sizes.tolist())
    starts = np.unique(np.linspace(0, units, min(GROUPS, units // 2) + 1).astype(int)[:-1])
    distance = _distance_of_parts(table, starts)
    _, p = stats.permutation_null(distance, units, rng, permutations=SCREENING)
    if p > 2 / SCREENING:  # a healthy order is believed after few permutations
        return None
    deviation, p = stats.permutation_null(distance, units, rng, permutations=PERMUTATIONS)
    return deviation if p <= stats.ALPHA else None


def _distance_of_parts(
    table: NDArray[np.float64], starts: NDArray[np.intp]
) -> Callable[[NDArray[np.intp]], float]:
    whole = table.sum(0) / table.sum()

    def distance(order: NDArray[np.intp]) -> float:
        parts = np.add.reduceat(table[order], starts, axis=0)
        shares = parts / np.maximum(parts.sum(1, keepdims=True), 1)
        return float(np.abs(shares - whole).sum(1).mean() / 2)

    return distance


def _status_of_drift(order: Order, effect: float) -> Status:
    if order.sequence:
        return Status.WARN
    if _design(order):
        return Status.WARN if effect > 0.5 else Status.NOTE
    return Status.FAIL


def _single_class_batches(order: Order, targets: Targets) -> Finding | None:
    """Whole batches of one class each, in whatever order they come."""
    if not targets.discrete or order.rows_are_exchangeable:
        return None
    table = counts_of(codes_of(targets.values, most=1000), targets.sizes)
    large = table[table.sum(1) >= 4]
    if len(large) < FEWEST_UNITS or table.sum(0).max() > 0.8 * table.sum():
        return None
    pure = float((large.max(1) / large.sum(1)).mean())
    if pure < 0.95:
        return None
    return Finding(
        "single-class batches",
        Status.WARN,
        f"On average {pure:.0%} of the rows of a batch are of one class{_because(_design(order))}.",
        "draw the rows of each batch from all classes",
        measured=f"{pure:.0%} of a batch in one class",
        threshold="95%",
    )


# --- (c) the next epoch -------------------------------------------------------------------------


def _fixed_order(order: Order) -> Finding | None:
    recurrence = order.first.recurrence
    if recurrence is not None:
        return _fixed_round(order, recurrence)
    same = order.repeated
    if same is None or order.by_itself:
        return None
    measured = f"{same.count:,} of {same.length:,} positions match"
    start = (
        f"The training order is the same in both epochs ({same.count:,} of {same.length:,} "
        "positions match, about 1 expected)"
    )
    if order.by_hand:
        why, status = "the sampler waits for set_epoch()", Status.NOTE
        if order.never_told:
            why, status = "set_epoch() is never called between epochs", Status.WARN
        fix = "sampler.set_epoch(epoch)  # at the start of every epoch"
        return Finding("order", status, f"{start}: {why}.", fix, measured)
    status, why, fix = _judged(order)
    return Finding("order", status, f"{start}{_because(why)}.", fix, measured, "90%")


def _fixed_round(order: Order, recurrence: Recurrence) -> Finding | None:
    """Judge batches of the program's own, in which rows come again and again."""
    if not recurrence.period:
        return None
    why = "text is read in consecutive blocks" if order.first.next_token else order.sequence
    return Finding(
        "order",
        Status.NOTE if why else Status.WARN,
        f"The training order is the same in every epoch: {recurrence.again:,} rows came again, "
        f"each {recurrence.period:,} rows after it had come before{_because(why)}.",
        "order = torch.randperm(n)  # anew in every epoch",
        f"one order of {recurrence.period:,} rows",
        "an order drawn anew",
    )


def _judged(order: Order) -> tuple[Status, str, str]:
    """Return how bad a fixed order is, the circumstance that matters, and the fix."""
    access = order.access
    if access is None:
        endless = not order.first.ended and not _has_length(order)
        why = "text is read in consecutive blocks" if order.first.next_token else order.sequence
        return Status.NOTE if endless else Status.WARN, why, "shuffle the data again in every epoch"
    if access.sequential:
        if order.first.next_token:
            return Status.WARN, "text is read in consecutive blocks", _SHUFFLE
        if order.sequence:
            return Status.WARN, order.sequence, _SHUFFLE
        small = order.indices is not None and len(order.indices[0]) < FEWEST_ROWS // 2
        return Status.WARN if small else Status.FAIL, "the loader does not shuffle", _SHUFFLE
    if _rising(order):
        return Status.NOTE, _design(order), _SHUFFLE
    fix = "torch.Generator().manual_seed(seed)  # once, outside __iter__"
    return Status.WARN, "the random generator is re-seeded every epoch", fix


def _rising(order: Order) -> bool:
    indices = order.indices[0] if order.indices else ()
    numbers = [index for index in indices if isinstance(index, int)]
    return len(numbers) == len(indices) and numbers == sorted(numbers)


def _has_length(order: Order) -> bool:
    return order.second is not None and order.second.ended


def _fresh_order(order: Order) -> str:
    """Say how the next epoch was seen to differ; empty where that is unknown."""
    if (recurrence := order.first.recurrence) is not None:
        other = recurrence.is_known and not recurrence.period
        return f"{recurrence.again:,} rows came again in another order" if other else ""
    asked, seen = order.asked_again, order.seen_again
    found = asked if asked is not None and asked.count <= 0.9 * asked.length else seen
    if found is None or found.length == 0 or found.expected > found.length / 4:
        return ""
    if found.count > 0.9 * found.length:
        return ""
    return f"The next epoch has {found.count:,} of {found.length:,} samples at the same position"


def _design(order: Order) -> str:
    """Name the sampler of the user's own that decides the order; empty for a standard one."""
    if order.access is None or order.access.torch_sampler:
        return ""
    return f"{type(order.access.sampler).__name__} orders them so by design"


def _because(why: str) -> str:
    return f": {why}" if why else ""


# --- evidence -----------------------------------------------------------------------------------


def _evidence(order: Order) -> tuple[Evidence, ...]:
    targets = order.targets
    curve = _composition_curve(targets) if targets is not None else None
    return (_numbers(order), *((curve,) if curve is not None else ()))


def _numbers(order: Order) -> Numbers:
    values: dict[str, float | str] = {"rows read": order.first.rows}
    targets = order.targets
    clumps = clumps_of(targets) if targets is not None and targets.kinds > 1 else None
    if clumps is not None:
        values |= {
            "equal neighbours, z score": clumps.deviation.z,
            "equal neighbours, p value": clumps.deviation.p,
            "equal neighbours, share of the possible excess": clumps.effect,
        }
    same = order.asked_again or order.seen_again
    if same is not None:
        values |= {
            "same position in the next epoch": same.count,
            "positions compared": same.length,
            "same position, expected by chance": same.expected,
        }
    return Numbers(title="Order of the training set", values=values)


def _composition_curve(targets: Targets, parts: int = 16, most: int = 6) -> Curve | None:
    n = len(targets.values)
    if n < FEWEST_ROWS or targets.kinds < 2:
        return None
    chunks = np.array_split(targets.values, parts)
    ends = np.cumsum([len(chunk) for chunk in chunks])
    x = tuple(float(end) for end in ends)
    if not targets.discrete:
        means = tuple(float(np.nanmean(chunk)) for chunk in chunks)
        series: tuple[Series, ...] = (Series(name="mean target", x=x, y=means),)
        label = "mean target"
    else:
        classes, counts = np.unique(targets.values, return_counts=True)
        common = sorted(classes[np.argsort(-counts, kind="stable")[:most]].tolist())
        series = tuple(
            Series(name=f"class {c:g}", x=x, y=tuple(float((k == c).mean()) for k in chunks))
            for c in common
        )
        label = "share of the class"
    title = "Composition along the epoch"
    return Curve(
        title=title, x_label="sample", y_label=label, series=series, shares=targets.discrete
    )
