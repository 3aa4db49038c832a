"""FIT104: the loss must not run away."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import capital
from nnaudit.checks.fit.stream import curve_of_run
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.replicate import replicated
from nnaudit.probes.training_run import Training, TrainingRun, training_run
from nnaudit.report import Kind, Result
from nnaudit.stats import ALPHA
from nnaudit.wording import count

_FIRST = 5
_TIMES = 10.0


@dataclass(frozen=True)
class Course:
    """Where the losses of a run went.

    Attributes:
        broke: the step from which on they were no numbers; None when they never were.
        start: the median of the first five.
        end: the median of the middle or the last third of them, of the one that lies higher.
        p: the chance that every loss of that third is above every one of the first five, when all
            orders of the losses are equally likely; 1 where that is not so.
    """

    broke: int | None
    start: float
    end: float
    p: float

    @property
    def times(self) -> float:
        """How far the end lies above the start, in sizes of the start."""
        return (self.end - self.start) / max(abs(self.start), 1e-12)

    @property
    def diverged(self) -> bool:
        """Whether the losses ended in no numbers, or far above where they began, beyond chance."""
        return self.broke is not None or (self.p < ALPHA and self.times > _TIMES - 1)

    def __str__(self) -> str:
        if self.broke is not None:
            return f"the loss is NaN or infinite from step {self.broke} on"
        return f"the loss goes from {self.start:.4g} to {self.end:.4g}"


def course_of(training: Training) -> Course:
    """Read off a run whether it ran away."""
    finite = [loss for loss in training.losses if math.isfinite(loss)]
    first, third = finite[:_FIRST], len(finite) // 3
    thirds = [finite[-2 * third : -third], finite[-third:]] if third else [finite]
    highest = max(thirds, key=lambda losses: statistics.median(losses or [-math.inf]))
    start = statistics.median(first) if first else math.nan
    end = statistics.median(highest) if highest else math.nan
    apart = len(first) == _FIRST and third > 0 and min(highest) > max(first)
    p = 1 / math.comb(third + _FIRST, _FIRST) if apart else 1.0
    broke = training.broke
    if training.error and end - start <= (_TIMES - 1) * abs(start):
        broke = None  # the user's code raised for another reason
    return Course(broke, start, end, p)


class Divergence(Check):
    """Does the training stay finite, or does the loss run away?

    Why: With too high a learning rate, without a needed clip, or with an operation that overflows,
    the loss grows without bound or becomes NaN; what is trained after that is worth nothing, and a
    run that ends so after a night could have been known for what it is in a minute.
    How: Your own loop takes 300 steps on real batches at your learning rate, a planned warm-up
    squeezed into them. The hypothesis that the losses have no upward course is given up when they
    become NaN or infinite for good (five in a row: mixed precision may skip one), or when every
    loss of the middle or the last third is above every one of the first five, which has a chance
    of 1 in 10,000 at the most when all orders are equally likely, and their median is ten times
    the first. It
    fails when a second run with other weights and other batches does the same. Ten times is not
    what noise, a hard batch or a changing target does. Growth is a warning only with
    several optimizers (GANs, actors and critics) and with losses that are more than a comparison
    with targets; NaN and growth are where a warm-up is planned, which may be longer than the run.
    Fix: lower the learning rate tenfold, or clip the gradients before the step:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).
    References: Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 8.2.4 on cliffs;
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (ICML
    2013), on clipping.
    """

    code, name, kind = "FIT104", "divergence", Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "DATA101", "DATA102", "GRAD106", "STEP102", "STEP103", "STEP104", "STEP106", "STEP107",
        "INIT101", "LOSS103", "LOSS104",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Believe a run that stays where it is; repeat one that runs away."""
        training = audit.probe(TrainingRun)
        course = course_of(training)
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        if training.broke == 0:
            return self.inconclusive("The loss is no number from the first step on: see GRAD106.")
        if not course.diverged:
            return self._stays(training, course, details)
        details |= {
            "measured": capital(str(course)),
            "threshold": f"finite, and not {_TIMES:g} times the first loss",
            "location": audit.loop.locate("optimizer"),
            "fix": f"lower the learning rate, now {max(training.rates):.2g}, tenfold, or clip: "
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        }
        said = f"At your learning rate {course}"
        weak = _why_weak(audit, training, course)
        if weak:
            return self.warned(f"{said}; {weak}.", **details)
        with replicated(audit) as other:
            again = course_of(training_run(other, val=False))
        if again.diverged:
            return self.failed(f"{said}; so it was with other weights and batches.", **details)
        return self.warned(f"{said}; with other weights and batches it was not so.", **details)

    def _stays(self, training: Training, course: Course, details: dict[str, Any]) -> Result:
        n = len(training.losses)
        if training.error:
            return self.inconclusive(
                f"The run ended at step {n - 1}, for your code raised {training.error}.", **details
            )
        if n < 20:
            return self.inconclusive(f"There was time for {count(n, 'step')} only.", **details)
        return self.passed(f"In {n} steps {course}.", **details)


def _why_weak(audit: Audit, training: Training, course: Course) -> str:
    """Say why a loss that grows is no proof; empty where it is."""
    if training.warmed:
        return "the planned warm-up may be longer than this run's"
    if course.broke is not None:
        return ""
    if len(audit.loop.optimizers) > 1:
        return "with several optimizers a loss may grow while all is well"
    return "" if training.calls else "the loss is composite, and may be meant to grow"
