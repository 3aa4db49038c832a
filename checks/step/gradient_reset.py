"""STEP102: whether gradients are zeroed between steps, and not before the optimizer uses them."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.trace import Event, EventKind
from nnaudit.probes.step_replay import Remainder, StepReplay
from nnaudit.probes.step_trace import StepTrace, Trace, describe, zeroed_before_use
from nnaudit.report import Kind, Location, Result, Table, Text
from nnaudit.wording import count, verb


class GradientReset(Check):
    """Does each optimizer step use the gradient of its own batches, and only that?

    Why: PyTorch adds to .grad and never clears it. Without zero_grad every step uses the sum of
        all gradients since the start: its direction is stale and its size grows with every batch.
        With zero_grad between backward and step the optimizer gets no gradient, and only weight
        decay is left. Neither raises an error, and the loss may even fall for a while.
    How: Exact. After a step's last use of a parameter its .grad is overwritten with random numbers
        four times its size, and the step is repeated on the same batch, from the same weights, with
        the same random numbers and no dropout; then again with the sign of the numbers flipped. A
        program that zeroes gradients, wherever it does so, gives the same gradient both times. It
        fails when the gradient changes by more than half its size along those numbers (cosine above
        0.9; two equal steps differ by at most a tenth of that).
        - Accumulation over several batches before a step passes.
        - It also fails when gradients that backward made are None or zero at the optimizer's step,
          in every step seen: they were zeroed in between.
        - It also fails when an optimizer that calls a closure several times in one step (LBFGS)
          finds, in every call but the first of every step seen, gradients that were made at other
          weights and adds to them: zero_grad is called outside the closure, so only the first
          gradient and the first loss are of one point.
        - It warns when in every step seen the program itself moves all weights between two backward
          passes, as sharpness-aware minimisation does, and the second adds to the gradients of the
          first. A method may want both.
    Fix: call optimizer.zero_grad() once per optimizer step, before loss.backward() or after
        optimizer.step(); with a closure, inside it, first.
    References: PyTorch documentation, torch.optim.Optimizer.zero_grad.
    """

    code, name, kind = "STEP102", "gradient-reset", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (StepTrace, StepReplay)

    def run(self, audit: Audit) -> Result:
        """Look for gradients zeroed too early, then for ones that are never zeroed."""
        trace = audit.probe(StepTrace)
        zeroed = zeroed_before_use(trace)
        if zeroed:
            return self._zeroed_early(audit, trace, zeroed)
        if (mixed := self._mixed(audit, trace)) is not None:
            return mixed
        remainders = audit.probe(StepReplay)
        kept = [each for each in remainders if each.kept]
        if kept:
            return self._never_zeroed(audit, trace, remainders, kept)
        if not remainders:
            return self.inconclusive(
                "Not judged: no parameter had a gradient that could be replaced."
            )
        noisy = [each for each in remainders if each.noise > 0.5]
        if len(noisy) > len(remainders) / 2:
            return self.inconclusive(
                "Not judged: two identical steps from the same weights gave different gradients, "
                "so a change proves nothing."
            )
        return self.passed(
            f"Gradients are zeroed between steps: {count(len(remainders), 'gradient')} did not "
            "depend on what .grad held before."
        )

    def _mixed(self, audit: Audit, trace: Trace) -> Result | None:
        """Return what to say of gradients of several points that are added up."""
        if (mixed := _mixed_by_closure(trace)) is not None:
            return self._mixes(audit, trace, *mixed)
        second = _mixed_by_hand(trace)
        return None if second is None else self._mixes_two_points(audit, trace, second)

    def _zeroed_early(self, audit: Audit, trace: Trace, zeroed: list[Event]) -> Result:
        loop, step = audit.loop, zeroed[0]
        which = f" of optimizer {step.which + 1}" if len(loop.optimizers) > 1 else ""
        return self.failed(
            f"Gradients are zeroed in between backward and the step{which} in all "
            f"{len(trace.steps)} steps seen: the optimizer gets no gradient.",
            measured="no gradient at the step",
            threshold="the gradient of backward",
            evidence=(_order(trace, len(loop.optimizers)),),
            location=_line_of_zero(trace) or step.location or loop.locate("training_step"),
            fix="call optimizer.zero_grad(); loss.backward(); optimizer.step() in this order",
        )

    def _mixes(self, audit: Audit, trace: Trace, first: Event, calls: int, steps: int) -> Result:
        return self.failed(
            f"The closure adds to the gradients of its earlier calls, made at other weights: in "
            f"{calls} of the {calls + steps} calls in {steps} steps they were not zeroed.",
            measured=f"{count(calls, 'call')} onto old gradients",
            threshold="zero_grad in every call of the closure",
            evidence=(_order(trace, len(audit.loop.optimizers)),),
            location=first.location or audit.loop.locate("training_step"),
            fix="call optimizer.zero_grad() inside the closure, before loss.backward()",
        )

    def _mixes_two_points(self, audit: Audit, trace: Trace, second: Event) -> Result:
        return self.warned(
            f"In all {len(trace.steps)} steps seen the program moves the weights after a backward "
            "pass, and the next pass adds to the gradients of the first: the optimizer gets the "
            "sum of the gradients at two points.",
            measured="gradients of two points",
            threshold="the gradient at the second one",
            evidence=(_order(trace, len(audit.loop.optimizers)),),
            location=second.location or audit.loop.locate("training_step"),
            fix="call zero_grad() after the first pass: optimizer.first_step(zero_grad=True)",
        )

    def _never_zeroed(
        self,
        audit: Audit,
        trace: Trace,
        remainders: tuple[Remainder, ...],
        kept: list[Remainder],
    ) -> Result:
        loop = audit.loop
        steps = [event for event in trace.events if event.kind is EventKind.STEP]
        return self.failed(
            f"Gradients accumulate across steps because zero_grad is not called: {len(kept)} of "
            f"{count(len(remainders), 'gradient')} still {verb(len(kept), 'hold')} the previous "
            f"step's ({kept[0].parameter} first).",
            measured=f"{len(kept)} of {count(len(remainders), 'gradient')} not zeroed",
            threshold="all gradients zeroed between steps",
            evidence=(_table(kept), _order(trace, len(loop.optimizers))),
            location=next((e.location for e in steps if e.location is not None), None)
            or loop.locate("training_step"),
            module=kept[0].parameter.rpartition(".")[0],
            modules=tuple({k.parameter.rpartition(".")[0]: None for k in kept}),
            fix="call optimizer.zero_grad() before loss.backward()",
        )


def _mixed_by_closure(trace: Trace) -> tuple[Event, int, int] | None:
    """Return a backward onto gradients of other weights, how many there are, and in how many steps.

    None unless each step of some optimizer's has several, all such but the first.
    """
    found: dict[int, list[list[Event]]] = {}
    for traced in trace.steps:
        made: dict[int, list[Event]] = {}
        for event in traced.of(EventKind.BACKWARD):
            if event.within >= 0:
                made.setdefault(event.within, []).append(event)
        for which, events in made.items():
            found.setdefault(which, []).append(events)
    for steps in found.values():
        later = [event for events in steps for event in events[1:]]
        several = len(steps) > 1 and all(len(events) > 1 for events in steps)
        if several and all(event.stale for event in later):
            return later[0], len(later), len(steps)
    return None


def _mixed_by_hand(trace: Trace) -> Event | None:
    """Return a backward onto gradients of other weights, where each step has one after another.

    The weights are moved in between by the program, not by an optimizer, as in sharpness-aware
    minimisation.
    """
    found = None
    for traced in trace.steps:
        kinds = [event.kind for event in traced.events]
        passes = [event for event in traced.of(EventKind.BACKWARD) if event.within < 0]
        if kinds.count(EventKind.STEP) != 1 or len(passes) < 2 or passes[0].stale:
            return None
        found = next((event for event in passes[1:] if event.stale), None)
        if found is None:
            return None
    return found


def _line_of_zero(trace: Trace) -> Location | None:
    zeros = trace.steps[-1].of(EventKind.ZERO)
    return next((event.location for event in reversed(zeros) if event.location), None)


def _order(trace: Trace, optimizers: int) -> Text:
    return Text(
        title="Order of events in one step", text=describe(trace.steps[-1].events, optimizers)
    )


def _table(kept: list[Remainder]) -> Table:
    return Table(
        title="Gradients that hold the previous step's",
        columns=("parameter", "change / gradient", "cosine"),
        rows=tuple((each.parameter, each.change, each.alignment) for each in kept[:20]),
    )
