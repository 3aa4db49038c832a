"""STEP111: whether updates survive the precision of the weights."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.rounded_updates import LOW, RoundedUpdates, RoundedUpdating
from nnaudit.report import Kind, Numbers, Result


class RoundedUpdatesOfWeights(Check):
    """Are the updates large enough for the precision of the weights?

    Why: A bfloat16 number has 8 significant bits: 0.05 + 0.00002 is 0.05. An optimizer that holds
        weights in bfloat16 or float16 loses every update smaller than half the distance to the next
        number, in every step, so that many weights never move. Autocast keeps the weights in
        float32; `model.bfloat16()` does not.
    How: Takes up to 48 steps (8 seconds) at the author's highest learning rate. With the gradients
        that the optimizers get, copies of the optimizers step float32 copies of the weights. An
        element is due when its float32 copy, rounded to the weights' precision, has changed since
        the start, and lost when the weight itself has not.
        - Fails when more than `lost` (half) of the due elements are lost, and at least `due` (a
          tenth) of the elements with a gradient are due.
        - Inconclusive when fewer are due, or the optimizer cannot be copied.
        - Stochastic rounding and compensated (Kahan) summation follow the float32 copies: they
          pass.
    Fix: Keep the weights in float32 and compute in bfloat16:
        `with torch.autocast("cuda", dtype=torch.bfloat16): ...`.
    References: Micikevicius et al., "Mixed Precision Training" (2018), section 3.1; Zamirai et
        al., "Revisiting BFloat16 Training" (2020).
    """

    code, name, kind = "STEP111", "rounded-updates", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.OPTIMIZER)
    probes = (RoundedUpdating,)
    options: ClassVar[dict[str, float]] = {"lost": 0.5, "due": 0.1}

    def run(self, audit: Audit) -> Result:
        """Compare the weights with what float32 copies became."""
        held = [p for o in audit.loop.optimizers for g in o.param_groups for p in g["params"]]
        if not any(p.dtype in LOW for p in held):
            return self.skipped("The optimizers hold no weights of low precision.")
        seen = audit.probe(RoundedUpdating)
        if seen is None:
            return self.inconclusive("The optimizer cannot be copied to step float32 weights.")
        if not seen.driven:
            return self.inconclusive("No weight of low precision got a gradient.")
        if seen.due < self.option(audit, "due") * seen.driven:
            return self.inconclusive(
                f"In {seen.steps} steps, {_percent(seen.due, seen.driven)} of the weights were due "
                f"to change by a rounding of {seen.dtype}: too few to say whether updates are lost."
            )
        lost = seen.lost / seen.due
        if lost <= self.option(audit, "lost"):
            return self.passed(
                f"{_percent(seen.due - seen.lost, seen.due)} of the {seen.dtype} weights that "
                f"should have changed in {seen.steps} steps did."
            )
        return self.failed(
            f"{seen.dtype} rounds the updates away: in {seen.steps} steps at learning rate "
            f"{seen.rate:.2g}, {_percent(seen.lost, seen.due)} of the weights stood still that "
            "move with the same gradients in float32.",
            measured=f"{seen.lost:,} of {seen.due:,} weights stood still",
            threshold=f"{100 * self.option(audit, 'lost'):.0f}%",
            evidence=(_numbers(seen),),
            location=audit.loop.locate("optimizer") or audit.loop.locate("model"),
            fix="Keep the weights in float32 and compute in bfloat16: with torch.autocast(device, "
            "dtype=torch.bfloat16): ..., without model.bfloat16(); or use an optimizer with "
            "stochastic rounding.",
        )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f}%"


def _numbers(seen: RoundedUpdates) -> Numbers:
    return Numbers(
        title="Elements of the weights",
        values={
            "with a gradient": seen.driven,
            "due to change": seen.due,
            "that stood still": seen.lost,
        },
    )
