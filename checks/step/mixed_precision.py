"""STEP106: whether mixed precision loses gradients or steps, or has no effect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.trace import Event, EventKind, Recorder
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.precision import LOW, Precision, PrecisionUse, underflow
from nnaudit.probes.step_trace import StepTrace, Trace
from nnaudit.report import Kind, Location, Numbers, Result

_SETTLE, _WATCH = 20, 40
"""A gradient scaler starts too high and finds its factor by skipping steps: within about 20."""

_LEAST = 2
_WHOLE = 0.99


@dataclass(frozen=True)
class Misscaled:
    """Gradients that a scaler multiplied and nothing divides, or the other way round.

    Attributes:
        divided: they are divided, and their loss was not multiplied.
        factor: by how much.
        steps: how many steps were seen, all of them such.
        location: the line of the first such backward pass, or step.
    """

    divided: bool
    factor: float
    steps: int
    location: Location | None


class MixedPrecision(Check):
    """Does training in low precision keep its gradients and its steps?

    Why: Float16 has no values between 0 and 6e-8: small gradients become zero unless the loss is
        multiplied first, which is the gradient scaler's job. A scaler whose gradients keep
        overflowing skips step after step. An autocast region around the wrong lines has no effect,
        and nobody notices.
    How: The dtype of every layer's output that gradients flow through is read in one step.
        - Float16 without a gradient scaler: the step is repeated with the loss multiplied by 2^10.
          Gradient elements that are zero without that and not with it were lost (underflow). More
          than the option `lost` on two different batches fails, less is a warning.
        - With a scaler: skipped steps are counted. The first 20 do not count, while the scaler
          finds its factor from 2^16 down. Of the next 40 a healthy run skips about 1 in 2,000; a
          share above the option `skipped` (by chance below 1e-20), repeated in 40 further steps on
          new batches, fails.
        - One backward pass of several starts from a loss that the scaler has not multiplied (its
          graph has no result of `scaler.scale`), and its gradient is divided by the scaler's factor
          all the same: exact, and fails when every step of an optimizer, two at least, has
          such a pass and the factor is not 1. A pass that leaves this optimizer's gradients as they
          were, or whose gradients are zeroed before the step, does not count.
        - An optimizer steps with the gradients of a multiplied loss that nothing has divided:
          `optimizer.step()` for `scaler.step(optimizer)`. Exact; fails when every step seen is such
          a one and the gradient at the step is still as large as backward left it, or as a clip of
          its norm did, so that a division by hand passes.
        - Autocast is entered, but every layer that it would run in low precision (linear,
          convolution, recurrent, attention) still computes in float32: a warning.
    Fix: use torch.autocast(device_type, dtype=torch.bfloat16), which needs no scaler, or a
        torch.amp.GradScaler().
    References: Micikevicius et al., "Mixed Precision Training" (2018); PyTorch documentation,
        "Automatic Mixed Precision examples".
    """

    code, name, kind = "STEP106", "mixed-precision", Kind.STATISTICAL
    needs = (Needs.OWN_STEPS,)
    probes = (PrecisionUse, StepTrace)
    consequence_of = ("GRAD106",)
    options: ClassVar[dict[str, float]] = {"lost": 0.05, "skipped": 0.2}

    def run(self, audit: Audit) -> Result:
        """Ask the three questions as far as they apply."""
        used, trace = audit.probe(PrecisionUse), audit.probe(StepTrace)
        attempts = [event for event in trace.events if event.kind is EventKind.ATTEMPT]
        scaled = bool(attempts) or any(event.scale != 1.0 for event in trace.events)
        if (used.half or used.half_parameters) and not scaled:
            return self._unscaled(audit, used)
        if (misscaled := _misscaled(trace)) is not None:
            return self._misuses(audit, misscaled)
        if used.autocasts and used.layers and not any(d in LOW for d in used.layers.values()):
            return self._covers_nothing(audit, used)
        if attempts:
            return self._skipping(audit)
        if used.autocasts or any(dtype in LOW for dtype in used.layers.values()):
            names = ", ".join(sorted(_named(d) for d in {*used.layers.values(), *used.autocasts}))
            return self.passed(f"Layers compute in {names}, which needs no gradient scaler.")
        return self.skipped("The training runs in full precision.")

    def _unscaled(self, audit: Audit, used: Precision) -> Result:
        limit = self.option(audit, "lost")
        shares: list[float] = []
        for batch in consecutive_batches(audit.loop, 2):
            audit.clock.check()
            share = underflow(audit, batch)
            shares += [share] if share is not None else []
            if share is not None and share <= limit:
                break
        where = f"{len(used.half)} modules" if used.half else f"{used.half_parameters} parameters"
        said = f"Gradients flow through {where} in float16 without a gradient scaler"
        details: dict[str, Any] = {
            "threshold": f"at most {100 * limit:.0f}% on two batches",
            "location": audit.loop.locate("training_step") or audit.loop.locate("model"),
            "module": used.half[0] if used.half else "",
            "fix": "use dtype=torch.bfloat16; or scaler = torch.amp.GradScaler(), then "
            "scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()",
        }
        if len(shares) > 1 and min(shares) > limit:
            return self.failed(
                f"{said}: {100 * min(shares):.1f}% of the gradient's elements become zero, because "
                "they are too small for float16.",
                measured=f"{100 * min(shares):.1f}% of the gradient lost",
                evidence=(_lost(shares),),
                **details,
            )
        if not shares:
            return self.warned(f"{said}, so small gradients may become zero.", **details)
        return self.warned(
            f"{said}: {100 * min(shares):.2g}% of the gradient's elements become zero at the "
            "start, and more will as gradients shrink.",
            measured=f"{100 * min(shares):.2g}% of the gradient lost",
            evidence=(_lost(shares),),
            **details,
        )

    def _misuses(self, audit: Audit, seen: Misscaled) -> Result:
        factor = f"{seen.factor:,.0f}"
        if seen.divided:
            said = (
                f"The gradient of one loss is {factor} times too small in all {seen.steps} steps "
                "seen: backward starts from a loss that the gradient scaler has not multiplied, "
                "and the scaler divides its gradient all the same."
            )
            fix = "scaler.scale(loss).backward() for every loss"
        else:
            said = (
                f"The optimizer's gradient is {factor} times too large in all {seen.steps} steps "
                "seen, before any clipping: the gradient scaler has multiplied the loss, and "
                "nothing divides the gradient before the step."
            )
            fix = "scaler.step(optimizer); scaler.update() in the place of optimizer.step()"
        return self.failed(
            said,
            measured=f"gradient {'divided' if seen.divided else 'multiplied'} by {factor}",
            threshold="multiplied before backward, divided before the step",
            location=seen.location or audit.loop.locate("training_step"),
            fix=fix,
        )

    def _covers_nothing(self, audit: Audit, used: Precision) -> Result:
        dtypes = ", ".join(sorted(map(_named, used.autocasts)))
        return self.warned(
            f"Autocast to {dtypes} has no effect: none of {len(used.layers)} layers that it could "
            "speed up computes within it.",
            measured="0 layers in low precision",
            threshold="the model's forward pass within autocast",
            location=audit.loop.locate("training_step"),
            fix="call the model within the region: with torch.autocast(device_type): output = "
            "model(x); loss = loss_fn(output, y)",
        )

    def _skipping(self, audit: Audit) -> Result:
        limit = self.option(audit, "skipped")
        with Recorder(audit.loop) as recorder:
            _walk(audit, _SETTLE)
            recorder.take()
            counts = []
            for _ in range(2):
                _walk(audit, _WATCH)
                tried = [e for e in recorder.take() if e.kind is EventKind.ATTEMPT]
                counts.append((sum(event.skipped for event in tried), max(len(tried), 1)))
                if counts[-1][0] <= limit * counts[-1][1]:
                    break
        skipped, tried_all = (sum(part) for part in zip(*counts, strict=True))
        numbers = Numbers(
            title="Steps of the gradient scaler",
            values={"tried": tried_all, "skipped": skipped, "before, not counted": _SETTLE},
        )
        if len(counts) == 2 and all(s > limit * n for s, n in counts):
            return self.failed(
                f"The gradient scaler skipped {skipped} of {tried_all} steps after the first "
                f"{_SETTLE}: gradients keep overflowing, whatever its factor.",
                measured=f"{100 * skipped / tried_all:.0f}% of steps skipped",
                threshold=f"at most {100 * limit:.0f}%",
                evidence=(numbers,),
                location=audit.loop.locate("training_step"),
                fix="compute what overflows (norms, exponentials, the loss) in float32, or use "
                "bfloat16",
            )
        return self.passed(
            f"The gradient scaler skipped {skipped} of {tried_all} steps after the first "
            f"{_SETTLE}.",
            evidence=(numbers,),
        )


def _misscaled(trace: Trace) -> Misscaled | None:
    """Return what every step of some optimizer has: see the check's text."""
    optimizers = range(len(trace.events[0].norms)) if trace.events else range(0)
    for which in optimizers:
        for divided, found in (
            (True, _divided_raw(trace, which)),
            (False, _undivided(trace, which)),
        ):
            if len(found) >= _LEAST and (first := found[0]) is not None and None not in found:
                return Misscaled(divided, first.scale, len(found), first.location)
    return None


