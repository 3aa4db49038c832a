"""STEP109: whether the learning rate lies where the loss falls."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.planned_rate import planned_lr, planned_rise
from nnaudit.measure.lr_range import SECONDS, SHORTEST, Ramp, constant_run, range_test
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Curve, Kind, Result, Series
from nnaudit.state.snapshot import preserved

_RUN, _SHORTEST = 60, 10
"""Steps of a trial, and the fewest that show anything where there is no time for more."""

_CHEAP = 0.05
"""Seconds of a step below which the ramp is worth its picture and the rate it suggests."""

_LEARNT = 0.25
_OWN_PACE = ("Adafactor", "Prodigy", "DAdaptAdam", "DAdaptSGD", "DAdaptLion", "Rprop", "LBFGS")


class LearningRate(Check):
    """Is the learning rate in the range where the loss falls?

    Why: The learning rate is the setting that most often decides whether a network learns. Too
        high, and the loss rises or jumps; thirty times too low, and a run takes a month instead of
        a day and looks as if it had converged.
    How: The range test: 96 real steps while the rate grows from 1e-4 to 1e4 times yours, and up to
        as many more while the loss still falls (the state is restored). The suggested rate is a
        tenth of the one with the lowest smoothed loss. The weights change during the ramp, so a
        suspicion is tested with 60 steps from the initial state on the same batches, at your rate
        and at the suggested one.
        - Too high, a warning: the suggested rate is lower by at least the option `high` (a factor),
          your loss ends above its start by more than the losses scatter, and at the suggested rate
          it ends below.
        - Too low, a warning: the suggested rate is higher by at least the option `low` (a factor)
          and lowers the loss by 20% beyond its scatter, while yours gains less than a tenth of that
          in three times as many steps.
        - Optimizers that set their own step size are skipped, and so are scripts that make both
          their batches and targets that are neither classes nor the same in every step
          (reinforcement learning). Where a warm-up is planned, a rate
          that is too high from the first step on is not reported.
        - Where steps are slow, a program whose loss after up to 180 steps of FIT103's run is a
          quarter below its start and never negative passes without a ramp: no other rate could gain
          ten times as much.
        - No verdict where steps are slow and an exact check that explains it has failed, or where
          fewer than 30 steps of that run were possible.
    Fix: use the suggested learning rate (lr=...), then try three times more and less.
    References: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017).
    """

    code, name, kind = "STEP109", "learning-rate", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "STEP101", "STEP102", "STEP104", "STEP106", "LOSS101", "LOSS102", "GRAD101", "GRAD102",
        "GRAD106", "GRAD107",
    )  # fmt: skip
    options: ClassVar[dict[str, float]] = {"low": 30.0, "high": 3.0}

    def run(self, audit: Audit) -> Result:
        """Run the range test; test a suspicion."""
        loop, training = audit.loop, audit.probe(TrainingRun)
        reason = _why_skipped(loop) or _why_not_comparable(loop, training)
        if reason:
            return self.skipped(reason)
        lr = _rate_of(loop)
        if _expensive(training) and (said := _learns(training)):
            return self.passed(f"A learning rate of {lr:.2g} lies where the loss falls: {said}.")
        if _expensive(training) and (cause := self.cause(audit)):
            return self.inconclusive(
                f"Not judged: {cause} has failed, which may be why the loss does not fall, and a "
                f"step takes {_seconds(training):.2g} s. Fix {cause} first, then rerun."
            )
        if _seconds(training) > SECONDS / SHORTEST:
            return self.inconclusive(
                f"Not judged: a step takes {_seconds(training):.2g} s, too long for a range test "
                "that passes your learning rate."
            )
        return self._ramped(audit, training, lr)

    def _ramped(self, audit: Audit, training: Training, lr: float) -> Result:
        with preserved(audit.loop.subjects):
            ramp = range_test(audit)
        if ramp.best <= 0.0 or (ramp.cut and ramp.factors[-1] < 10.0):
            return self.inconclusive(
                "Not judged: there was no time for a range test that passes your learning rate."
            )
        if ramp.fell < 0.02:
            return self._flat(ramp, lr)
        if ramp.best >= self.option(audit, "low"):
            return self._tried_out(audit, training, ramp, lr, self._too_low)
        if ramp.best <= 1.0 / self.option(audit, "high") and _diverges_near(ramp):
            return self._tried_out(audit, training, ramp, lr, self._too_high)
        return self._fine(ramp, lr)

    def _flat(self, ramp: Ramp, lr: float) -> Result:
        return self.inconclusive(
            f"The loss fell at no learning rate of the range test ({len(ramp.losses)} steps, too "
            "few for a verdict).",
            evidence=(_curve(ramp, lr),),
        )

    def _fine(self, ramp: Ramp, lr: float) -> Result:
        return self.passed(
            f"A learning rate of {lr:.2g} is within the useful range; the range test suggests "
            f"about {lr * ramp.best:.1g}.",
            evidence=(_curve(ramp, lr),),
        )

    def _tried_out(
        self, audit: Audit, training: Training, ramp: Ramp, lr: float, trial: Trial
    ) -> Result:
        steps = min(_RUN, len(training.losses) // 3) if training.cut else _RUN
        if steps < _SHORTEST:
            return self.inconclusive(
                f"Not judged: the range test suggests {lr * ramp.best:.1g} instead of {lr:.2g}, "
                f"but a step takes {_seconds(training):.2g} s, too long to try out both.",
                evidence=(_curve(ramp, lr),),
            )
        return trial(audit, ramp, lr, steps) or self.passed(
            f"A learning rate of {lr:.2g}, tried out for {steps} steps, was not clearly worse than "
            f"the {lr * ramp.best:.1g} that the range test suggests.",
            evidence=(_curve(ramp, lr),),
        )

    def _too_low(self, audit: Audit, ramp: Ramp, lr: float, steps: int) -> Result | None:
        other, yours = constant_run(audit, ramp.best, steps), constant_run(audit, 1.0, 3 * steps)
        start, scatter = _start(yours, other)
        gain, gained = start - _end(other), start - _end(yours)
        worth = math.isfinite(gain) and gain > max(0.2 * abs(start), 3 * scatter)
        if not worth or gained >= 0.1 * gain:
            return None
        return self.warned(
            f"The learning rate of {lr:.2g} is about {ramp.best:.0f} times below the useful one: "
            f"loss {start:.4g} to {_end(yours):.4g} in {3 * steps} steps, but to "
            f"{_end(other):.4g} in {steps} steps at {lr * ramp.best:.1g}.",
            measured=f"learning rate {lr:.2g}",
            threshold=f"at most {self.option(audit, 'low'):g} times below the useful one",
            evidence=(_curve(ramp, lr), _runs(lr, ramp.best, yours, other)),
            location=audit.loop.locate("optimizer"),
            fix=f"lr={lr * ramp.best:.0e}",
        )

    def _too_high(self, audit: Audit, ramp: Ramp, lr: float, steps: int) -> Result | None:
        if planned_rise(audit.loop):
            return None
        yours, other = constant_run(audit, 1.0, steps), constant_run(audit, ramp.best, steps)
        start, scatter = _start(yours, other)
        rises = not _end(yours) <= start + max(2 * scatter, 0.05 * abs(start))
        falls = _end(other) < start - max(scatter, 0.02 * abs(start))
        if not (rises and falls):
            return None
        ended = f"{_end(yours):.4g}" if math.isfinite(_end(yours)) else "NaN or infinite"
        return self.warned(
            f"Training diverges at the learning rate of {lr:.2g}: loss {start:.4g} to {ended} in "
            f"{len(yours)} steps, but down to {_end(other):.4g} at {lr * ramp.best:.1g}.",
            measured=f"learning rate {lr:.2g}",
            threshold="a loss that falls",
            evidence=(_curve(ramp, lr), _runs(lr, ramp.best, yours, other)),
            location=audit.loop.locate("optimizer"),
            fix=f"lr={lr * ramp.best:.0e}",
        )


Trial = Callable[[Audit, Ramp, float, int], Result | None]


def _seconds(training: Training) -> float:
    return training.seconds / max(len(training.losses), 1)


def _expensive(training: Training) -> bool:
    return _seconds(training) > _CHEAP


def _learns(training: Training) -> str:
    """Say that the run at the author's rate learns, so that no trial could speak against it."""
    losses = training.losses[: 3 * _RUN]
    if training.broke is not None or len(losses) < _SHORTEST or not min(losses) >= 0.0:
        return ""
    # The first steps at too high a rate raise the loss: coming back from there is not learning.
    start = min(x for x in (losses[0], training.moments[0].fixed.loss) if math.isfinite(x))
    end, scatter = _end(losses), _scatter(losses)
    if not start - end > max(_LEARNT * start, 3 * scatter):
        return ""
    return f"from {start:.4g} to {end:.4g} in {len(losses)} steps"


