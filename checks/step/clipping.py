"""STEP104: whether the optimizer's gradient respects the clip, and the limit is in proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import Clip, Event, EventKind, Recorder, without_gradients
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.step_trace import StepTrace, Trace, describe
from nnaudit.report import Curve, Kind, Location, Result, Series, Text
from nnaudit.training.optimizers import is_scale_free

_MORE_STEPS = 16


@dataclass(frozen=True)
class Bound:
    """A clip that came before a step: the gradient before it, its limit, and what the step used."""

    clip: Clip
    used: float
    step: Event
    scaled: float
    unscaled_after: bool


@dataclass(frozen=True)
class Miss:
    """A step whose gradient no clip reached, although one was called on other tensors before it.

    Attributes:
        used: the norm of the gradient that the step used.
    """

    clip: Clip
    used: float
    location: Location | None


class Clipping(Check):
    """Does the optimizer's gradient respect the clip, and is the limit in proportion?

    Why: Clipping protects a run from rare large gradients. Before a gradient scaler's unscale_ it
        clips values that are thousands of times too large, and almost nothing is left after
        unscaling. Before the last backward it bounds only a part. A limit far below every gradient
        is not protection but a smaller learning rate.
    How: Exact. Every call of clip_grad_norm_ and clip_grad_value_ between backward and step is
        recorded with its limit; right before the optimizer's step the same norm of the same
        gradients is computed again. It fails when that norm exceeds the limit by the factor of the
        option `excess` (norms in bfloat16 err by 1%) in two steps or more, or when gradients were
        clipped while still multiplied by a gradient scaler.
        - It also fails when two steps or more exceed the limit although a clip was called, because
          the clip got no tensors (a generator such as model.parameters() that the first call has
          used up), tensors without a gradient (the gradients themselves, or another copy of the
          network), or a copy of the very gradients that the optimizer uses: their norms agree to
          1%. Float32 copies that are filled after the clip respect its limit, and pass.
        - A clip of no tensors while the gradients happen to be small warns.
        - It warns when every gradient of 20 steps is larger than the option `binding` times the
          limit. For adaptive optimizers, whose steps do not grow with the gradient, that is a note,
          unless the limit leaves elements below twice the optimizer's `eps`, where they vanish.
          It fails where every gradient is more than `stopping` times the limit and a step moves the
          weights by less than `moved` of their size (STEP108's lower limit), at a learning rate
          that no warm-up is still raising: a large rate may make up for a small limit by design.
        - A clip after the step is STEP107's.
    Fix: scaler.unscale_(optimizer); clip_grad_norm_(model.parameters(), 1.0); optimizer.step()
    References: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
        networks" (2013); PyTorch documentation, "Automatic Mixed Precision examples".
    """

    code, name, kind = "STEP104", "clipping", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (StepTrace,)
    consequence_of = ("STEP107",)
    options: ClassVar[dict[str, float]] = {
        "excess": 1.05,
        "binding": 100.0,
        "stopping": 1000.0,
        "moved": 1e-5,
    }

    def run(self, audit: Audit) -> Result:
        """Compare each clip's limit with what the step used."""
        trace = audit.probe(StepTrace)
        excess = self.option(audit, "excess")
        if misses := _misses(trace, excess):
            return self._misses_gradients(audit, trace, misses)
        bounds = _bounds(trace.events)
        if not bounds:
            return self._unclipped(audit, trace)
        hidden = [bound for bound in bounds if bound.unscaled_after and bound.scaled > 1.0]
        if hidden:
            return self._still_scaled(audit, trace, hidden[0])
        over = [b for b in bounds if b.used > excess * b.clip.limit and math.isfinite(b.used)]
        if len(over) > 1:
            return self._exceeded(audit, trace, over)
        return self._proportion(audit, trace, bounds)

    def _unclipped(self, audit: Audit, trace: Trace) -> Result:
        clips = [event.clip for event in trace.events if event.clip is not None]
        if not clips:
            return self.skipped("Gradients are not clipped.")
        if not any(clip.given for clip in clips[1:]) and len(clips) > 2:
            return self.warned(
                f"Gradients are not clipped: {_miss(clips[-1])[0]}.",
                measured="no tensors",
                threshold="the parameters of the optimizer",
                evidence=(_order(audit.loop, trace),),
                location=_line_of(trace) or audit.loop.locate("training_step"),
                fix=_miss(clips[-1])[1],
            )
        if any(clip.reaches for clip in clips):
            return self.skipped(
                "Gradients are clipped, but no clip of the optimizer's gradients was seen between "
                "backward and step."
            )
        return self.skipped(
            "Only gradients of tensors that no optimizer holds are clipped, and no step was seen "
            "to exceed the limit."
        )

    def _misses_gradients(self, audit: Audit, trace: Trace, misses: list[Miss]) -> Result:
        worst = max(misses, key=lambda miss: miss.used / max(miss.clip.limit, 1e-30))
        why, fix = _miss(worst.clip)
        return self.failed(
            f"Gradients are not clipped: {why}. The optimizer steps with a gradient norm of "
            f"{worst.used:.3g}, the limit is {worst.clip.limit:g}.",
            measured=f"gradient norm {worst.used:.3g} at the step",
            threshold=f"at most {worst.clip.limit:g}",
            evidence=(_order(audit.loop, trace),),
            location=worst.location or audit.loop.locate("training_step"),
            fix=fix,
        )

    def _still_scaled(self, audit: Audit, trace: Trace, bound: Bound) -> Result:
        return self.failed(
            f"Gradients are clipped to {bound.clip.limit:g} while still multiplied by the gradient "
            f"scaler's {bound.scaled:g}: after unscaling, the step uses a norm of only "
            f"{bound.used:.2g}.",
            measured=f"a norm of {bound.used:.3g} at the step",
            threshold=f"a clip at {bound.clip.limit:g} of unscaled gradients",
            evidence=(_order(audit.loop, trace),),
            location=_line_of(trace) or audit.loop.locate("training_step"),
            fix="call scaler.unscale_(optimizer) before clip_grad_norm_",
        )

    def _exceeded(self, audit: Audit, trace: Trace, over: list[Bound]) -> Result:
        worst = max(over, key=lambda bound: bound.used / max(bound.clip.limit, 1e-30))
        return self.failed(
            f"Gradients are clipped to {worst.clip.limit:g}, but the optimizer steps with "
            f"{worst.used:.3g}: they change after the clip.",
            measured=f"{_what(worst.clip)} {worst.used:.3g} at the step",
            threshold=f"at most {worst.clip.limit:g}",
            evidence=(_order(audit.loop, trace),),
            location=_line_of(trace) or audit.loop.locate("training_step"),
            fix="clip right before optimizer.step(), after the last backward()",
        )

    def _proportion(self, audit: Audit, trace: Trace, bounds: list[Bound]) -> Result:
        binding = self.option(audit, "binding")
        if min(map(_ratio, bounds)) > binding:
            bounds = [*bounds, *_more_bounds(audit)]
        ratios = sorted(map(_ratio, bounds))
        limit = bounds[0].clip.limit
        curve = Curve(
            title="Gradients before the clip",
            x_label="step",
            y_label=_what(bounds[0].clip),
            series=(
                Series(
                    name="before clipping",
                    x=tuple(range(len(bounds))),
                    y=tuple(bound.clip.before for bound in bounds),
                ),
            ),
            thresholds={"limit": limit},
            log_y=True,
        )
        typical = ratios[len(ratios) // 2]
        if ratios[0] <= binding:
            return self.passed(
                f"The optimizer's gradient respects the clip of {limit:g}; before it, the median "
                f"gradient is {typical:.2g} times the limit.",
                evidence=(curve,),
            )
        said = (
            f"The clip of {limit:g} shrinks every gradient of {len(bounds)} steps more than "
            f"{binding:g}-fold (median: {typical:.3g}-fold)"
        )
        if all(map(is_scale_free, audit.loop.optimizers)):
            who = ", ".join(sorted({type(each).__name__ for each in audit.loop.optimizers}))
            eps = min(_eps(optimizer) for optimizer in audit.loop.optimizers)
            size = max(_size_left(bound.clip) for bound in bounds)
            if size < 2 * eps:
                return self.warned(
                    f"{said}: what is left, {size:.1g} per element, is not above the eps={eps:g} "
                    f"that {who} adds to its divisor, so the steps shrink.",
                    measured=f"{size:.2g} per element",
                    threshold=f"{2 * eps:g}",
                    evidence=(curve,),
                    location=bounds[0].step.location,
                    fix="clip_grad_norm_(model.parameters(), "
                    f"{_rounded(_typical(bounds))})  # the size of a typical gradient",
                )
            return self.noted(
                f"{said}. With {who} that matters little: its steps do not grow with the gradient.",
                evidence=(curve,),
            )
        moved = _movement(audit.loop, trace)
        stopped = ratios[0] > self.option(audit, "stopping") and moved < self.option(audit, "moved")
        answer = self.failed if stopped else self.warned
        effect = f" A step moves the weights by {moved:.1g} of their size." if stopped else ""
        return answer(
            f"{said}: it acts like a learning rate {typical:.3g} times smaller.{effect}",
            measured=f"gradients {typical:.3g} times the limit",
            threshold=f"at most {binding:g} times",
            evidence=(curve,),
            location=next((b.step.location for b in bounds if b.step.location), None),
            fix="raise the limit to the size of a typical gradient: "
            f"clip_grad_norm_(model.parameters(), {_rounded(_typical(bounds))})",
        )


def _bounds(events: tuple[Event, ...]) -> list[Bound]:
    """Return every clip that a step had to respect."""
    found: list[Bound] = []
    scales: dict[int, tuple[float, bool]] = {}
    unscaled: set[int] = set()
    for event in events:
        if event.kind is EventKind.UNSCALE:
            unscaled.add(event.which)
        elif event.kind is EventKind.CLIP:
            scales[event.which] = (event.scale, event.which in unscaled)
        elif event.kind is EventKind.STEP:
            scale, before = scales.get(event.which, (1.0, True))
            after = not before and event.which in unscaled
            found += [Bound(clip, used, event, scale, after) for clip, used in event.clipped]
            unscaled.discard(event.which)
            scales.pop(event.which, None)
    return found


def _misses(trace: Trace, excess: float) -> list[Miss]:
    """Return the steps that exceed the limit of a clip which got other tensors, if two or more."""
    found: list[Miss] = []
    waiting: Event | None = None
    for event in trace.events:
        if event.kind is EventKind.BACKWARD:
            waiting = None
        elif event.kind is EventKind.CLIP and event.clip is not None:
            waiting = None if event.clip.reaches else event
        elif event.kind is EventKind.STEP and waiting is not None and not event.clipped:
            used = event.norms[event.which] or 0.0
            miss = waiting.clip
            if miss is not None and _escapes(miss, waiting, used, event.which, excess):
                found.append(Miss(miss, used, waiting.location))
    return found if len(found) > 1 else []


def _escapes(clip: Clip, event: Event, used: float, which: int, excess: float) -> bool:
    """Whether the optimizer steps beyond the limit with the gradient that was to be clipped."""
    present = event.norms[which] or 0.0  # of the optimizer's, when the clip was called
    if clip.norm_type != 2.0 and clip.elements:
        return False
    if not math.isfinite(used) or present == 0.0 or used <= excess * clip.limit:
        return False
    return clip.elements == 0 or abs(clip.before - used) <= 0.01 * used


def _miss(clip: Clip) -> tuple[str, str]:
    """Say why the clip misses the optimizer's gradients, and what to write instead."""
    if clip.given == 0:
        return (
            "the clip gets no tensors. A generator (model.parameters(), filter(...)) can be read "
            "once only, so nothing was left after the first call",
            "params = list(model.parameters())  # or clip_grad_norm_(model.parameters(), ...)",
        )
    if clip.elements == 0:
        return (
            "none of the tensors that the clip gets has a gradient",
            "clip_grad_norm_(model.parameters(), ...)  # the parameters, not their gradients",
        )
    return (
        "the clip shrinks a copy of the gradients, of tensors that no optimizer holds",
        "clip_grad_norm_([p for g in optimizer.param_groups for p in g['params']], ...)",
    )


def _eps(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer adds to the size of the gradient that it divides by; 0 if unknown."""
    values = [group.get("eps", 0.0) for group in optimizer.param_groups]
    return max((float(v) for v in values if isinstance(v, (int, float))), default=0.0)


def _size_left(clip: Clip) -> float:
    """Return the root mean square of the elements of a gradient that the clip has shrunk."""
    return clip.limit / math.sqrt(max(clip.elements, 1)) if clip.norm_type == 2.0 else clip.limit


def _movement(loop: Loop, trace: Trace) -> float:
    """Return the median size of a step, relative to the weights; infinite during a warm-up."""
    groups = [group for optimizer in loop.optimizers for group in optimizer.param_groups]
    if any(group["lr"] < 0.5 * group.get("initial_lr", group["lr"]) for group in groups):
        return math.inf
    sizes = []
    for traced in trace.steps:
        seen = traced.step.observation
        moved = [g for g in seen.gradients if g.update_norm is not None] if seen else []
        weights = math.hypot(*(g.weight_norm for g in moved))
        if weights > 0.0:
            sizes.append(math.hypot(*(g.update_norm or 0.0 for g in moved)) / weights)
    return median(sizes) if sizes else math.inf


def _typical(bounds: list[Bound]) -> float:
    return sorted(bound.clip.before for bound in bounds)[len(bounds) // 2]


def _more_bounds(audit: Audit) -> list[Bound]:
    events: list[Event] = []
    with Recorder(audit.loop) as recorder:
        for batch in consecutive_batches(audit.loop, _MORE_STEPS):
            audit.clock.check()
            audit.loop.step(batch)
            events += [without_gradients(event) for event in recorder.take()]
    return _bounds(tuple(events))


def _ratio(bound: Bound) -> float:
    return bound.clip.before / max(bound.clip.limit, 1e-30)


def _what(clip: Clip) -> str:
    return "largest gradient element" if clip.norm_type is None else "gradient norm"


def _rounded(value: float) -> str:
    return f"{value:.1g}" if value < 1.0 else f"{float(f'{value:.1g}'):g}"


def _line_of(trace: Trace) -> Location | None:
    clips = [event for event in trace.events if event.kind is EventKind.CLIP]
    return next((event.location for event in clips if event.location is not None), None)


def _order(loop: Loop, trace: Trace) -> Text:
    text = describe(trace.steps[-1].events, len(loop.optimizers))
    return Text(title="Order of events in one step", text=text)
