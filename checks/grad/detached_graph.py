"""GRAD107: whether the graph from the loss to the parameters is complete."""

from __future__ import annotations

from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.drawn_samples import DrawnSample, DrawnSamples
from nnaudit.probes.gradient_reach import Block, GradientReach, Reach
from nnaudit.probes.recurrent_states import RecurrentStates, Unrolled
from nnaudit.probes.step_trace import ZEROED, StepTrace, zeroed_before_use
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import attribute, count, verb

_FEWEST_CUT = 3
"""Detached states that are no accident of a first or last step."""


class DetachedGraph(Check):
    """Is every parameter that affects the loss connected to it by the graph?

    Why: `.detach()`, `.data`, `.item()`, `torch.no_grad()`, a round trip through NumPy,
        `torch.tensor(x)` and rounding cut the autograd graph. Everything before the cut keeps its
        initial weights, while the rest trains on random features and the loss goes down.
    How: Takes each block of trained parameters whose gradient is None or exactly zero (as measured
        for GRAD101), and recomputes the loss with the block perturbed by 0.1% of its size in 5
        random directions (by 30% where there is no graph and nothing changes), from the same state
        with the same random numbers. Fails when the loss changes in most directions, beyond 10
        times the difference of two identical runs (gradient None) or 64 roundings (zero): the block
        affects the loss while autograd says that it cannot.
        - Only parameters that an optimizer holds count, and not those that the program updates
          itself: target networks, momentum encoders, codebooks.
        - Warns where the block seems frozen by design: it is in eval mode during training; its
          weights equal those of another part (a target network); they are loaded, since another
          seed gives the same ones and redraws the rest; or, where the run cannot be repeated, it is
          called without gradients.
        - Warns when a recurrent layer of torch's is called step by step and is given its own last
          state without the graph, in 3 calls or more before the first backward pass and in most of
          them: the weights that carry the state see one step back. Detaching between batches, or
          after each backward pass, is truncated backpropagation and passes.
        - Warns where a network is given what `sample()` has drawn from a normal distribution with a
          trained mean or scale, and no `log_prob` of that distribution is computed in the step, as
          the score function estimator (REINFORCE) does.
        - A stop-gradient or straight-through estimator leaves a gradient on its other path, so a
          cut of one of several paths is not found.
    Fix: Remove the `detach`, `.data`, `.item()`, NumPy or `no_grad` between the block and the loss.
        If the block is frozen by design: `block.requires_grad_(False)`.
    References: PyTorch documentation, "Autograd mechanics" and Tensor.detach; Bengio et al.,
        "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """

    code, name, kind = "GRAD107", "detached-graph", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (GradientReach, StepTrace, RecurrentStates, DrawnSamples)
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
        if (finding := self._one_path(audit)) is not None:
            return finding
        if not reach.parameters:
            return self.skipped("No optimizer trains a parameter of the model.")
        without = sum(len(block.parameters) for block in reach.blocks)
        return self.passed(
            "Every parameter that affects the loss gets a gradient."
            if not without
            else f"The {count(without, 'parameter tensor')} without a gradient "
            f"{verb(without, 'do', 'does')} not affect the loss.",
            measured=f"{reach.reached} of {reach.parameters} parameters get a gradient",
        )

    def _one_path(self, audit: Audit) -> Result | None:
        """Look for cuts of one path of several, of which the gradients themselves tell nothing."""
        for layer in audit.probe(RecurrentStates):
            if layer.cut >= _FEWEST_CUT and layer.cut > layer.calls / 2:
                return self._one_step_back(audit, layer)
        for sample in audit.probe(DrawnSamples):
            return self._drawn(sample)
        return None

    def _one_step_back(self, audit: Audit, layer: Unrolled) -> Result:
        modules = dict(audit.loop.model.named_modules())
        return self.warned(
            f"{layer.name or 'The network'} is called {layer.calls} times before backward(), and "
            f"in {layer.cut} of them it is given the state that it returned last, without its "
            "graph: what it must remember for more than one step is not learnt.",
            measured=f"{layer.cut} of {layer.calls} states detached",
            threshold=f"fewer than {_FEWEST_CUT}",
            module=layer.name,
            location=audit.loop.locate(modules.get(layer.name, audit.loop.model))
            or audit.loop.locate("model"),
            fix="detach the state once per batch, before the first step, and not between steps",
        )

    def _drawn(self, sample: DrawnSample) -> Result:
        return self.warned(
            f"{sample.module} is given a sample that sample() has drawn without the graph, of a "
            "distribution whose parameters are trained: the gradient does not reach them through "
            "it.",
            measured="sample(), and no log_prob() of that distribution",
            threshold="rsample(), or the score function estimator",
            location=sample.location,
            fix="z = distribution.rsample()",
        )

    def _severed(self, audit: Audit, reach: Reach) -> Result:
        where = reach.severed.location if reach.severed is not None else None
        return self.failed(
            "The loss is not connected to any parameter: backward() finds no graph.",
            fix="Compute the loss from the model's output with torch functions, without detach, "
            "item, NumPy, torch.tensor or no_grad in between.",
            measured="0 parameters connected to the loss",
            threshold="all that affect it",
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
            f"Changing {names}{more} changes the loss, but its gradient {kind} in all "
            f"{reach.steps} steps"
        )
        details: dict[str, Any] = {
            "measured": f"{sum(len(b.parameters) for b in cut)} parameter tensors affect the loss "
            "without a gradient",
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
                f"{what}; it seems frozen by design, as {first.intended}, but the optimizer holds "
                "it.",
                fix=f"To freeze it: {attribute(f'model.{first.name}')}.requires_grad_(False). To "
                "train it: remove the no_grad or detach.",
                **details,
            )
        return self.failed(
            f"{what}: the graph is cut in between.",
            fix="Remove the detach, .data, .item(), NumPy or no_grad between this part and the "
            "loss; to freeze it by design, call requires_grad_(False).",
            **details,
        )


def _table(cut: list[Block]) -> Table:
    return Table(
        title="Parts cut off from the loss",
        columns=("block", "type", "tensors", "gradient", "signs of being frozen by design"),
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