def _why_skipped(loop: Loop) -> str:
    """Return why the question does not apply; empty when it does."""
    names = {type(optimizer).__name__ for optimizer in loop.optimizers}
    if names & set(_OWN_PACE):
        return f"{', '.join(sorted(names))} sets the size of its steps itself."
    if len(loop.optimizers) != 1:
        return "There are several optimizers, whose learning rates depend on each other."
    if loop.rates_rise:
        return "The script raises its learning rate by itself, to an unknown peak."
    return "" if _rate_of(loop) > 0.0 else "The learning rate is 0."


def _why_not_comparable(loop: Loop, training: Training) -> str:
    if loop.lacks(Needs.STEPS) and not training.has_labels:
        return (
            "The script makes its batches itself, and what its loss compares with too: losses at "
            "two learning rates say nothing about which is better."
        )
    return ""


def _rate_of(loop: Loop) -> float:
    return max(planned_lr(loop, group) for group in loop.optimizers[0].param_groups)


def _diverges_near(ramp: Ramp) -> bool:
    """Whether the loss diverged near your rate or far below it, so that a test is worth it."""
    return ramp.diverged <= 10.0 or ramp.best <= 0.03


def _start(yours: list[float], other: list[float]) -> tuple[float, float]:
    """Return the loss at the start and the scatter of a run's losses from one to the next.

    Both runs begin alike; the calmer of the two shows how far batches differ by themselves.
    """
    scatters = [_scatter(run) for run in (yours, other)]
    known = [scatter for scatter in scatters if math.isfinite(scatter)]
    return statistics.mean(yours[:1] + other[:2]), min(known, default=0.0)


