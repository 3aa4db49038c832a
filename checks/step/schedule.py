"""STEP105: whether the learning rate schedule fits the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import Event, EventKind, parameters_of
from nnaudit.measure.consecutive import batches_per_epoch
from nnaudit.measure.metric_names import better_when_higher
from nnaudit.measure.rate_variables import SingleRate, UnreadRate, single_rates, unread_rates
from nnaudit.measure.seeding import source_files
from nnaudit.probes.lr_plan import LearningRatePlan, Plan, thinned
from nnaudit.probes.second_epoch import SecondEpoch
from nnaudit.probes.step_trace import STEPS, StepTrace, Trace, TracedStep
from nnaudit.report import Curve, Kind, Location, Result, Series
from nnaudit.targets.source import source_of
from nnaudit.wording import count

_DEAD = 0.0101
_OVER = 1e-6
_SOON = 500
_LOST = 3
"""Steps at a rate of zero, from which on they are no formality of a warm-up's first one."""

_UNLIKE_A_FACTOR = 0.09
"""Rates below this are no factor that a schedule has at its highest by chance."""

_PLANLESS = ("StepLR", "MultiStepLR", "ExponentialLR", "MultiplicativeLR")
"""Schedulers whose settings hold no length of the run: none is meant to end within an epoch."""


