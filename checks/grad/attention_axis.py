"""GRAD110: whether hand-written attention sums over the axis on which its weights sum to one."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.attention import WeightedSum
from nnaudit.loop.base import Needs
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.report import Kind, Result
from nnaudit.wording import count


class AttentionAxis(Check):
    """Does hand-written attention sum over the axis on which its weights sum to one?

    Why: Attention is an average of the values: for each query, the weights of all keys sum to one.
        With the softmax over the queries' axis, over heads or over the batch, they do not: a
        position is counted by how much others do not attend to it, sums grow with the length, and
        in a batch the rows of one example change another's. No shape tells, as queries and keys
        have the same number; the network trains, and stays behind what it could reach.
    How: In the first step, a softmax over a product of two activations (scores, scaled or masked)
        is followed through dropout, transposing and reshaping to the product that its weights are
        used in (matmul, bmm, einsum). So is a softmax that is written out: scores that are divided
        by their own sum over an axis. It warns when that sums over another axis than the softmax
        did.
        - A softmax over an axis of length 1, which makes every weight 1, warns likewise.
        - It is no failure, because attention may be normalised over the queries by design
          (inverted attention). Weights that are divided by their sum once more (slot attention) and
          assignments that a layer makes of one activation (pooling by clusters) are not asked.
    Fix: Take the softmax over the last axis of `q @ k.transpose(-2, -1)`: `scores.softmax(dim=-1)`.
    References: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.1; Locatello et al.,
        "Object-Centric Learning with Slot Attention" (2020).
    """

    code, name, kind = "GRAD110", "attention-axis", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)

    def run(self, audit: Audit) -> Result:
        """Compare the two axes of each sum that was seen."""
        first = audit.probe(FirstSteps)
        seen = first.observations[0].weighted_sums if first.observations else []
        if not seen:
            return self.skipped("No attention that is written out was seen.")
        wrong = [each for each in seen if each.normalised != each.summed]
        alone = [each for each in seen if each.shape[each.normalised] == 1]
        if not wrong and not alone:
            return self.passed(
                f"The weights of {count(len(seen), 'weighted sum')} sum to one over the axis that "
                "is summed."
            )
        found = (wrong or alone)[0]
        dim = found.summed - len(found.shape)
        return self.warned(
            _mismatch(found)
            if wrong
            else f"The softmax of attention weights of shape {found.shape} runs over an axis of "
            "length 1: every weight is 1.",
            measured=f"softmax over axis {found.normalised} of {found.shape}",
            threshold=f"axis {found.summed}, which is summed",
            location=found.location,
            fix=f"torch.softmax(scores, dim={dim})"
            if wrong
            else "take the softmax over the axis of the keys, before it is split off",
        )


def _mismatch(found: WeightedSum) -> str:
    return (
        f"The softmax of attention weights of shape {found.shape} runs over axis "
        f"{found.normalised}, but the values are summed over axis {found.summed}: for one query, "
        "the weights do not sum to one."
    )
