"""STEP102: whether each step uses its own batch's gradient, and nothing older or emptier."""

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
        all gradients since the start: the direction becomes stale and the size grows with every
        batch. With zero_grad between backward and step the optimizer gets nothing, and only
        weight decay is left. Neither raises an error, and the loss may even fall for a while.
    How: Exact. After a step's last use of a parameter its .grad is overwritten with random
        numbers four times its size, then the step is repeated on the same batch, at the same
        weights, with the same random numbers, dropout off; then again with the numbers turned
        round. A program that zeroes gradients, wherever it does so, gives the same gradient both
        times. What was not zeroed comes back: the gradient changes by more than half its size
        along those very numbers (cosine above 0.9, against at most a tenth of that change
        between two equal steps). Accumulation over several batches before a step is no
        different. A gradient that a backward made and that is None or zero at the optimizer's
        step, in every step looked at, was zeroed in between.
    Fix: optimizer.zero_grad() once per optimizer step, before backward or after step.
    References: PyTorch documentation, torch.optim.Optimizer.zero_grad.
    """

    code, name, kind = "STEP102", "gradient-reset", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (StepTrace, StepReplay)

    def run(self, audit: Audit) -> Result:
        """Look for gradients that vanished on the way, then for ones that stayed."""
        trace = audit.probe(StepTrace)
        zeroed = zeroed_before_use(trace)
        if zeroed:
            return self._emptied(audit, trace, zeroed)
        remainders = audit.probe(StepReplay)
        kept = [each for each in remainders if each.kept]
        if kept:
            return self._carried(audit, trace, remainders, kept)
        if not remainders:
            return self.inconclusive("No parameter had a gradient that could be looked at.")
        noisy = [each for each in remainders if each.noise > 0.5]
        if len(noisy) > len(remainders) / 2:
            return self.inconclusive(
                "Two equal steps at the same weights gave different gradients, so that a change "
                "shows nothing."
            )
        return self.passed(
            f"What the step before left in .grad is not used: {len(remainders)} gradients are the "
            "same whatever it was."
        )

    def _emptied(self, audit: Audit, trace: Trace, zeroed: list[Event]) -> Result:
        loop, step = audit.loop, zeroed[0]
        which = f" of optimizer {step.which + 1}" if len(loop.optimizers) > 1 else ""
        return self.failed(
            f"In all {len(trace.steps)} steps looked at, backward made gradients and none was left "
            f"when the step{which} was taken: they are zeroed in between.",
            measured="no gradient at the step",
            threshold="the gradient that backward made",
            evidence=(_order(trace, len(loop.optimizers)),),
            location=_line_of_zero(trace) or step.location or loop.locate("training_step"),
            fix="optimizer.zero_grad(); loss.backward(); optimizer.step(), in this order",
        )

    def _carried(
        self,
        audit: Audit,
        trace: Trace,
        remainders: tuple[Remainder, ...],
        kept: list[Remainder],
    ) -> Result:
        loop = audit.loop
        steps = [event for event in trace.events if event.kind is EventKind.STEP]
        return self.failed(
            f"{len(kept)} of {len(remainders)} gradients still "
            f"{verb(len(kept), 'hold')} what the step before left in .grad "
            f"({kept[0].parameter} first): gradients are summed up over all batches, because "
            "zero_grad is not called.",
            measured=f"{len(kept)} of {count(len(remainders), 'gradient')} with a remainder",
            threshold="none",
            evidence=(_table(kept), _order(trace, len(loop.optimizers))),
            location=next((e.location for e in steps if e.location is not None), None)
            or loop.locate("training_step"),
            module=kept[0].parameter.rpartition(".")[0],
            modules=tuple({k.parameter.rpartition(".")[0]: None for k in kept}),
            fix="call optimizer.zero_grad() before loss.backward()",
        )


def _line_of_zero(trace: Trace) -> Location | None:
    zeros = trace.steps[-1].of(EventKind.ZERO)
    return next((event.location for event in reversed(zeros) if event.location), None)


def _order(trace: Trace, optimizers: int) -> Text:
    return Text(
        title="What happens in a step, in order", text=describe(trace.steps[-1].events, optimizers)
    )


def _table(kept: list[Remainder]) -> Table:
    return Table(
        title="Gradients that hold what was left behind",
        columns=("parameter", "change / gradient", "cosine"),
        rows=tuple((each.parameter, each.change, each.alignment) for each in kept[:20]),
    )
