"""STEP107: whether backward, clip, optimizer and scheduler are called in the right order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import Event, EventKind, Recorder, parameters_of
from nnaudit.measure.consecutive import batches_per_epoch, consecutive_batches
from nnaudit.probes.step_trace import StepTrace, Trace, TracedStep, describe
from nnaudit.report import Kind, Location, Result, Text
from nnaudit.targets.source import source_of

_MORE_STEPS = 20


@dataclass(frozen=True)
class Disorder:
    """Something that comes at the wrong time; ``certain`` when it cannot be by design."""

    message: str
    fix: str
    location: Location | None
    certain: bool = True


class StepOrder(Check):
    """Do backward, clip, optimizer and scheduler come in the right order, and once each?

    Why: A clip after optimizer.step() comes too late, one before backward() clips nothing; a second
        optimizer.step() repeats the update with an old gradient; a scheduler that steps before the
        optimizer skips the first value of its schedule; gradients that are computed and never used
        cost time for nothing. None of this raises an error.
    How: Exact, from the order of events in the first steps. It fails in four cases, if seen in
        every step.
        - Gradients are clipped before any backward made some, or after the optimizers that hold
          them have stepped and before new ones are made.
        - One optimizer steps twice with a non-zero gradient and no backward in between. An
          optimizer that computes its gradient itself, in a closure, and one that wraps another are
          exempt.
        - A scheduler, not told the epoch, steps in the first step before the optimizer ever did:
          PyTorch then skips its first value. Where the first step was not seen, a scheduler ahead
          of the optimizer's own count of steps fails, and so does one stepped once while its
          optimizer has no state yet.
        - optimizer.step() comes once per epoch, after the loop over the batches whose gradients are
          zeroed within it: only the last batch is learnt from. Gradients that are summed over the
          epoch and not divided by its batches are a warning; divided, they are gradient descent on
          the whole set, by design.
        - An optimizer that holds gradients after every one of 24 steps and never steps is a
          warning, because it may step later by design; one that wraps another or is wrapped is
          exempt.
    Fix: call optimizer.zero_grad(), loss.backward(), clip_grad_norm_(...), optimizer.step(),
        scheduler.step() in this order.
    References: PyTorch documentation of torch.optim, "How to adjust learning rate".
    """

    code, name, kind = "STEP107", "step-order", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (StepTrace,)

    def run(self, audit: Audit) -> Result:
        """Look for each disorder in turn, the certain ones first."""
        loop, trace = audit.loop, audit.probe(StepTrace)
        found = [
            disorder
            for disorder in (
                _misplaced_clip(trace),
                _twice(trace),
                _outside_loop(loop, trace),
                _schedule_ahead(loop, trace),
                _never_stepped(audit, trace),
            )
            if disorder is not None
        ]
        found.sort(key=lambda disorder: not disorder.certain)
        order = Text(
            title="Order of events in one step",
            text=describe(trace.steps[-1].events, len(loop.optimizers)),
        )
        if found:
            worst = found[0]
            answer = self.failed if worst.certain else self.warned
            return answer(
                worst.message,
                fix=worst.fix,
                measured=f"seen in {len(trace.steps)} steps",
                threshold="backward, clip, optimizer.step, scheduler.step",
                evidence=(order,),
                location=worst.location or loop.locate("training_step"),
            )
        steps = sum(event.kind is EventKind.STEP for event in trace.events)
        return self.passed(
            f"Backward, clip, optimizer and scheduler are called in the right order in {steps} "
            "optimizer steps.",
            evidence=(order,),
        )


def _misplaced_clip(trace: Trace) -> Disorder | None:
    """Find clips that meet no gradient, or one that has been used, in every step."""
    used, misplaced, steps = False, 0, 0
    idle = True
    where: Location | None = None
    for event in trace.events:
        if event.kind is EventKind.BACKWARD:
            used = False
        elif event.kind is EventKind.STEP and not event.closure:
            used, steps = True, steps + 1
        elif event.kind is EventKind.ATTEMPT:
            used = True
        elif event.kind is EventKind.CLIP and event.clip is not None:
            # Tensors without a gradient beside others that have theirs are STEP104's.
            empty = event.clip.before == 0.0 and not any(event.norms)
            if (used or empty) and _concerns_the_used(trace, event):
                misplaced, where, idle = misplaced + 1, where or event.location, idle and empty
    if misplaced < len(trace.steps) or steps < 2:
        return None
    when = "before backward makes them" if idle else "after optimizer.step()"
    return Disorder(
        f"Gradients are clipped {when} in all {len(trace.steps)} steps seen, so the optimizer uses "
        "them unclipped.",
        "move the clip between loss.backward() and optimizer.step()",
        where,
    )


def _concerns_the_used(trace: Trace, clip: Event) -> bool:
    """Whether the optimizers that step after ``clip``, before a backward, have no part in it."""
    events = trace.events
    for event in events[events.index(clip) + 1 :]:
        if event.kind is EventKind.BACKWARD:
            return True
        if event.kind is EventKind.STEP:
            return False  # another optimizer uses what is clipped here
    return True


def _twice(trace: Trace) -> Disorder | None:
    """Find an optimizer that steps again with the gradient it has used, in every step."""
    repeats = 0
    where: Location | None = None
    for traced in trace.steps:
        fresh: dict[int, bool] = {}
        for event in traced.events:
            if event.kind is EventKind.BACKWARD:
                fresh = {}
            elif event.kind is EventKind.STEP and not event.closure:
                if fresh.get(event.which) is False and (event.norms[event.which] or 0.0) > 0.0:
                    repeats, where = repeats + 1, where or event.location
                fresh[event.which] = False
    if repeats < len(trace.steps):
        return None
    return Disorder(
        f"optimizer.step() is called again without a new backward in all {len(trace.steps)} steps "
        "seen: the same gradient is applied twice.",
        "call optimizer.step() once after each backward()",
        where,
    )


def _outside_loop(loop: Loop, trace: Trace) -> Disorder | None:
    """Find an optimizer that steps when the epoch is over, after the loop over its batches."""
    batches = batches_per_epoch(loop)
    if not loop.epoch_per_step or batches < 2 or len(loop.optimizers) != 1:
        return None
    taken, passes = (trace.steps[-1].of(kind) for kind in (EventKind.STEP, EventKind.BACKWARD))
    if not taken or len(passes) != 1 or taken[0].closure:
        return None
    step = taken[0]
    zeroings = trace.steps[-1].of(EventKind.ZERO)
    message = f"optimizer.step() comes once per epoch, after the loop over its {batches} batches"
    if any(_repeats_with(zeroing, passes[0], step) for zeroing in zeroings):
        return Disorder(
            f"{message}, and their gradients are zeroed in the loop: only the last one counts.",
            "call optimizer.step() within the loop, after loss.backward()",
            step.location,
        )
    if not _undivided(trace.steps[-1]):
        return None
    return Disorder(
        f"{message}: each step uses the sum of their gradients.",
        "call optimizer.step() within the loop, after loss.backward()",
        step.location,
        certain=False,
    )


def _repeats_with(event: Event, backward: Event, step: Event) -> bool:
    """Whether ``event`` is in a loop that ``backward`` is in too, and ``step`` is not."""
    return bool(_loops(event) & _loops(backward) - _loops(step))


def _loops(event: Event) -> set[tuple[str, int]]:
    """Return the loops around the line of ``event`` in its function, each by its own line."""
    place = event.location
    if place is None:
        return set()
    return {(place.file, each.lineno) for each in source_of(place.file).loops_at(place.line)}


def _undivided(step: TracedStep) -> bool:
    """Whether the mean-reduced loss of a batch is back-propagated as it is."""
    seen = step.step.observation
    passes = step.of(EventKind.BACKWARD)
    calls = seen.loss_calls if seen is not None else []
    root = passes[0].root
    if len(calls) != 1 or calls[0].value is None or calls[0].reduction != "mean" or root is None:
        return False
    return math.isclose(root / passes[0].scale, float(calls[0].value), rel_tol=1e-3)


def _schedule_ahead(loop: Loop, trace: Trace) -> Disorder | None:
    """Find a scheduler that is ahead of its optimizer."""
    certain: bool | None = None
    where: Location | None = None
    stepped: set[int] = set()
    for event in trace.steps[0].events:
        if event.kind in (EventKind.STEP, EventKind.ATTEMPT):
            stepped.add(event.which)
        elif event.kind is EventKind.SCHEDULE and not event.explicit:
            optimizer = _scheduled(loop, event.which)
            if optimizer in stepped or optimizer < 0:
                continue
            certain, where = (
                event.ahead or _counts_ahead(loop, event.which, optimizer),
                event.location,
            )
            break
    if not certain and (early := _stepped_early(loop)) is not None:
        certain, where = True, loop.locate(early) or loop.locate("scheduler")
    if not certain or _per_micro_batch(trace):
        return None
    return Disorder(
        "scheduler.step() comes before the optimizer's first step, so the first learning rate of "
        "the schedule is never used.",
        "call scheduler.step() after optimizer.step()",
        where,
    )


def _per_micro_batch(trace: Trace) -> bool:
    """Whether a scheduler is stepped with each of several batches that one step takes.

    Then it goes on in small steps before the optimizer's first, by design (see STEP112).
    """
    return any(
        step.step.handed > 1 and len(step.of(EventKind.SCHEDULE)) >= step.step.handed
        for step in trace.steps
    )


_PLAIN = (
    "StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "LambdaLR", "MultiplicativeLR",
    "LinearLR", "PolynomialLR", "OneCycleLR",
)  # fmt: skip
"""Schedulers that count one step when they are made, and one more for each step()."""


def _stepped_early(loop: Loop) -> Any:
    """Return a scheduler that was stepped once before its optimizer, as a new epoch begins.

    An optimizer that has stepped has a state, unless it is plain gradient descent; one that goes on
    from a checkpoint has one too, and its scheduler has counted further.
    """
    inner = {id(part) for each in loop.schedulers for part in getattr(each, "_schedulers", ())}
    for number, scheduler in enumerate(loop.schedulers):
        which = _scheduled(loop, number)
        if which < 0 or id(scheduler) in inner or type(scheduler).__name__ not in _PLAIN:
            continue
        optimizer = loop.optimizers[which]
        stateless = all(not group.get("momentum", 1.0) for group in optimizer.param_groups)
        counted = (scheduler.last_epoch, getattr(scheduler, "_step_count", 0))
        # A first rate of zero may be skipped on purpose.
        skips_zero = any(factor(0) == 0.0 for factor in getattr(scheduler, "lr_lambdas", ()))
        if counted == (1, 2) and not (optimizer.state or stateless or skips_zero):
            return scheduler
    return None


def _scheduled(loop: Loop, scheduler: int) -> int:
    """Return the number of the optimizer that a scheduler drives; -1 when it is none of ours."""
    driven = getattr(loop.schedulers[scheduler], "optimizer", None)
    return next((i for i, optimizer in enumerate(loop.optimizers) if optimizer is driven), -1)


def _counts_ahead(loop: Loop, scheduler: int, which: int) -> bool:
    """Whether the scheduler has stepped as often as the optimizer, which is about to step."""
    epoch = getattr(loop.schedulers[scheduler], "last_epoch", None)
    counts = {
        int(state["step"])
        for parameter in parameters_of(loop.optimizers[which])
        for state in (loop.optimizers[which].state.get(parameter, {}),)
        if isinstance(state.get("step"), (int, float, torch.Tensor))
    }
    # Both are as they were before the steps looked at: equal counts are right for one that steps
    # after the optimizer, and wrong for one that is about to step first.
    return isinstance(epoch, int) and epoch > 0 and bool(counts) and epoch == max(counts) > 0


def _never_stepped(audit: Audit, trace: Trace) -> Disorder | None:
    """Find an optimizer that gets gradients and never steps."""
    suspects = _idle(audit.loop, trace.events)
    if not suspects:
        return None
    with Recorder(audit.loop) as recorder:
        for batch in consecutive_batches(audit.loop, _MORE_STEPS):
            audit.clock.check()
            audit.loop.step(batch)
    suspects &= _idle(audit.loop, recorder.events)
    if not suspects:
        return None
    which = min(suspects)
    name = type(audit.loop.optimizers[which]).__name__
    return Disorder(
        f"Optimizer {which + 1} ({name}) gets gradients in every backward but never steps in "
        f"{len(trace.steps) + _MORE_STEPS} iterations of the loop.",
        "call its step(), or freeze its parameters: p.requires_grad_(False)",
        None,
        certain=False,
    )


def _idle(loop: Loop, events: Iterable[Event]) -> set[int]:
    """Return the optimizers that every backward gave gradients and that never stepped.

    One whose parameters another steps does not wait for anything: of two optimizers, one within
    the other, only one is seen to step.
    """
    events = list(events)
    backwards = [event for event in events if event.kind is EventKind.BACKWARD]
    busy = {e.which for e in events if e.kind in (EventKind.STEP, EventKind.ATTEMPT)}
    moved = {id(p) for which in busy for p in parameters_of(loop.optimizers[which])}
    return {
        which
        for which, optimizer in enumerate(loop.optimizers)
        if which not in busy
        and any(id(p) not in moved for p in parameters_of(optimizer))
        and backwards
        and all((b.norms[which] or 0.0) > 0.0 for b in backwards)
    }