def _divided_raw(trace: Trace, which: int) -> list[Event | None]:
    """Return, for every step that the scaler takes, the backward pass that was not multiplied.

    None for one without such a pass. The pass is given the factor by which it is divided.
    """
    found: list[Event | None] = []
    raw: Event | None = None
    before: float | None = None
    for event in trace.events:
        if event.kind is EventKind.ZERO and event.which in (which, -1):
            raw = None
        elif event.kind is EventKind.BACKWARD and event.raw and event.norms[which] != before:
            raw = raw or event
        elif event.kind is EventKind.ATTEMPT and event.which == which:
            counts = raw is not None and event.scale != 1.0
            found.append(replace(raw, scale=event.scale) if raw is not None and counts else None)
            raw = None
        before = event.norms[which]
    return found


def _undivided(trace: Trace, which: int) -> list[Event | None]:
    """Return, for every step of the optimizer, itself where its gradient is still multiplied."""
    found: list[Event | None] = []
    made: Event | None = None
    limit = math.inf
    for event in trace.events:
        norm = event.norms[which]
        if event.kind is EventKind.BACKWARD:
            limit = math.inf
            made = None if event.raw or event.scale == 1.0 or event.within >= 0 else event
        elif event.kind is EventKind.UNSCALE and event.which in (which, -1):
            made = None
        elif event.kind is EventKind.CLIP and event.which == which and event.clip is not None:
            # What is clipped while it is still multiplied has the clip's size at the step.
            limit = min(limit, event.clip.limit if event.clip.norm_type == 2.0 else 0.0)
        elif event.kind is EventKind.STEP and event.which == which:
            left = made.norms[which] if made is not None else None
            left = min(left, limit) if left is not None else None
            whole = left is not None and norm is not None and norm >= _WHOLE * left > 0.0
            scale = made.scale if made is not None else 1.0
            found.append(replace(event, scale=scale) if whole else None)
        elif event.kind is EventKind.ATTEMPT and event.which == which and found:
            found[-1] = None  # a fused optimizer is given the factor, and divides by itself
    return found


def _walk(audit: Audit, steps: int) -> None:
    for batch in consecutive_batches(audit.loop, steps):
        audit.clock.check()
        audit.loop.step(batch)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _lost(shares: list[float]) -> Numbers:
    return Numbers(
        title="Gradient elements lost to float16",
        values={f"batch {i}": f"{100 * share:.2g}%" for i, share in enumerate(shares, start=1)},
    )