@dataclass(frozen=True)
class Rhythm:
    """How a scheduler is stepped.

    Attributes:
        per_step: it is stepped in every step of the loop.
        known: whether that could be seen: the loop is the user's own.
        epoch: optimizer steps in one epoch; 0 when unknown.
        named: what the script calls its number of epochs; 0 when unknown.
        epochs: how many its loop counts, at the most; 0 when unknown.
        whole: the loop does not leave off before.
        handed: batches that one optimizer step takes.
        times: how often it is stepped for each optimizer step: by every micro-batch, say.
        batches: how many one epoch has; 0 when unknown.
        rising: the rate is raised by the script itself, to an unknown peak.
        location: the line that steps it.
    """

    per_step: bool
    known: bool
    epoch: int
    named: int = 0
    epochs: int = 0
    whole: bool = False
    handed: int = 1
    times: int = 1
    batches: int = 0
    rising: bool = False
    location: Location | None = None

    @property
    def run(self) -> int:
        """How often the scheduler is stepped in the whole run; 0 when unknown."""
        if not self.known:
            return 0
        return self.epochs * (self.batches // self.handed * self.times if self.per_step else 1)

    @property
    def most(self) -> int:
        """The upper limit: a scheduler not stepped in any step seen may be in every fifth."""
        return self.run if self.per_step else self.epochs * self.batches // STEPS


@dataclass(frozen=True)
class Misfit:
    """What is wrong with a schedule; ``certain`` when it cannot be by design."""

    message: str
    fix: str
    certain: bool


class Schedule(Check):
    """Does the learning rate schedule fit the run?

    Why: A schedule counted in epochs but stepped every batch is over in the first minutes, and the
        rest of the run trains at a rate near zero; one counted in batches but stepped every epoch
        never leaves its warm-up. Both look like a network that has stopped learning.
    How: Each scheduler is stepped 2,000 times without training and restored. How often the loop
        steps it is seen in real steps; an epoch's length is the loader's. Where the loop around the
        training counts over a `range`, or a trainer is told its epochs, the length of the whole run
        is known too. These fail, except where a warning is named:
        - A learning rate that is negative or NaN within the first two values, or zero throughout.
        - A learning rate that is zero for the first 3 or more steps, as where a warm-up is divided
          with `//`, or is stepped once per epoch and begins with 0.
        - A function of LambdaLR's that returns, at the most, the optimizer's own learning rate:
          both are multiplied with one another.
        - A learning rate that the source multiplies or divides in a variable within a loop, where
          nothing reads that variable afterwards but to show it, and no line mentions the groups in
          which an optimizer keeps its rates.
        - A scheduler that no step calls and whose variable the script never reads again, except to
          show or save it.
        - A step, multi-step or exponential decay, stepped every batch, that falls for good to 1% of
          its peak before half of the first epoch is over and within 500 batches. Before the end of
          the first epoch it is a warning: longer ones may be for a run that counts iterations.
        - OneCycleLR made for two or more epochs of batches and not stepped in any step seen.
        - A cosine stepped every batch whose period is less than half an epoch and equals the
          script's number of epochs (a variable or setting named epochs, num_epochs and the like, or
          what the loop around the training counts).
          Any other such period is a warning.
        - With the whole run known: a rate that rises for all of it and does not reach half of its
          later peak (a warning in a run of one epoch).
        - With the whole run known: a rate that is zero, or a OneCycleLR that raises an error,
          before half of a run that nothing ends sooner (before 90%, a warning).
        - With the whole run known: a schedule that ends with the last batch of the last epoch while
          the scheduler is stepped once per epoch, or once per several accumulated batches.
        - With the whole run known, a CosineAnnealingLR whose T_max is at most half of it, so that
          the rate rises again to its start, is a warning: cycles may be by design. It fails where
          the run ends in the upper half of a cycle: no design ends training at its highest rate.
        - ReduceLROnPlateau with mode "min" that is stepped with what the source calls an accuracy
          (or F1, AUC, IoU, BLEU, ...), or with mode "max" and a loss.
        - A scheduler that is stepped, per step or between two epochs, and whose own optimizer takes
          none of the steps seen while another one that holds the same parameters takes them all is
          a warning: the rate that it plans is used by nobody. So it is where a function makes its
          optimizer anew for every epoch. An optimizer that shares its groups with the other's, or
          is kept by it (SAM, Lookahead), is in use.
        - A source that sets the rate of one parameter group by its number
          (`optimizer.param_groups[0]["lr"] = ...`), and of no other, is a warning where there is
          no scheduler and all groups of each optimizer begin with one rate.
        - OneCycleLR that ends, and raises an error, before the epoch does is a warning. A schedule
          that never changes the rate is a note. In module form, without a loop, only the schedule
          itself is judged.
    Fix: step a schedule counted in epochs once per epoch, and make one that is stepped every batch
        for as many batches: total_steps = epochs * len(train_loader)
    References: PyTorch documentation of torch.optim, "How to adjust learning rate" and OneCycleLR.
    """

    code, name, kind = "STEP105", "schedule", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (LearningRatePlan, StepTrace, SecondEpoch)

    def run(self, audit: Audit) -> Result:
        """Look at each scheduler's plan."""
        plans, trace = audit.probe(LearningRatePlan), audit.probe(StepTrace)
        if not plans:
            single = _of_one_group(audit.loop)
            return self._by_hand(audit, trace) if single is None else self._one_group(audit, single)
        if (misused := self._misused(audit, plans, trace)) is not None:
            return misused
        known = [plan for plan in plans if not plan.unknown]
        if not known:
            return self.inconclusive(
                f"Not judged: the schedule of {plans[0].scheduler} is unknown, because "
                f"{plans[0].unknown}."
            )
        found: list[tuple[Plan, Rhythm, Misfit]] = []
        for plan in known:
            rhythm = _rhythm(audit.loop, trace, plan)
            found += [(plan, rhythm, misfit) for misfit in _misfits(plan, rhythm)]
        found.sort(key=lambda item: not item[2].certain)
        if found:
            return self._answer(audit, *found[0])
        return self._fits(audit, known, trace)

    def _by_hand(self, audit: Audit, trace: Trace) -> Result:
        """Judge a rate that no scheduler sets: is it multiplied by a factor with every batch?"""
        sources = [source_of(file) for file in source_files(audit.loop)]
        if trace.own_loop() and (unread := next(unread_rates(sources), None)) is not None:
            return self._unread(audit, unread)
        rates = [max(step.step.lr, default=0.0) for step in trace.steps]
        factor = decay_by_hand(rates)
        if factor is None:
            return self.skipped(
                "No scheduler of torch.optim.lr_scheduler is used."
                if len(set(rates)) < 2
                else "The learning rate changes, but not by a scheduler of "
                "torch.optim.lr_scheduler: its plan is unknown."
            )
        handed = max(step.step.handed for step in trace.steps)
        epoch = batches_per_epoch(audit.loop) // handed
        dead = math.ceil(math.log(_DEAD) / math.log(factor))
        if dead >= min(epoch, _SOON):
            return self.passed(f"The learning rate is multiplied by {factor:.4g} in every step.")
        answer = self.failed if dead < epoch / 2 else self.warned
        return answer(
            f"The learning rate is multiplied by {factor:.4g} with every batch: it is down to 1% "
            f"after {dead} of the {epoch} batches of the first epoch.",
            measured=f"1% of the learning rate after {dead} batches",
            threshold="a schedule that lasts for the run",
            location=audit.loop.locate("optimizer"),
            fix="lower the learning rate once per epoch, outside the loop over batches",
        )

    def _one_group(self, audit: Audit, rate: SingleRate) -> Result:
        groups = max(len(optimizer.param_groups) for optimizer in audit.loop.optimizers)
        return self.warned(
            f"`{rate.text}` sets the learning rate of one of {groups} parameter groups: the others "
            "began with the same rate and keep it for the whole run.",
            measured=f"1 of {groups} groups",
            threshold="all groups",
            location=rate.location,
            fix='for group in optimizer.param_groups: group["lr"] = rate',
        )

    def _unread(self, audit: Audit, rate: UnreadRate) -> Result:
        held = max(group["lr"] for o in audit.loop.optimizers for group in o.param_groups)
        return self.failed(
            f"`{rate.text}` changes a variable that no optimizer reads: the optimizer was made "
            f"with its value then, and trains at {float(held):.3g} for the whole run.",
            measured=f"{rate.name} is not read after it is changed",
            threshold="a learning rate that reaches the optimizer",
            location=rate.location,
            fix=f'for group in optimizer.param_groups: group["lr"] = {rate.name}',
        )

    def _misused(self, audit: Audit, plans: tuple[Plan, ...], trace: Trace) -> Result | None:
        """Return what is wrong with the use of a scheduler, whatever its plan."""
        idle = next((plan for plan in plans if plan.unused), None)
        if idle is not None and trace.own_loop() and not _stepped(trace, idle):
            return self._never_stepped(audit, idle)
        contrary = next((plan for plan in plans if _is_contrary(plan)), None)
        if contrary is not None:
            return self._follows_contrary(audit, contrary)
        return self._elsewhere(audit, plans, trace)

    def _never_stepped(self, audit: Audit, plan: Plan) -> Result:
        rates = [group["lr"] for o in audit.loop.optimizers for group in o.param_groups]
        return self.failed(
            f"{plan.scheduler} is created but never stepped (its variable is not used again), so "
            f"the learning rate stays at {max(rates):.3g}.",
            measured="no call of scheduler.step()",
            threshold="scheduler.step() in the loop",
            location=audit.loop.locate(audit.loop.schedulers[plan.number]),
            fix="call scheduler.step() once per epoch or per batch, whichever it is made for",
        )

    def _elsewhere(self, audit: Audit, plans: tuple[Plan, ...], trace: Trace) -> Result | None:
        """Warn of a scheduler of an optimizer in whose place another one steps."""
        loop = audit.loop
        for plan in plans:
            own = getattr(loop.schedulers[plan.number], "optimizer", None)
            user = _in_place_of(own, loop, trace)
            if user is None:
                continue
            if not _stepped(trace, plan) and plan.number not in audit.probe(SecondEpoch).scheduled:
                continue
            place = loop.locate(user)
            other = f"another one (line {place.line})" if place is not None else "another one"
            return self.warned(
                f"{plan.scheduler} has no effect: its optimizer never steps, and {other} trains "
                "the same parameters at a rate of its own.",
                measured=f"0 of {len(trace.steps)} steps by the scheduler's optimizer",
                threshold="the optimizer that trains",
                location=loop.locate(loop.schedulers[plan.number]),
                fix="make one optimizer, give it to the scheduler, and pass it on to whatever "
                "trains, for all epochs",
            )
        return None

    def _follows_contrary(self, audit: Audit, plan: Plan) -> Result:
        right = "max" if plan.seeks == "min" else "min"
        way = "rises" if right == "max" else "falls"
        return self.failed(
            f"{plan.scheduler} is stepped with {plan.metric!r}, and its mode is {plan.seeks!r}: it "
            f"lowers the learning rate while {plan.metric} {way}, that is, while training goes "
            "well.",
            measured=f"mode={plan.seeks!r}",
            threshold=f"mode={right!r} for {plan.metric}",
            location=audit.loop.locate(audit.loop.schedulers[plan.number]),
            fix=f"{plan.scheduler}(optimizer, mode={right!r}, ...)",
        )

    def _answer(self, audit: Audit, plan: Plan, rhythm: Rhythm, misfit: Misfit) -> Result:
        answer = self.failed if misfit.certain else self.warned
        return answer(
            misfit.message,
            fix=misfit.fix,
            measured=_course(plan),
            threshold="a schedule that lasts for the run",
            evidence=(_curve(plan, rhythm),),
            location=rhythm.location or audit.loop.locate("scheduler"),
        )

    def _fits(self, audit: Audit, plans: list[Plan], trace: Trace) -> Result:
        plan = plans[0]
        rhythm = _rhythm(audit.loop, trace, plan)
        evidence = tuple(_curve(each, _rhythm(audit.loop, trace, each)) for each in plans)
        if len(set(plan.rates)) == 1:
            return self.noted(
                f"{plan.scheduler} never changes the learning rate: {plan.rates[0]:.3g} in all of "
                f"{len(plan.rates) - 1:,} steps.",
                evidence=evidence,
                location=audit.loop.locate("scheduler"),
            )
        low = min(plan.rates)
        stepped = "every batch" if rhythm.per_step else "not every batch"
        how = f", stepped {stepped}" if rhythm.known else ""
        return self.passed(
            f"{plan.scheduler}: learning rate {plan.rates[0]:.3g} at the start, {plan.peak:.3g} at "
            f"the peak, {low:.3g} at the lowest{how}.",
            evidence=evidence,
        )


def _of_one_group(loop: Loop) -> SingleRate | None:
    """Return the statement that sets one group's rate, where all began with the same."""
    counts = [len(optimizer.param_groups) for optimizer in loop.optimizers]
    rates = [{group.get("lr") for group in o.param_groups} for o in loop.optimizers]
    if not counts or min(counts) < 2 or any(len(each) > 1 for each in rates):
        return None
    sources = [source_of(file) for file in source_files(loop)]
    return next(single_rates(sources, min(counts)), None)


def decay_by_hand(rates: Sequence[float]) -> float | None:
    """Return the factor below 1 by which each rate is the one before; None where there is none."""
    if len(rates) < 3 or not all(math.isfinite(rate) and rate > 0.0 for rate in rates):
        return None
    factors = [after / before for before, after in pairwise(rates)]
    steady = max(factors) - min(factors) < 1e-6 * min(factors)
    return factors[0] if steady and factors[0] < 1.0 - 1e-9 else None


def _is_contrary(plan: Plan) -> bool:
    """Whether a scheduler waits for a metric to get worse, by the metric's name."""
    rises = better_when_higher(plan.metric)
    return rises is not None and plan.seeks == ("min" if rises else "max")


def _stepped(trace: Trace, plan: Plan) -> list[Event]:
    return [
        event
        for step in trace.steps
        for event in step.of(EventKind.SCHEDULE)
        if event.which == plan.number
    ]


def _in_place_of(own: Any, loop: Loop, trace: Trace) -> Any:
    """Return the optimizer that took all steps seen with the parameters of ``own``; None if any."""
    numbers = {event.which for event in trace.events if event.kind is EventKind.STEP}
    at = next((i for i, each in enumerate(loop.optimizers) if each is own), -1)
    if at < 0 or at in numbers:
        return None
    held = {id(p) for p in parameters_of(own)}
    for number in sorted(numbers):
        other = loop.optimizers[number]
        shares = any(mine is theirs for mine in own.param_groups for theirs in other.param_groups)
        keeps = any(value is own for value in vars(other).values())
        if held and held == {id(p) for p in parameters_of(other)} and not shares and not keeps:
            return other
    return None


def _rhythm(loop: Loop, trace: Trace, plan: Plan) -> Rhythm:
    stepped = _stepped(trace, plan)
    told = any(event.explicit for event in stepped)
    in_each = all(_times(step, plan) for step in trace.steps)
    return Rhythm(
        per_step=in_each and not told,
        known=not told and (bool(stepped) or trace.own_loop() or loop.counted_epochs > 0),
        epoch=_steps_per_epoch(loop, trace),
        named=loop.planned_epochs,
        epochs=loop.counted_epochs,
        whole=loop.runs_whole,
        handed=max(step.step.handed for step in trace.steps),
        times=max(min(_times(step, plan) for step in trace.steps), 1),
        batches=batches_per_epoch(loop),
        rising=loop.rates_rise,
        location=stepped[0].location if stepped else None,
    )


def _times(step: TracedStep, plan: Plan) -> int:
    """Return how often ``plan``'s scheduler was stepped in ``step``."""
    return sum(event.which == plan.number for event in step.of(EventKind.SCHEDULE))


def _steps_per_epoch(loop: Loop, trace: Trace) -> int:
    """Return the optimizer steps in one epoch; 0 where the loader has no length."""
    batches = batches_per_epoch(loop)
    passes = [e for e in trace.steps[-1].of(EventKind.BACKWARD) if e.within < 0]
    # Several losses, or a GAN's two players, go back several times per batch too: then the epoch
    # is longer than this, and less is said.
    return math.ceil(batches / max(len(passes), 1))


def _misfits(plan: Plan, rhythm: Rhythm) -> list[Misfit]:
    found = [_at_once(plan), _throughout(plan), _squared(plan)]
    if rhythm.known and rhythm.epoch > 0:
        found += [
            _sleeps(plan, rhythm),
            _dies(plan, rhythm),
            _oscillates(plan, rhythm),
            _one_cycle(plan, rhythm),
        ]
    if rhythm.run > 1 and plan.rates[0] >= 0.0:
        found += [_counts_batches(plan, rhythm), _only_rises(plan, rhythm)]
        found += [_over(plan, rhythm), _comes_back(plan, rhythm)]
    return [misfit for misfit in found if misfit is not None]


def _at_once(plan: Plan) -> Misfit | None:
    bad = [i for i, rate in enumerate(plan.rates[:2]) if not math.isfinite(rate) or rate < 0.0]
    if not bad:
        return None
    rate = plan.rates[bad[0]]
    return Misfit(
        f"{plan.scheduler} gives a learning rate of {rate:g} "
        + ("before its first step." if bad[0] == 0 else "after its first step."),
        "check the function or factor that the scheduler is given",
        True,
    )


def _throughout(plan: Plan) -> Misfit | None:
    if len(plan.rates) < 1000 or any(rate != 0.0 for rate in plan.rates):
        return None
    return Misfit(
        f"{plan.scheduler} gives a learning rate of 0 in all of {len(plan.rates) - 1:,} steps.",
        "give the optimizer a learning rate above 0, and the scheduler a factor that rises",
        True,
    )


def _squared(plan: Plan) -> Misfit | None:
    """A function of LambdaLR's that returns the rate itself, at its peak the optimizer's own."""
    factor = plan.peak / plan.base if plan.base > 0.0 else 0.0
    is_rate = math.isclose(factor, plan.base, rel_tol=1e-4) and plan.base < _UNLIKE_A_FACTOR
    if plan.scheduler != "LambdaLR" or not is_rate or len(set(plan.rates)) < 2:
        return None
    return Misfit(
        f"The function of LambdaLR returns {factor:.3g} at the most, which is the optimizer's own "
        f"learning rate: LambdaLR multiplies the two, and the run trains at {plan.peak:.2g} or "
        "less.",
        "return a factor from 0 to 1, by which the optimizer's learning rate is multiplied",
        True,
    )


def _sleeps(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    """A rate that is zero for many batches before it rises for the first time.

    With the very first step it is so in most warm-ups that are stepped every batch.
    """
    zeros = next((i for i, rate in enumerate(plan.rates) if rate != 0.0), 0)
    lost = zeros if rhythm.per_step else zeros * rhythm.epoch
    if lost < _LOST:
        return None
    often = "steps" if rhythm.per_step else f"steps ({count(zeros, 'epoch')})"
    return Misfit(
        f"{plan.scheduler} gives a learning rate of 0 for the first {lost:,} {often}: nothing is "
        "learnt in them.",
        "let the warm-up begin above 0, and divide without rounding: (step + 1) / warmup_steps",
        True,
    )


def _dies(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    dead = plan.dead_after(_DEAD)
    if not rhythm.per_step or plan.scheduler not in _PLANLESS or dead is None:
        return None
    if dead >= min(rhythm.epoch, _SOON):
        return None
    setting = _settings(plan)
    return Misfit(
        f"{plan.scheduler}{setting} is stepped every batch: the learning rate is down to 1% of its "
        f"peak after {dead} of the {rhythm.epoch} batches of the first epoch.",
        "call scheduler.step() once per epoch, outside the loop over batches",
        dead < rhythm.epoch / 2,
    )


def _oscillates(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    names = {"CosineAnnealingLR": "T_max", "CosineAnnealingWarmRestarts": "T_0"}
    setting = names.get(plan.scheduler)
    period = plan.arguments.get(setting, 0.0) if setting else 0.0
    if not rhythm.per_step or not 0.0 < period < rhythm.epoch / 2:
        return None
    counts_epochs = period > 1 and period in (rhythm.named, rhythm.epochs)
    said = (
        f"{plan.scheduler}({setting}={period:g}) is stepped every batch: it completes "
        f"{rhythm.epoch / period:.0f} periods in one epoch of {rhythm.epoch} batches"
    )
    return Misfit(
        f"{said}, but {setting} is the number of epochs." if counts_epochs else f"{said}.",
        f"set {setting}=epochs * len(train_loader), or call scheduler.step() once per epoch",
        counts_epochs,
    )


def _one_cycle(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    total = plan.arguments.get("total_steps", 0.0)
    if plan.scheduler != "OneCycleLR" or total <= 0.0:
        return None
    if rhythm.per_step and total < rhythm.epoch:
        return Misfit(
            f"OneCycleLR is made for {total:.0f} steps and stepped every batch: it ends, and "
            f"raises an error, within the first epoch of {rhythm.epoch} batches.",
            "create OneCycleLR(..., epochs=epochs, steps_per_epoch=len(train_loader))",
            False,
        )
    if not rhythm.per_step and rhythm.epoch >= 10 and total >= 2 * rhythm.epoch:
        return Misfit(
            f"OneCycleLR is made for {total:.0f} steps ({total / rhythm.epoch:.0f} epochs of "
            "batches), but is not stepped every batch: it will not leave its warm-up.",
            "call scheduler.step() after every optimizer.step()",
            True,
        )
    return None


def _counts_batches(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    """A plan that ends exactly with the run's last batch, and is not stepped with each batch."""
    batches = rhythm.epochs * rhythm.batches
    end = plan.end
    if end is None or batches < 1.5 * rhythm.run or abs(end - batches) > 0.01 * batches + 1:
        return None
    if not rhythm.per_step and (rhythm.epochs < 2 or rhythm.batches < 10):
        return None
    often = f"in {rhythm.handed} batches" if rhythm.per_step else "per epoch"
    return Misfit(
        f"{plan.scheduler} is made for {end:,} steps, one per batch of {rhythm.epochs} epochs, but "
        f"it is stepped once {often}: {rhythm.run:,} times in all, so the schedule never ends.",
        "set total_steps = epochs * (len(train_loader) // accumulation_steps)"
        if rhythm.per_step
        else "call scheduler.step() after every optimizer.step(), or make the schedule for epochs",
        True,
    )


def _only_rises(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    """A warm-up that has not reached half of its peak when the run is over."""
    within = plan.rates[: rhythm.run]
    top = plan.rates.index(plan.peak) if plan.peak in plan.rates else 0
    rises = all(a <= b for a, b in pairwise(within)) and within[0] < within[-1]
    if rhythm.rising or not rises or rhythm.most > top:
        return None
    # A rate that still rises where the plan was left off is a warm-up below the optimizer's own.
    unfinished = top == len(plan.rates) - 1
    if (unfinished and (plan.ended or plan.peak > plan.base)) or within[-1] >= 0.5 * plan.peak:
        return None
    return Misfit(
        f"{plan.scheduler} warms up for {'more than ' if unfinished else ''}{top:,} steps, but the "
        f"run has only {rhythm.run:,} ({_epochs(rhythm)}): the learning rate reaches "
        f"{within[-1]:.2g} instead of {plan.peak:.2g}.",
        "make the warm-up a share of the run: warmup_steps = total_steps // 20",
        rhythm.epochs > 1,  # a single epoch may have been chosen for the audit
    )


def _over(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    """A rate that is zero, or a scheduler that raises, long before the run is over."""
    raises = bool(plan.ended)
    end = len(plan.rates) - 1 if raises else plan.dead_after(_OVER)
    if rhythm.times > 1:
        return None  # STEP112 asks whether it is stepped too often
    if end is None or end >= 0.9 * rhythm.run or not rhythm.whole:
        return None
    what = "raises an error" if raises else "has brought the learning rate to zero"
    return Misfit(
        f"{plan.scheduler} {what} after {end:,} of the {rhythm.run:,} times that it is stepped in "
        f"the run ({_epochs(rhythm)}).",
        f"make the schedule for {rhythm.run:,} steps: {_total(rhythm)}",
        end < 0.5 * rhythm.run,
    )


def _comes_back(plan: Plan, rhythm: Rhythm) -> Misfit | None:
    """A cosine without restarts that has reached its end and rises again within the run."""
    period = plan.arguments.get("T_max", 0.0)
    if plan.scheduler != "CosineAnnealingLR" or period <= 0.0 or not rhythm.whole:
        return None
    if rhythm.per_step and period < rhythm.epoch / 2:
        return None  # another rule's
    if rhythm.run < 2 * period:
        return None  # its first epochs may be a warm-up in which it is not stepped
    last = (1.0 + math.cos(math.pi * rhythm.run / period)) / 2.0  # its share of the peak
    high = last >= 0.5
    ending = f", and the run ends at {100 * last:.0f}% of it" if high else ""
    return Misfit(
        f"CosineAnnealingLR(T_max={period:g}) reaches its lowest learning rate after {period:g} of "
        f"the {rhythm.run:,} times that it is stepped in the run ({_epochs(rhythm)}), and rises "
        f"again, up to {plan.peak:.2g}{ending}.",
        f"set T_max={rhythm.run}: {_total(rhythm)}",
        high,
    )


def _epochs(rhythm: Rhythm) -> str:
    if not rhythm.per_step:
        return f"once in each of {rhythm.epochs} epochs"
    return f"{rhythm.epochs} epochs of {rhythm.batches // rhythm.handed} steps"


def _total(rhythm: Rhythm) -> str:
    if not rhythm.per_step:
        return "the number of epochs"
    return "epochs * len(train_loader)" + (f" // {rhythm.handed}" if rhythm.handed > 1 else "")


def _course(plan: Plan) -> str:
    """Say how the rate develops: a warm-up begins, and a decay ends, at or near zero."""
    said = f"{plan.rates[0]:.3g} at the start"
    top = plan.rates.index(plan.peak) if plan.peak in plan.rates else 0
    if 0 < top < len(plan.rates) - 1:
        said += f", {plan.peak:.3g} at the peak (step {top:,})"
    return f"learning rate {said}, {plan.rates[-1]:.3g} after {len(plan.rates) - 1:,} steps"


def _settings(plan: Plan) -> str:
    shown = {k: v for k, v in plan.arguments.items() if k in ("step_size", "gamma")}
    return f"({', '.join(f'{k}={v:g}' for k, v in shown.items())})" if shown else ""


def _curve(plan: Plan, rhythm: Rhythm) -> Curve:
    rates = plan.rates
    dead = plan.dead_after(_DEAD)
    if dead is not None:
        rates = rates[: max(4 * dead, 20)]
    x, y = thinned(rates)
    unit = ", in batches" if rhythm.per_step else ""
    return Curve(
        title=f"Planned learning rate ({plan.scheduler})",
        x_label=f"steps of the scheduler{unit}",
        y_label="learning rate",
        series=(Series(name="learning rate", x=x, y=y),),
    )
