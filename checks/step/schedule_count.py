"""STEP112: whether the scheduler is stepped once per optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import EventKind
from nnaudit.measure.consecutive import batches_per_epoch
from nnaudit.probes.lr_plan import LearningRatePlan, Plan
from nnaudit.probes.step_trace import StepTrace, Trace
from nnaudit.report import Kind, Location, Result


@dataclass(frozen=True)
class Count:
    """How often a scheduler is stepped, against the run it was planned for.

    Attributes:
        plan: what it was made for.
        each: how often it is stepped per optimizer step, in every step looked at.
        updates: optimizer steps of the whole run; 0 where that is not known.
        location: the line that steps it.
    """

    plan: Plan
    each: int
    updates: int
    location: Location | None

    @property
    def runs_out(self) -> bool:
        """Whether the plan is made for the optimizer's steps, and used up several times as fast."""
        end = self.plan.end
        near = end is not None and abs(end - self.updates) <= _slack(self.updates)
        return self.each > 1 and self.updates > 0 and near


class ScheduleCount(Check):
    """Is the scheduler stepped as often as it was planned for?

    Why: With gradients accumulated over k batches, a schedule made for the number of optimizer
        steps but stepped with every batch runs k times too fast: the learning rate is at its end
        after 1/k of the run, and the rest trains at a rate of nearly zero.
    How: Counts the steps of each scheduler in the first optimizer steps.
        - Fails when a scheduler is stepped the same number of times, two or more, in each of them,
          and its plan (T_max, total_steps, or where it stops falling) ends with the run's last
          optimizer step, within 5% (an epoch may end with an incomplete accumulation).
        - The length of the run is known where the loop around the training counts its epochs and
          the loader has a length.
        - A plan for the number of batches that is stepped with each of them passes.
    Fix: Step the scheduler only when the optimizer steps.
    References: Hugging Face Accelerate documentation, "Performing gradient accumulation"; PyTorch
        documentation of torch.optim, "How to adjust learning rate".
    """

    code, name, kind = "STEP112", "schedule-count", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (LearningRatePlan, StepTrace)

    def run(self, audit: Audit) -> Result:
        """Compare how often the schedulers are stepped with what they are made for."""
        plans = [plan for plan in audit.probe(LearningRatePlan) if not plan.unknown]
        if not plans:
            return self.skipped("No learning rate scheduler is used whose plan can be foreseen.")
        counts = list(_counts(audit.loop, plans, audit.probe(StepTrace)))
        for count in counts:
            if count.runs_out:
                return self._runs_out(count)
        often = max((count.each for count in counts), default=0)
        return self.passed(
            f"Schedulers are stepped {often} times per optimizer step, as planned."
            if often > 1
            else "No scheduler is stepped more than once per optimizer step."
        )

    def _runs_out(self, count: Count) -> Result:
        plan = count.plan
        return self.failed(
            f"{plan.scheduler} is stepped {count.each} times per optimizer step, and planned for "
            f"{plan.end:,} steps, as many as the optimizer takes in the run: the learning rate is "
            f"at its end after 1/{count.each} of it.",
            measured=f"{count.each} steps of the scheduler per optimizer step",
            threshold="1",
            location=count.location,
            fix="Step the scheduler only when the optimizer steps: if (i + 1) % accumulation == 0: "
            "optimizer.step(); scheduler.step()",
        )


def _counts(loop: Loop, plans: list[Plan], trace: Trace) -> Iterator[Count]:
    handed = max(step.step.handed for step in trace.steps)
    updates = loop.counted_epochs * (batches_per_epoch(loop) // handed)
    for plan in plans:
        events = [
            [e for e in step.of(EventKind.SCHEDULE) if e.which == plan.number]
            for step in trace.steps
        ]
        numbers = {len(each) for each in events}
        told = any(event.explicit for each in events for event in each)
        if len(numbers) == 1 and not told:
            first = events[0][0].location if events[0] else None
            yield Count(plan, numbers.pop(), updates, first)


def _slack(updates: int) -> float:
    return 0.05 * updates + 1
