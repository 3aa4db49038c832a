"""STEP103: whether gradients accumulated over several batches are averaged."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import without_dropout
from nnaudit.loop.losses import LossCall
from nnaudit.loop.trace import Event, EventKind
from nnaudit.measure.accelerate import Declared, declared_accumulation
from nnaudit.measure.living import living
from nnaudit.probes.step_trace import StepTrace, Trace, TracedStep
from nnaudit.report import Kind, Location, Numbers, Result
from nnaudit.targets import batch as batches
from nnaudit.training.optimizers import is_scale_free

_TOO_LARGE = 1.5

_TWICE = 0.01
"""How far from 1/k a gradient may be that was divided by k twice."""

_UNEVEN = 2.0
"""Batches whose numbers of targets differ by less weigh about the same anyhow."""

_PARTS = 4
"""Fewer parts of a batch, each with a loss of its own, may be domains or tasks."""


@dataclass(frozen=True)
class Accumulation:
    """One optimizer step made of several batches.

    Attributes:
        count: how many backward passes it took.
        scale: the sum of what was back-propagated over the mean of the losses: 1 where divided.
        location: the line of the backward.
        parts: each pass is on a part of the batch, rather than on all of it.
    """

    count: int
    scale: float
    location: Location | None
    parts: bool = False


class AccumulationScale(Check):
    """Is a gradient accumulated over several batches their mean, not their sum?

    Why: k micro-batches stand for one batch k times as large only if each loss is divided by k.
        Otherwise the gradient is k times too large: with SGD that multiplies the learning rate by
        k, with clipping it changes what is clipped, and changing k changes both.
    How: Exact, from a few steps. Accumulation is seen where one optimizer step has k > 1 backward
        passes from the same line, each of the mean-reduced loss of one line. What was
        back-propagated is summed over the k passes (a gradient scaler's factor removed) and divided
        by the mean loss of a row: 1 if the loss was divided by k, k if not. It fails from 1.5 on.
        - The passes must each be on the whole batch that the loop was given (here the same batch k
          times, so without dropout the k losses must be equal), or on parts of it that make up the
          whole in order: four or more, of two rows or more. Two or three parts may be domains with
          a loss each.
        - An optimizer that divides by the gradient's size, like Adam, hides the factor; the message
          says so.
        - Warns where it is transformers' Trainer that leaves the division to a model which does not
          divide.
        - Where a step takes several batches and zero_grad() comes before each of their backward
          passes, from one line, it fails: only the last batch counts. Several passes over one batch
          of which the last counts, as for adversarial examples, are not accumulated.
        - Warns when every batch of an accumulated step weighs the same, as a mean over the targets
          that count (not `ignore_index`), while the batches seen have numbers of them that differ
          by more than 2 times: targets in short rows weigh more than those in long ones.
        - Fails when accelerate was told to accumulate (`gradient_accumulation_steps` above 1), and
          yet each step has one backward pass: the optimizer was not prepared, or no `accumulate()`
          is around the step. accelerate has divided each loss for nothing.
        - Warns when accelerate accumulates k batches and the gradient is 1/k of their mean, to
          within 1%: the program divides each loss by k, as accelerate does. A loss may have such a
          weight.
        - Several different losses, sums, and losses per token are not judged. With several
          optimizers nothing is accumulated where no line goes back twice before one of them steps.
    Fix: (loss / accumulation_steps).backward(); optimizer.zero_grad() after optimizer.step() only
    References: Hugging Face Accelerate documentation, "Performing gradient accumulation".
    """

    code, name, kind = "STEP103", "accumulation-scale", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (StepTrace,)

    def run(self, audit: Audit) -> Result:
        """Compare what was back-propagated with the losses."""
        trace = audit.probe(StepTrace)
        single = len(audit.loop.optimizers) == 1
        several = [step for step in trace.steps if len(_outside_closures(step)) > 1]
        declared = declared_accumulation(audit.loop)
        if declared is not None and not several and trace.own_loop():
            return self._not_in_effect(audit, trace, declared)
        if len(several) < len(trace.steps):
            return self.skipped("Nothing is accumulated: one backward pass per optimizer step.")
        if single and all(map(_discards, trace.steps)):
            return self._discarded(audit, trace)
        if (why := _why_nothing(several, single=single)) is not None:
            return self.skipped(f"Nothing is accumulated: {why}.")
        found = [
            _accumulation(audit.loop, step, batch)
            for step, batch in zip(trace.steps, trace.batches, strict=True)
        ]
        known = [each for each in found if each is not None]
        if declared is not None and _are_divided_twice(known, found, declared.count):
            return self._divided_twice(audit, known[0], declared.count)
        return self._known(audit, trace, known)

    def _not_in_effect(self, audit: Audit, trace: Trace, declared: Declared) -> Result:
        steps = [event for event in trace.events if event.kind is EventKind.STEP]
        why, fix = (
            (
                "no accumulate() is around the step",
                "with accelerator.accumulate(model): around forward, backward and step",
            )
            if declared.prepared
            else (
                "the optimizer was not given to accelerator.prepare()",
                "model, optimizer, loader = accelerator.prepare(model, optimizer, loader)",
            )
        )
        return self.failed(
            f"accelerate is to accumulate {declared.count} batches for a step and divides each "
            f"loss by {declared.count}, but the optimizer steps with every batch: {why}.",
            measured="1 batch per optimizer step",
            threshold=f"{declared.count} batches",
            location=steps[0].location or audit.loop.locate("optimizer"),
            fix=fix,
        )

    def _divided_twice(self, audit: Audit, seen: Accumulation, count: int) -> Result:
        return self.warned(
            f"accelerate divides each of the {count} losses of a step by {count}, and the program "
            f"seems to do so, too: the gradient is {seen.scale:.3g} times their mean.",
            measured=f"{seen.scale:.3g} times the mean gradient",
            threshold="once",
            location=seen.location or audit.loop.locate("training_step"),
            fix="accelerator.backward(loss)  # not loss / accumulation_steps",
        )

    def _known(self, audit: Audit, trace: Trace, known: list[Accumulation]) -> Result:
        """Judge what the steps accumulate, where it is known of all of them."""
        uneven = _means_of_means(trace)
        if uneven is not None and not any(each.scale >= _TOO_LARGE for each in known):
            return self._token_means(audit, *uneven)
        if len(known) < len(trace.steps):
            return self.inconclusive(
                "Not judged: a step has several backward passes, but they could not be shown to be "
                "of one mean-reduced loss over several batches."
            )
        whole = not known[0].parts
        if whole and known[0].scale >= _TOO_LARGE and not _repeats(audit.loop, trace.batches[0]):
            return self.inconclusive(
                "Not judged: the backward passes of a step compute different losses of the same "
                "batch, which may be several views of it rather than several batches."
            )
        clipped = any(step.of(EventKind.CLIP) for step in trace.steps)
        return self._judge(audit, known, clipped=clipped)

    def _token_means(self, audit: Audit, fewest: int, most: int, place: Location | None) -> Result:
        return self.warned(
            "Each step averages the mean losses of several batches, and these have from "
            f"{fewest:,} to {most:,} targets that count: a target in the smallest weighs "
            f"{most / fewest:.1f} times as much as one in the largest.",
            measured=f"{most / fewest:.1f} times",
            threshold=f"{_UNEVEN:g} times",
            location=place or audit.loop.locate("training_step"),
            fix="loss = F.cross_entropy(..., reduction='sum') / tokens  # of all batches of the "
            "step together",
        )

    def _discarded(self, audit: Audit, trace: Trace) -> Result:
        step = trace.steps[-1]
        taken = step.step.handed
        zeroing = step.of(EventKind.ZERO)[-1]
        return self.failed(
            f"Each step takes {taken} batches, but the gradients are zeroed before each of their "
            f"backward passes: those of {taken - 1} are thrown away.",
            measured=f"1 of {taken} batches counts",
            threshold="all of them",
            location=zeroing.location or audit.loop.locate("training_step"),
            fix="call optimizer.zero_grad() right after optimizer.step(), not for every batch",
        )

    def _judge(self, audit: Audit, found: list[Accumulation], *, clipped: bool) -> Result:
        scale, count = min(each.scale for each in found), found[0].count
        numbers = Numbers(
            title="Accumulation",
            values={"backward passes per step": count, "gradient, relative to the mean": scale},
        )
        if scale < _TOO_LARGE:
            return self.passed(
                f"The accumulated gradient of {count} backward passes is {scale:.3g} times their "
                "mean.",
                evidence=(numbers,),
            )
        said = (
            f"Each step sums the gradients of {count} batches without dividing: the gradient is "
            f"{scale:.3g} times their mean"
        )
        details = {
            "measured": f"{scale:.3g} times the mean gradient",
            "threshold": f"below {_TOO_LARGE:g} times",
            "evidence": (numbers,),
            "location": found[0].location or audit.loop.locate("training_step"),
            "fix": f"(loss / {count}).backward()",
        }
        if _left_to_model(audit.loop):
            return self.warned(
                f"{said}: transformers' Trainer leaves the division to a model whose forward takes "
                f"**kwargs, and {type(audit.loop.model).__name__} does not divide. Clipping and "
                "the logged loss depend on it.",
                **{**details, "fix": "model.accepts_loss_kwargs = False  # the Trainer divides"},
            )
        if all(map(is_scale_free, audit.loop.optimizers)) and not clipped:
            names = sorted({type(optimizer).__name__ for optimizer in audit.loop.optimizers})
            said += (
                f". {', '.join(names)} divides by the gradient's size and hides this; gradient "
                "clipping or another optimizer would not"
            )
        return self.failed(f"{said}.", **details)


def _are_divided_twice(
    known: list[Accumulation], found: list[Accumulation | None], count: int
) -> bool:
    """Whether all steps have the mean of ``count`` losses once more divided by ``count``."""
    whole = len(known) == len(found) and all(each.count == count for each in known)
    return whole and all(abs(each.scale * count - 1.0) < _TWICE for each in known)


def _means_of_means(trace: Trace) -> tuple[int, int, Location | None] | None:
    """Return the fewest and most targets that count in a batch, where each batch weighs the same.

    None where they are alike, where all targets count, or where batches do not weigh the same.
    """
    counts: list[int] = []
    factors: list[float] = []
    place = None
    each: list[float] = []  # by row: the last batch of an epoch may have fewer of them
    for batch, step in zip(trace.batches, trace.steps, strict=True):
        passes, seen = step.of(EventKind.BACKWARD), step.step.observation
        calls = seen.loss_calls if seen is not None else []
        if step.step.handed < 2 or len(passes) != len(calls) or not _are_one_loop(passes, calls):
            return None
        call, root = calls[0], passes[0].root
        value = float(call.value) if call.value is not None and call.value.numel() == 1 else 0.0
        ignored = call.arguments.get("ignore_index")
        if not isinstance(ignored, int) or root is None or value == 0.0:
            return None
        counts.append(int((call.target != ignored).sum()))
        each.append(counts[-1] / max(batches.size(batch), 1))
        factors.append(root / passes[0].scale / value)
        place = passes[0].location
    same = max(factors) <= 1.01 * min(factors)
    uneven = min(counts) > 0 and max(each) > _UNEVEN * min(each)
    return (min(counts), max(counts), place) if same and uneven else None


def _left_to_model(loop: Loop) -> bool:
    """Whether transformers' Trainer drives ``loop`` and has not divided, for the model is to do so.

    The Trainer assumes that a model whose forward has ``**kwargs`` divides by
    ``num_items_in_batch``. Those of transformers that classify sequences do not (seen in 5.24):
    that is the library's doing, and no fault of a program that asks it to accumulate.
    """
    kind = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    return kind is not None and any(
        each.model is loop.model and getattr(each, "model_accepts_loss_kwargs", False)
        for each in living(kind)
    )


def _repeats(loop: Loop, batch: object) -> bool:
    """Whether all passes of a step compute the same loss of the same rows."""
    with ExitStack() as stack:
        for model in loop.models:
            stack.enter_context(without_dropout(model))
        seen = loop.step(batch, observe=True).observation
    values = [float(c.value) for c in seen.loss_calls if c.value is not None] if seen else []
    return bool(values) and all(math.isclose(v, values[0], rel_tol=1e-4) for v in values)


def _passes_of(step: TracedStep) -> list[Event]:
    """Return the backward passes whose gradients the optimizer steps by.

    Gradients zeroed before it, as after the passes that make adversarial examples, do not count.
    """
    until = [i for i, event in enumerate(step.events) if event.kind is EventKind.STEP][-1:]
    before = step.events[: until[0]] if until else step.events
    zeroed = [i for i, event in enumerate(before) if event.kind is EventKind.ZERO][-1:]
    last = before[zeroed[0] :] if zeroed else before
    passes = [event for event in last if event.kind is EventKind.BACKWARD and event.within < 0]
    return passes or step.of(EventKind.BACKWARD)


def _why_nothing(several: list[TracedStep], *, single: bool) -> str | None:
    """Return why steps of several backward passes accumulate nothing; None where they may."""
    if single and any(len(_passes_of(step)) == 1 for step in several):
        return "the gradients of all backward passes but one are zeroed before the optimizer step"
    if not single and all(map(_are_one_pass_each, several)):
        return "no line calls backward() twice before an optimizer steps"
    return None


def _are_one_pass_each(step: TracedStep) -> bool:
    """Whether the passes of one batch, as of generator and discriminator, are different losses.

    They are where no line goes back twice before one of the optimizers steps.
    """
    lines: list[Location | None] = []
    for event in step.events:
        if event.kind is EventKind.STEP:
            lines.clear()
        elif event.kind is EventKind.BACKWARD:
            if event.location is None or event.location in lines:
                return False
            lines.append(event.location)
    return step.step.handed < 2


def _discards(step: TracedStep) -> bool:
    """Whether ``step`` takes several batches, goes back from each, and uses the last alone."""
    passes = _outside_closures(step)
    if step.step.handed < 2 or len(passes) != step.step.handed:
        return False
    lines = {event.location for event in passes}
    kinds = [event.kind for event in step.events]
    first = kinds.index(EventKind.BACKWARD)
    last = len(kinds) - 1 - kinds[::-1].index(EventKind.BACKWARD)
    between = kinds[first:last]
    zeroed, stepped = between.count(EventKind.ZERO), EventKind.STEP in between
    return len(lines) == 1 and zeroed >= len(passes) - 1 and not stepped


def _outside_closures(step: TracedStep) -> list[Event]:
    return [event for event in step.of(EventKind.BACKWARD) if event.within < 0]


def _accumulation(loop: Loop, step: TracedStep, batch: object) -> Accumulation | None:
    """Return what the step accumulates; None where it is not surely accumulation."""
    passes = step.of(EventKind.BACKWARD)
    seen = step.step.observation
    if seen is None or len(step.of(EventKind.STEP)) != 1 or len(loop.optimizers) != 1:
        return None
    calls = seen.loss_calls
    if len(calls) != len(passes) or not _are_one_loop(passes, calls):
        return None
    target = _target(loop, batch)
    parts = _are_parts(target, calls)
    if not parts and not all(_is_whole(target, call) for call in calls):
        return None
    ratios = []
    for event, call in zip(passes, calls, strict=True):
        value = float(call.value) if call.value is not None and call.value.numel() == 1 else 0.0
        if event.root is None or value == 0.0 or not math.isfinite(value):
            return None
        ratios.append(event.root / event.scale / value)
    if max(ratios) > 1.05 * min(ratios):
        return None
    return Accumulation(len(passes), sum(ratios), passes[0].location, parts)


def _are_one_loop(passes: list[Event], calls: list[LossCall]) -> bool:
    """Whether all passes come from one line, with losses of one line that are means."""
    lines = {event.location for event in passes}
    losses = {(call.kind, call.location) for call in calls}
    means = all(call.reduction == "mean" for call in calls)
    return len(lines) == 1 and len(losses) == 1 and means


def _target(loop: Loop, batch: object) -> Tensor | None:
    try:
        target = loop.split_batch(batch).target
    except UserCodeError:
        return None
    return target.detach().cpu() if isinstance(target, Tensor) and batches.size(batch) else None


def _is_whole(target: Tensor | None, call: LossCall) -> bool:
    """Whether the loss is of every row of the batch, and of its very targets."""
    given = call.arguments.get("target")
    if target is None or not isinstance(given, Tensor):
        return False
    if call.input.shape[:1] != given.shape[:1]:
        return False
    return _equal(target, given)


def _are_parts(target: Tensor | None, calls: list[LossCall]) -> bool:
    """Whether the losses are of consecutive parts of the batch, enough of them and large enough."""
    given = [call.arguments.get("target") for call in calls]
    tensors = [each for each in given if isinstance(each, Tensor) and each.ndim]
    if target is None or len(tensors) < max(len(calls), _PARTS):
        return False
    if min(len(each) for each in tensors) < 2 or len({each.shape[1:] for each in tensors}) > 1:
        return False
    return _equal(target, torch.cat(tensors))


def _equal(target: Tensor, given: Tensor) -> bool:
    flat, other = target.flatten(), given.detach().cpu().flatten()
    return flat.shape == other.shape and bool(torch.equal(flat.to(other.dtype), other))
