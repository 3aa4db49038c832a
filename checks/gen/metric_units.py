"""What predictions of known quality show of how a metric reads them: units, thresholds, labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nnaudit.checks.gen.metric_sample import Sample, exchanged
from nnaudit.measure.metric_names import best_is_zero
from nnaudit.targets.metrics import FORMS, Metric, extremes

_SOME = 5
"""Random exchanges whose mean is what chance gives."""

_WHOLE = 0.995
"""A larger share of targets with a label makes no difference."""

_TELLING = 0.01
"""Of the way from perfect to random predictions: less may be rounding."""

_TOGETHER = 0.37
"""Added to all outputs: no whole number, so that rounding them shows."""

_BELOW, _ABOVE = 0.49, 0.51
"""Logits on both sides of a threshold at 0.5, which is meant for probabilities."""

_SHIFTS = tuple(0.5 * 2.0**k for k in range(15))
_FAR = 2.0**16
"""Predictions are moved by so many standard deviations of the targets."""


@dataclass(frozen=True)
class Askew:
    """One finding; ``certain`` where no competent author means it so."""

    message: str
    measured: str
    threshold: str
    fix: str
    certain: bool = False


def _by_chance(metric: Metric, sample: Sample) -> dict[str, float]:
    """Return the mean values of predictions of which all rows are exchanged."""
    values = [metric.value(exchanged(sample, 1.0, i), sample.target) for i in range(_SOME)]
    return {name: sum(each[name] for each in values) / _SOME for name in values[0]}


def unlabelled(metric: Metric, sample: Sample) -> Askew | None:
    """Find that places without a label count, which the loss leaves out."""
    target = sample.target
    kept = sample.labelled(target)
    share = float(kept.float().mean())
    if share > _WHOLE:
        return None
    perfect = metric.value(sample.ideal(target), target)
    noise = torch.randint(
        sample.output.shape[sample.axis], target.shape, generator=torch.Generator().manual_seed(0)
    )
    other = metric.value(sample.ideal(target.where(kept, noise)), target)
    chance = _by_chance(metric, sample)
    ignored = sorted(torch.unique(target[~kept]).tolist())
    which = f"the {int((~kept).sum()):,} of {target.numel():,} targets that are {ignored[0]}"
    for name, best in perfect.items():
        if min(abs(best - share), abs(best - 100 * share) / 100) < 1e-4:
            return Askew(
                f"{name} is {best:.4g} for perfect predictions: exactly the share of targets with "
                f"a label. It counts {which}, which the loss leaves out, as wrong.",
                f"{best:.4g} on perfect predictions",
                "1 on perfect predictions",
                f"valid = target != {ignored[0]}; compare output[valid] with target[valid]",
                certain=True,
            )
        if abs(other[name] - best) > _TELLING * abs(best - chance[name]):
            return Askew(
                f"{name} depends on what is predicted for {which}, which the loss leaves out: "
                f"{best:.4g} or {other[name]:.4g}, with the same, perfect predictions elsewhere.",
                f"{best:.4g} and {other[name]:.4g}",
                "the same value",
                f"valid = target != {ignored[0]}; compare output[valid] with target[valid]",
            )
    return None


def moved_together(metric: Metric, sample: Sample) -> Askew | None:
    """Find that a number added to all logits, which no probability shows, changes the value."""
    if sample.task != "classes" or extremes(sample.output) != FORMS[1]:
        return None
    output, target = sample.output, sample.target
    plain, moved = metric.value(output, target), metric.value(output + _TOGETHER, target)
    perfect, chance = metric.value(sample.ideal(target), target), _by_chance(metric, sample)
    for name, value in plain.items():
        if abs(moved[name] - value) > _TELLING * abs(perfect[name] - chance[name]) > 0:
            return Askew(
                f"{name} changes from {value:.4g} to {moved[name]:.4g} when {_TOGETHER} is added "
                "to the outputs of all classes, which changes no probability: outputs are rounded, "
                "or compared with a number, before the largest is taken.",
                f"{value:.4g} and {moved[name]:.4g}",
                "the same value",
                "output.argmax(1) of the output itself, not of output.int()",
            )
    return None


def late_yes(metric: Metric, sample: Sample) -> Askew | None:
    """Find that logits are compared with 0.5, which is a probability."""
    if sample.task != "binary" or extremes(sample.output) != FORMS[1]:
        return None
    target = sample.target
    yes = target > 0.5

    def value(size: float) -> dict[str, float]:
        return metric.value(torch.where(yes, size, -size), target)

    perfect, none = value(FORMS[1][1]), metric.value(torch.full(yes.shape, -_BELOW), target)
    below, above = value(_BELOW), value(_ABOVE)
    for name, best in perfect.items():
        if below[name] == none[name] != best == above[name]:
            return Askew(
                f"{name} compares the logits with 0.5, a probability of 0.62: rows with a "
                "probability from 0.5 to 0.62 count as no.",
                "a threshold at a logit of 0.5",
                "a threshold at a logit of 0, a probability of 0.5",
                "predicted = output > 0  # or output.sigmoid() > 0.5",
            )
    return None


def off_zero(metric: Metric, sample: Sample) -> Askew | None:
    """Find an error that perfect predictions make."""
    if sample.task != "numbers" or not sample.given:
        return None
    perfect, chance = metric.value(sample.ideal(sample.target), sample.target), None
    for name, best in perfect.items():
        if not best_is_zero(name):
            continue
        chance = chance or _by_chance(metric, sample)
        if abs(best) > 1e-3 * abs(chance[name]):
            return Askew(
                f"{name} is {best:.4g} for perfect predictions, and should be 0"
                f" ({chance[name]:.4g} for random ones): outputs and targets are not compared in "
                "one unit, or not row by row.",
                f"{best:.4g} on perfect predictions",
                "0 on perfect predictions",
                "undo the scaling of both, or of neither: (output * std + mean) against "
                "(target * std + mean)",
                certain=True,
            )
    return None


def better_off_target(metric: Metric, sample: Sample) -> Askew | None:
    """Find that predictions which are all off by the same amount are rated better than perfect.

    Predictions further off, to both sides, must be worse: a mean of outputs or a profit, which is
    the better the higher all outputs are, has no best value. Better is what perfect predictions
    are than such whose rows are exchanged.
    """
    if sample.task != "numbers" or not sample.given:
        return None
    target = sample.target
    deviation = float(target.float().std())
    if not deviation > 0:
        return None
    perfect, chance = metric.value(sample.ideal(target), target), _by_chance(metric, sample)
    for name, best in perfect.items():
        sign = 1.0 if chance[name] < best else -1.0
        worth = _worth(metric, sample, name, sign)
        found = {t: worth(t * deviation) for size in _SHIFTS for t in (size, -size)}
        t = max(found, key=lambda each: found[each])
        ends = max(worth(_FAR * deviation), worth(-_FAR * deviation))
        gain, scale = found[t] - sign * best, abs(best - chance[name])
        if gain > _TELLING * scale and gain > 1e-3 * abs(best) and ends < sign * best:
            return Askew(
                f"{name} rates predictions that are all {abs(t):g} standard deviations too "
                f"{'high' if t > 0 else 'low'} better than perfect ones ({sign * found[t]:.4g} "
                f"against {best:.4g}): outputs and targets are not compared in one unit.",
                f"{sign * found[t]:.4g} off the target, {best:.4g} on it",
                "the best value on the target",
                "undo the scaling of both, or of neither: (output * std + mean) against "
                "(target * std + mean)",
                certain=True,
            )
    return None


def _worth(metric: Metric, sample: Sample, name: str, sign: float) -> Callable[[float], float]:
    """Return how good predictions are that are all off by a number."""
    ideal, target = sample.ideal(sample.target), sample.target
    return lambda off: sign * metric.value(ideal + off, target)[name]
