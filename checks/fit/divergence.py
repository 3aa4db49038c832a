"""FIT104: the loss must not diverge."""

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
_FINITE = (
    "the loss is finite. Whether it grows says nothing here, because the program makes the targets "
    "itself"
)


@dataclass(frozen=True)
class Course:
    """Where the losses of a run went.

    Attributes:
        broke: the step from which on they were NaN or infinite; None when they never were.
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
        """Whether the losses ended NaN or infinite, or far above the first, beyond chance."""
        return self.broke is not None or (self.p < ALPHA and self.times > _TIMES - 1)

    def __str__(self) -> str:
        if self.broke is not None:
            return f"the loss is NaN or infinite from step {self.broke} on"
        return f"the loss goes from {self.start:.4g} to {self.end:.4g}"


def course_of(training: Training) -> Course:
    """Read off a run whether it diverged."""
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
    """Does the loss stay finite, or does it diverge?

    Why: With too high a learning rate, without the gradient clipping that it needs, or with an
    operation that overflows, the loss grows without bound or becomes NaN. Everything trained after
    that is lost, and one minute shows what would otherwise be found after a night.
    How: Your own loop takes 300 steps on real batches at your learning rate, with a planned warm-up
    squeezed into them. The loss has diverged when it is NaN or infinite for good (five in a row:
    mixed precision may skip one), or when every loss of the middle or the last third of the run is
    above all of the first five (at most 1 in 10,000 when all orders are equally likely) and the
    median there is ten times the first. Noise, one hard batch or a changing target do not do that.
    It fails when a second run with other weights and other batches does the same.
    - Growth is only a warning with several optimizers (GANs, actor and critic) and where the loss
      is more than one comparison with targets.
    - Growth says nothing where a script makes its batches itself and its targets are neither
      classes nor the same in every step (returns, bootstrapped values): only NaN and infinity do.
    - NaN and growth are only a warning where the planned warm-up may be longer than this run.
    Fix: lower the learning rate tenfold, or clip the gradients before the step:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).
    References: Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 8.2.4 on cliffs;
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (ICML
    2013), on clipping.
    """

    code, name, kind = "FIT104", "divergence", Kind.STATISTICAL
    needs = (Needs.OWN_STEPS,)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "DATA101", "DATA102", "GRAD106", "STEP102", "STEP103", "STEP104", "STEP106", "STEP107",
        "INIT101", "LOSS103", "LOSS104",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Believe a run that stays where it is; repeat one that diverges."""
        training = audit.probe(TrainingRun)
        course = course_of(training)
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        if training.broke == 0:
            return self.inconclusive(
                "The loss is NaN or infinite from the first step on: see GRAD106."
            )
        if course.broke is None and audit.loop.lacks(Needs.STEPS) and not training.has_labels:
            return self._stays(training, _FINITE, details)
        if not course.diverged:
            return self._stays(training, course, details)
        details |= {
            "measured": capital(str(course)),
            "threshold": f"finite, and below {_TIMES:g} times the first loss",
            "location": audit.loop.locate("optimizer"),
            "fix": f"lower the learning rate, now {max(training.rates):.2g}, tenfold, or clip: "
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        }
        said = f"Training diverges at your learning rate: {course}"
        weak = _why_weak(audit, training, course)
        if weak:
            return self.warned(f"{said}. {weak}.", **details)
        with replicated(audit) as other:
            again = course_of(training_run(other, val=False))
        if again.diverged:
            return self.failed(
                f"{said}. A second run with other weights and batches did the same.", **details
            )
        return self.warned(
            f"{said}. A second run with other weights and batches did not.", **details
        )

    def _stays(self, training: Training, said: object, details: dict[str, Any]) -> Result:
        n = len(training.losses)
        if training.error:
            return self.inconclusive(
                f"The run ended at step {n - 1}, because your code raised {training.error}.",
                **details,
            )
        if n < 20:
            return self.inconclusive(
                f"There was time for {count(n, 'step')} only, and 20 are needed.", **details
            )
        return self.passed(f"No divergence in {n} steps: {said}.", **details)


def _why_weak(audit: Audit, training: Training, course: Course) -> str:
    """Say why a loss that grows is no proof; empty where it is."""
    if training.warmed:
        return "Only a warning, because the planned warm-up may be longer than this run"
    if course.broke is not None:
        return ""
    if len(audit.loop.optimizers) > 1:
        return "Only a warning, because with several optimizers one loss may grow as it should"
    if training.calls:
        return ""
    return "Only a warning, because a composite or hand-written loss may grow by design"
