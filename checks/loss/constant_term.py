"""LOSS107: whether every term of the loss depends on what is trained."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.constant_terms import ConstantTerm, ConstantTerms
from nnaudit.probes.detached_terms import DetachedTerm, DetachedTerms
from nnaudit.report import Kind, Result, Table


class ConstantTermOfLoss(Check):
    """Does every term of the loss depend on the trained parameters?

    Why: A term that compares the teacher's output with itself, a detached output, or a tensor with
        its own copy, adds a number to the loss and nothing to the gradients. The other terms are
        trained, and what this one was written for is not.
    How: Looks in three steps, at the author's full learning rate, for calls of torch's loss
        functions with gradients enabled whose value has no graph in any step, or whose input and
        target are equal in all of them (and not constant). Then repeats the first step from the
        same state with a number added to what the call returned.
        - Fails when the total loss changes but no gradient does, beyond ten times the difference of
          two identical steps: a term of the sum that trains nothing.
        - Looks besides for numbers without a graph among the addends of the total loss. Where one
          follows the parameters, when these are moved by 2% to both sides, and the slope of the
          loss is what autograd says plus that of the addend (to 10%), it fails, too: a penalty on
          `p.data`, an auxiliary loss after `.item()`. A maximum that is taken out of a logarithm
          and put back changes with the parameters, too, but its slope is not lacking.
        - A call that weights or scales other terms changes their gradients; one that is only
          logged, or has weight 0, does not change the loss. Both pass.
    Fix: Compute the term from the output of the trained network, without detach():
        `F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1))`.
    References: PyTorch documentation, "Autograd mechanics".
    """

    code, name, kind = "LOSS107", "constant-term", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.SAME_BATCH)
    probes = (ConstantTerms, DetachedTerms)

    def run(self, audit: Audit) -> Result:
        """Judge the terms that were found to change no gradient."""
        terms, detached = audit.probe(ConstantTerms), audit.probe(DetachedTerms)
        if not terms and detached:
            return self._detached(max(detached, key=lambda term: abs(term.slope)))
        if not terms:
            return self.passed("No term of the loss is a constant for what is trained.")
        first = max(terms, key=lambda term: abs(term.value * term.weight))
        why = (
            "its input and its target hold the same values"
            if first.equal
            else "it is not connected to any parameter"
        )
        return self.failed(
            f"A term of the loss trains nothing: {first.kind} adds "
            f"{first.value * first.weight:.3g} to the loss and nothing to any gradient, because "
            f"{why}.",
            measured="the loss moves with it, and no gradient does",
            threshold="a gradient that moves",
            evidence=(_table(terms),),
            location=first.location,
            fix="Compute the term from the output of the network that is trained, without detach() "
            "or no_grad(), and compare it with something else than itself.",
        )

    def _detached(self, term: DetachedTerm) -> Result:
        return self.failed(
            f"A term of the loss trains nothing: {term.value:.3g} of the loss changes with the "
            "parameters and has no gradient, because it was detached or computed outside of "
            "autograd (.data, .item(), detach(), numpy, no_grad()).",
            measured=f"a slope of {term.slope:.3g} that autograd does not see",
            threshold="the slope of the loss",
            location=term.location,
            fix="Compute the term from the parameters or the output themselves: p.pow(2).sum(), "
            "not p.data.pow(2).sum(), and without .item() or detach().",
        )


def _table(terms: tuple[ConstantTerm, ...]) -> Table:
    return Table(
        title="Terms that are constants",
        columns=("loss", "line", "value", "weight", "why"),
        rows=tuple(
            (
                term.kind,
                term.location.line if term.location is not None else 0,
                term.value,
                term.weight,
                "input equals target" if term.equal else "no graph",
            )
            for term in terms
        ),
    )
