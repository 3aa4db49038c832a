"""STEP101: whether the weights change when the optimizer steps."""

from __future__ import annotations

from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.control import is_scheduled
from nnaudit.loop.observation import Gradient
from nnaudit.measure.movement import Movement, movements
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Kind, Location, Result, Table
from nnaudit.targets.source import source_of
from nnaudit.wording import count, verb

_NEGLIGIBLE = 1e-5
MORE_STEPS = 20
"""Before a verdict: an optimizer may act on every k-th call only, a warm-up may begin at zero."""


class ParametersMove(Check):
    """Do the weights change when the optimizer steps?

    Why: An optimizer that holds copies of the parameters, or the parameters of a model that was
        replaced, trains nothing: gradients are right, the schedule runs, and the network stays as
        it was. The same happens when weights are set back after every step.
    How: Exact. Parameters with a gradient that no step changed by a single bit are looked for.
        Where the first steps show some, 20 more are taken, because an optimizer may act on every
        k-th call only and a warm-up may begin at zero. It fails when parameters in the optimizer
        have still not moved, or when nothing in the whole model has. Where only some are missing
        from the optimizer, GRAD102 says so.
        - It fails at once where the program's own loop never calls backward(), or never step().
        - A gradient counts above 1e-5 of the largest: a bias before a batch normalisation has one
          that is rounding.
        - Weights that a step changed and the program then set back are a constraint, unless it is
          all of them.
        - A learning rate of 0 for everything, with no scheduler that may raise it, fails; for a
          part of the parameters it warns.
        - It warns when nothing moves because updates are below 10 units in the last place of the
          parameters' own precision (a tiny learning rate); for single parameters, such as gains in
          bfloat16, that is a note.
        - Steps that a gradient scaler skips do not count.
    Fix: build the optimizer from the model that is trained, after any copy or replacement:
        torch.optim.AdamW(model.parameters()).
    References: PyTorch documentation of torch.optim, "Constructing it".
    """

    code, name, kind = "STEP101", "parameters-move", Kind.EXACT
    needs = (Needs.UPDATES,)
    probes = (FirstSteps,)
    consequence_of = ("GRAD102",)

    def run(self, audit: Audit) -> Result:
        """Believe weights that moved; give those that did not more steps."""
        if audit.loop.never_steps:
            return self._without("step", "its optimizer takes no step", audit)
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        suspects, moved = _suspects(first)
        if not suspects and moved and not moved <= first.still:
            return self.passed(f"All {len(moved)} parameters with a gradient change in a step.")
        found = movements(audit, MORE_STEPS)
        least = _NEGLIGIBLE * max((each.gradient for each in found), default=0.0)
        seen = [each for each in found if each.gradient > least]
        if not (seen or any(each.moved for each in found)) and audit.lacks(Needs.OWN_STEPS):
            return self._without("backward", "it back-propagates nothing", audit)
        if not seen:
            return self.inconclusive(
                "Not judged: no parameter had a gradient when an optimizer stepped."
            )
        return self._judge(audit, seen)

    def _without(self, method: str, why: str, audit: Audit) -> Result:
        """Fail for want of a call, and show where the method is named and not called."""
        place = audit.loop.locate("optimizer") or audit.loop.locate("model")
        lines = source_of(place.file).uncalled(method) if place is not None else ()
        named = f"line {lines[0]} names {method} and does not call it: " if lines else ""
        return self.failed(
            f"The program trains nothing: {why}.",
            measured=f"{method}() is never called",
            threshold="every parameter with a gradient changes",
            fix=f"{named}call loss.backward(), then optimizer.step(), for every batch",
            location=Location(file=place.file, line=lines[0]) if place and lines else place,
        )

    def _judge(self, audit: Audit, seen: list[Movement]) -> Result:
        owned = [each for each in seen if each.owned]
        if not any(each.moved for each in seen):
            return self._none_moved(audit, seen, owned)
        still = [each for each in owned if not each.moved and not each.stepped]
        if not still:
            return self.passed(
                f"All {len(owned)} parameters of the optimizer with a gradient change in a step."
            )
        broken = [each for each in still if each.lr > 0.0 and each.visible]
        if broken:
            return self.failed(
                f"{len(broken)} of {len(owned)} parameters with a gradient and a learning rate "
                f"above 0 {verb(len(broken), 'are', 'is')} unchanged, bit for bit, after "
                f"{MORE_STEPS} steps ({broken[0].parameter} first).",
                measured=f"{len(broken)} of {count(len(owned), 'parameter')} unchanged",
                fix="call step() on the optimizer that holds them, and update them in place",
                **_details(audit, broken),
            )
        return self._excused(audit, still, len(owned))

    def _none_moved(self, audit: Audit, seen: list[Movement], owned: list[Movement]) -> Result:
        if owned and not any(each.stepped for each in owned):
            if not any(each.lr > 0.0 and each.visible for each in owned):
                return self._excused(audit, owned, len(owned))
            why = "the optimizer holds them, but does not change them"
        elif owned:
            why = "the optimizer changes them, but they are set back afterwards"
        else:
            why = "the optimizer holds none of them, but copies or another model's parameters"
        return self.failed(
            f"None of the {len(seen)} parameters with a gradient has changed in {MORE_STEPS} "
            f"steps: {why}.",
            measured="no parameter changes",
            fix="build the optimizer from the model that is trained: optimizer = "
            "torch.optim.AdamW(model.parameters(), lr=...)",
            **_details(audit, seen),
        )

    def _excused(self, audit: Audit, still: list[Movement], of: int) -> Result:
        stopped = [each for each in still if each.lr == 0.0]
        if len(stopped) == of and not is_scheduled(audit.loop):
            return self.failed(
                f"Nothing is trained: the learning rate is 0 in all of {MORE_STEPS} steps, and no "
                "scheduler raises it.",
                measured="learning rate 0",
                fix="give the optimizer a learning rate above 0, such as lr=1e-3",
                **_details(audit, stopped),
            )
        if stopped:
            return self.warned(
                f"{len(stopped)} of {of} parameters with a gradient "
                f"{verb(len(stopped), 'do', 'does')} not change in {MORE_STEPS} steps, because "
                f"their learning rate is 0 ({stopped[0].parameter} first).",
                measured=f"{count(len(stopped), 'parameter')} with learning rate 0",
                fix="give the parameter group a learning rate, or freeze it: "
                "p.requires_grad_(False)",
                **_details(audit, stopped),
            )
        precision = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in still}))
        answer = self.warned if len(still) == of else self.noted
        return answer(
            f"{len(still)} of {of} parameters {verb(len(still), 'do', 'does')} not change in "
            f"{MORE_STEPS} steps: their updates are rounded away in {precision} "
            f"({still[0].parameter} first).",
            measured=f"{count(len(still), 'parameter')} whose updates are rounded away",
            fix="raise the learning rate, or keep the weights in float32",
            **_details(audit, still),
        )


def _suspects(first: First) -> tuple[set[str], set[str]]:
    """Return the optimizer's parameters that had a gradient and never moved, and the rest."""
    seen = [g for observation in first.completed for g in observation.gradients]
    least = _NEGLIGIBLE * max((g.norm for g in seen if g.norm and g.finite), default=0.0)
    driven = {g.parameter for g in seen if g.norm and g.norm > least and g.finite and g.owned}
    moved = {g.parameter for g in seen if _stepped(g)}
    return driven - moved, driven & moved


def _stepped(gradient: Gradient) -> bool:
    return gradient.update_norm is not None and gradient.update_norm != 0.0


def _details(audit: Audit, some: list[Movement]) -> dict[str, Any]:
    rows = tuple((m.parameter, m.gradient, m.lr, "yes" if m.owned else "no") for m in some[:20])
    table = Table(
        title="Parameters that do not change",
        columns=("parameter", "gradient norm", "learning rate", "in an optimizer"),
        rows=rows,
    )
    loop = audit.loop
    return {
        "evidence": (table,),
        "location": loop.locate("optimizer") or loop.locate("model"),
        "module": some[0].parameter.rpartition(".")[0],
        "threshold": "every parameter with a gradient changes",
    }
