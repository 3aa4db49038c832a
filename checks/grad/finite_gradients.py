"""GRAD106: NaN and infinity in the loss or the gradients of the first steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs, Step
from nnaudit.loop.observation import Observation
from nnaudit.measure.nan_origin import NanOrigin, nan_origin
from nnaudit.probes.first_steps import FirstSteps, observed_steps
from nnaudit.probes.plain_steps import PlainSteps
from nnaudit.report import Curve, Kind, Result, Series
from nnaudit.wording import count


@dataclass(frozen=True)
class Origin:
    """Where the first NaN or infinite value came from."""

    message: str
    fix: str
    module: str = ""


class FiniteGradients(Check):
    """Are the loss and all gradients finite?

    Why: One NaN in the loss makes every weight NaN at the next update, and nothing that follows
        means anything. The causes are a logarithm or a division of zero, the square root of zero
        (its gradient is infinite), half precision beyond 65504, or a learning rate that is too
        high.
    How: Checks the loss and the gradient of every parameter that an optimizer holds in the first
        observed steps, then the loss of twenty plain steps. Fails when any is NaN or infinite. The
        origin named is the first module with a NaN or infinite output and finite inputs; where the
        loss is finite, the operation whose backward pass made the first NaN, and its line, as
        autograd's anomaly detection tells when the step is taken again.
        - When a plain step's loss is not finite, the steps are repeated and observed.
        - An infinite activation alone is no fault: attention masks are infinite by design.
        - With a gradient scaler (mixed precision) single steps may overflow and are skipped: only
          steps that all overflow fail.
        - Divergence over more steps is left to STEP109 and FIT104.
    Fix: Add a small number under the logarithm, root or division; use the loss that takes logits;
        lower the learning rate or clip the gradient norm.
    References: Micikevicius et al., Mixed Precision Training (ICLR 2018); PyTorch documentation,
        Numerical accuracy, and torch.autograd.detect_anomaly.
    """

    code, name, kind = "GRAD106", "finite-gradients", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps, PlainSteps)
    consequence_of = ("DATA101",)

    def run(self, audit: Audit) -> Result:
        """Look for the first NaN or infinite value."""
        first = audit.probe(FirstSteps)
        scaled = bool(audit.loop.subjects.scalers)
        bad = [i for i, step in enumerate(first.steps) if _is_bad(step, scaled)]
        if bad and (not scaled or len(bad) == len(first.steps)):
            return self._failed(audit, list(first.steps[: bad[0] + 1]))
        first.require()
        losses = list(audit.probe(PlainSteps).losses)
        at = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if at is not None and (not scaled or not math.isfinite(losses[-1])):
            return self._failed(audit, observed_steps(audit, at + 1), losses[: at + 1])
        return self.passed(
            f"The loss is finite in {len(losses)} steps, and all gradients in {len(first.steps)}.",
            evidence=(_curve(losses),),
        )

    def _failed(self, audit: Audit, steps: list[Step], losses: list[float] | None = None) -> Result:
        losses = losses or [step.loss for step in steps]
        bad = next((step for step in steps if _is_bad(step, scaled=False)), None)
        seen = bad.observation if bad is not None else None
        at = steps.index(bad) if bad is not None else len(losses) - 1
        origin = _origin(seen, losses[: at + 1])
        exact = self._first_nan(audit, at) if math.isfinite(losses[at]) else None
        if exact is not None:
            origin = replace(
                origin,
                message=f"{origin.message}. The first NaN is made by {exact.operation} in the "
                "backward pass",
            )
        return self.failed(
            f"Step {at + 1}: {origin.message}.",
            fix=origin.fix,
            module=origin.module,
            measured=f"loss {losses[min(at, len(losses) - 1)]:.4g} in step {at + 1}",
            threshold="finite values",
            location=(exact.location if exact is not None else None)
            or _location(audit, seen, origin),
            evidence=(_curve(losses),),
        )

    @staticmethod
    def _first_nan(audit: Audit, at: int) -> NanOrigin | None:
        """Return the operation that made the first NaN gradient of step ``at``."""
        some = audit.probe(FirstSteps).batches
        return nan_origin(audit.loop, some[: at + 1]) if at < len(some) else None


def _is_bad(step: Step, scaled: bool) -> bool:
    """Whether the loss or, unless it is scaled and checked elsewhere, a gradient is not finite."""
    if not math.isfinite(step.loss):
        return True
    seen = step.observation
    return (
        seen is not None
        and not scaled
        and any(gradient.owned and not gradient.finite for gradient in seen.gradients)
    )


def _origin(seen: Observation | None, losses: list[float]) -> Origin:
    if seen is None:
        return Origin(
            f"the loss is {losses[-1]:.4g}", "Run with torch.autograd.set_detect_anomaly(True)."
        )
    finite_loss = math.isfinite(losses[-1])
    broken = [each for each in seen.activations if not each.finite]
    source = next((each for each in broken if each.inputs_finite and each.is_leaf), None)
    source = source or next((each for each in broken if each.inputs_finite), None)
    if finite_loss:
        return _in_backward(seen)
    if len(losses) > 2 and _grew(losses):
        return Origin(
            f"the loss is {losses[-1]:.4g} after growing from {losses[0]:.4g} to "
            f"{max(loss for loss in losses if math.isfinite(loss)):.4g}: the training diverges",
            "Lower the learning rate by a factor of ten, or clip the gradient norm: "
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
        )
    if source is not None:
        name = f"{source.module or 'the model'} ({source.type})"
        return Origin(
            f"the loss is {losses[-1]:.4g}: {name} is the first module with finite inputs and NaN "
            "or infinite outputs",
            "Look for a division, logarithm or root of zero, or an exponential that overflows, in "
            f"{name}.",
            source.module,
        )
    if broken:
        return Origin(
            f"the loss is {losses[-1]:.4g}: NaN or infinite values enter the model",
            "Remove NaN and infinity from the data: x = torch.nan_to_num(x).",
        )
    kinds = ", ".join(call.kind for call in seen.loss_calls) or "the loss"
    return Origin(
        f"the loss is {losses[-1]:.4g} although all outputs are finite: the cause is {kinds} or "
        "the targets",
        "Add a small number under logarithms, roots and divisions in the loss, and check the "
        "targets for NaN.",
    )


def _in_backward(seen: Observation) -> Origin:
    bad = [each.parameter for each in seen.gradients if each.owned and not each.finite]
    # Gradients flow from the loss backwards: the last layer that has it got it first.
    last = bad[-1] if bad else ""
    return Origin(
        f"the loss is finite, but the gradients of {count(len(bad), 'tensor')} are NaN or infinite "
        f"({last} is nearest to the loss)",
        "Look for a square root, norm or power of zero between there and the loss, and add a small "
        "number inside it: torch.sqrt(x + eps). torch.where does not stop such a gradient.",
        last.rpartition(".")[0],
    )


def _grew(losses: list[float]) -> bool:
    finite = [abs(loss) for loss in losses if math.isfinite(loss)]
    return len(finite) > 1 and max(finite) > 10.0 * max(finite[0], 1e-12)


def _location(audit: Audit, seen: Observation | None, origin: Origin) -> Any:
    if origin.module:
        module = dict(audit.loop.model.named_modules()).get(origin.module)
        return audit.loop.locate(module) or audit.loop.locate("model")
    if seen is not None and seen.loss_calls:
        return seen.loss_calls[-1].location
    return audit.loop.locate("loss") or audit.loop.locate("training_step")


def _curve(losses: list[float]) -> Curve:
    return Curve(
        title="Loss of the first steps",
        x_label="step",
        y_label="loss",
        series=(
            Series(
                name="loss",
                x=tuple(float(i + 1) for i in range(len(losses))),
                y=tuple(losses),
            ),
        ),
    )