def _scatter(run: Sequence[float]) -> float:
    """Return the median difference of neighbouring losses after the first third; else infinity."""
    tail = [loss for loss in run[len(run) // 3 :] if math.isfinite(loss)]
    steps = [abs(b - a) for a, b in itertools.pairwise(tail)]
    return statistics.median(steps) if steps else math.inf


def _end(run: Sequence[float]) -> float:
    """Return the median of the last ten losses, of a short run the last third; else infinity."""
    last = run[-min(10, max(len(run) // 3, 1)) :]
    return statistics.median(last) if math.isfinite(run[-1]) else math.inf


def _curve(ramp: Ramp, lr: float) -> Curve:
    rates = tuple(lr * factor for factor in ramp.factors)
    low, high = min(ramp.smoothed), max(ramp.smoothed)
    return Curve(
        title="Learning rate range test",
        x_label="learning rate",
        y_label="loss",
        series=(
            Series(name="loss", x=rates, y=ramp.losses),
            Series(name="smoothed", x=rates, y=ramp.smoothed),
            Series(name="yours", x=(lr, lr), y=(low, high)),
            Series(name="suggested", x=(lr * ramp.best,) * 2, y=(low, high)),
        ),
        log_x=True,
    )


def _runs(lr: float, factor: float, yours: list[float], other: list[float]) -> Curve:
    return Curve(
        title="Both learning rates, tried out",
        x_label="step",
        y_label="loss",
        series=tuple(
            Series(name=f"lr {rate:.1g}", x=tuple(map(float, range(len(run)))), y=tuple(run))
            for rate, run in ((lr, yours), (lr * factor, other))
        ),
    )
