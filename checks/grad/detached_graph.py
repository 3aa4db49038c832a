"""GRAD107: whether the graph from the loss to the parameters is whole."""

from __future__ import annotations

from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.gradient_reach import Block, GradientReach, Reach
from nnaudit.probes.step_trace import ZEROED, StepTrace, zeroed_before_use
from nnaudit.report import Kind, Result, Table


class DetachedGraph(Check):
    """Is every parameter that moves the loss connected to it?

    Why: `.detach()`, `.data`, `.item()`, `torch.no_grad()`, a round trip through numpy, a
        `torch.tensor(x)` and a rounding cut the graph. Everything before the cut keeps its
        initial weights, while the rest trains on random features and the loss goes down.
    How: Exact. For each block of trained parameters whose gradient is None or exactly zero in 10
        steps (GRAD101's measurement), the loss is computed again with the block moved by 0.1 % of
        its size (then by 30 %, where there is no graph and nothing moves), in 5 random
        directions, from the same state with the same random numbers. If the
        loss moves in the majority of directions while autograd says that it cannot, the graph is
        cut. Null hypothesis: the block is not connected, so not one bit of the loss may change
        (None: 10 times the difference of two identical runs, usually 0) or no more than roundings
        (zero: 64 of them). The difference is between something and nothing, so single precision
        suffices, and the user's own loss can be used in place of a copy in double precision. Only
        parameters that an optimizer holds count, and not those that the program updates itself:
        targets, momentum encoders, codebooks by moving average and frozen parts are by design.
        A stop-gradient or a straight-through estimator leaves a gradient on its other path. So a
        cut of one of several paths is not found. A part that is meant to be frozen should say so
        with requires_grad_(False). Where it does not, a purpose is looked for, and makes it a
        warning: the part is in eval mode during training; its weights equal those of another part
        (a target network); they are loaded, since another seed gives the same ones and draws the
        rest anew; or, where the run cannot be started anew, it is called with gradients switched
        off. No more steps than GRAD101's; a forward pass per direction.
    Fix: remove the detach, .data, .item(), numpy or no_grad between the block and the loss; if the
        block is meant to stay as it is: block.requires_grad_(False).
    References: PyTorch documentation, "Autograd mechanics" and Tensor.detach; Bengio et al.,
        "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """

    code, name, kind = "GRAD107", "detached-graph", Kind.EXACT
    needs = (Needs.STEPS,)
    probes = (GradientReach, StepTrace)
    consequence_of = ("STEP102", "STEP106")

    def run(self, audit: Audit) -> Result:
        """Judge the blocks that have no gradient."""
        reach = audit.probe(GradientReach)
        if reach.severed is not None:
            return self._severed(audit, reach)
        cut = [block for block in reach.blocks if block.moves_loss]
        if cut and not reach.reached and zeroed_before_use(audit.probe(StepTrace)):
            return self.inconclusive(ZEROED)
        if cut:
            # What nothing excuses comes first.
            return self._cut(audit, reach, sorted(cut, key=lambda block: bool(block.intended)))
        if not reach.parameters:
            return self.skipped("No optimizer trains a parameter of the model.")
        without = sum(len(block.parameters) for block in reach.blocks)
        return self.passed(
            "Every parameter that moves the loss gets a gradient."
            if not without
            else f"The {without} parameter tensors without gradient do not move the loss.",
            measured=f"{reach.reached} of {reach.parameters} parameters get a gradient",
        )

    def _severed(self, audit: Audit, reach: Reach) -> Result:
        where = reach.severed.location if reach.severed is not None else None
        return self.failed(
            "The loss is not connected to any parameter: the backward pass finds no graph.",
            fix="Compute the loss from the model's output with torch functions, without detach, "
            "item, numpy, torch.tensor or no_grad on the way.",
            measured="0 parameters connected to the loss",
            threshold="all that move it",
            location=where or audit.loop.locate("loss"),
        )

    def _cut(self, audit: Audit, reach: Reach, cut: list[Block]) -> Result:
        first = cut[0]
        names = ", ".join(block.name or "the whole model" for block in cut[:3])
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        kind = "is None" if first.absent else "is exactly zero"
        modules = dict(audit.loop.model.named_modules())
        home = first.name if first.name in modules else first.name.rpartition(".")[0]
        what = (
            f"Moving {names}{more} changes the loss, yet its gradient {kind} in {reach.steps} steps"
        )
        details: dict[str, Any] = {
            "measured": f"{sum(len(b.parameters) for b in cut)} parameter tensors move the loss "
            "and have no gradient",
            "threshold": "0",
            "evidence": (_table(cut),),
            "location": audit.loop.locate(modules.get(home, audit.loop.model))
            or audit.loop.locate(audit.loop.model)
            or audit.loop.locate("model"),
            "module": first.name,
            "modules": tuple(block.name for block in cut),
        }
        if first.intended:
            return self.warned(
                f"{what}; it seems to be frozen on purpose, as {first.intended}, but the optimizer "
                "holds it.",
                fix=f"Say that it is frozen: model.{first.name}.requires_grad_(False); or take "
                "away the no_grad or detach to train it.",
                **details,
            )
        return self.failed(
            f"{what}: the graph is cut between it and the loss.",
            fix="Remove the detach, .data, .item(), numpy or no_grad between this part and the "
            "loss; if it is meant to be frozen, say so with requires_grad_(False).",
            **details,
        )


def _table(cut: list[Block]) -> Table:
    return Table(
        title="Cut off from the loss",
        columns=("block", "type", "tensors", "gradient", "signs of a purpose"),
        rows=tuple(
            (
                block.name or "(model)",
                block.type or "parameter",
                len(block.parameters),
                "None" if block.absent else "exactly zero",
                block.intended or "none",
            )
            for block in cut
        ),
    )
