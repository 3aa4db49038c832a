"""LOSS101: whether a loss is given what it expects: logits, log-probabilities, probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.output_softmax import OutputSoftmax, OutputSoftmaxes
from nnaudit.probes.overlap_terms import OverlapTerm, OverlapTerms
from nnaudit.report import Kind, Numbers, Result

_SQUASHING = ("Softmax", "SafeSoftmax", "Sigmoid")
_LOGARITHMS = ("LogSoftmax", "Log", "Log2", "Log10", "Log1P", "LogSigmoid", "Logsumexp")
_RECTIFIED = ("Relu", "Threshold", "Hardtanh")
"""What makes the outputs of a ReLU or a ReLU6, where none of them is negative."""

_LAYERS = ("Addmm", "Mm", "Convolution", "Add", "Baddbmm")

_NORMALIZED = 0.1
"""How far the logarithm of a sum of probabilities may be from 0: bfloat16 has three digits."""

_SEVERAL = 0.01
"""Share of rows with two labels or more from which labels do not exclude one another."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a loss's input: a sentence, its fix, and whether it is beyond doubt."""

    message: str
    fix: str
    certain: bool = True


class DoubleActivation(Check):
    """Does every loss get what it expects: logits, log-probabilities or probabilities?

    Why: `cross_entropy` and `binary_cross_entropy_with_logits` apply the softmax or the sigmoid
        themselves. With another one before them, the loss has a lower bound (1.461 for ten classes,
        when the prediction is certain and right) and gradients shrink wherever the network is
        confident. `nll_loss` and `kl_div` take log-probabilities: given logits they fall without
        bound, given probabilities they optimise something else. None of this raises an error, and
        the network still learns a little.
    How: Looks at the inputs of the loss calls of the first steps. It is exact: either the autograd
        node that made the input proves it (views are looked through), or the values prove it over
        at least `rows` rows.
        - Fails on a softmax or sigmoid before `cross_entropy` or
          `binary_cross_entropy_with_logits`, on one right after another, and on rows that are
          nowhere negative and sum to 1 (to 1e-3, the rounding of a float16 softmax).
        - `nll_loss` and `kl_div`: fails on probabilities, and when more than 1% of the entries are
          above 0.001, which log-probabilities cannot be, unless arithmetic followed the logarithm
          (a focal weight, an advantage).
        - `ctc_loss`: fails on probabilities, on a log-softmax over time or over the batch, and on
          inputs of which no logarithm was taken and whose exponentials do not sum to 1.
        - `binary_cross_entropy`: fails on values outside [0, 1], and on a softmax over classes
          where rows have several labels; it and its form with logits fail on a softmax or
          log-softmax over one value, which is always 1 or 0.
        - A softmax over the wrong dimension is recognised by columns that sum to 1 instead of rows.
          Fails, too, on one that the program takes itself of the model's output (N, C), for a loss
          that is written by hand, over the N rows, where each has a label. (Contrastive
          losses have as many columns as rows, and are left out.)
        - Fails on a dice or a Jaccard loss that is written by hand and computed of outputs outside
          [0, 1]: the gradient of a term on the output is that of the formula without a sigmoid or
          a softmax (a cosine above 0.9999, at three places).
        - Warns on the outputs of a ReLU or a tanh before `cross_entropy`; fails on those of a ReLU
          before `binary_cross_entropy_with_logits`, by which no prediction is below 0.5.
        - Warns on logits that stay within [0, 1] and reach both ends, without proof of a sigmoid.
          `log_softmax` before `cross_entropy` changes nothing and passes.
    Fix: Return logits from the model and leave the activation to the loss; apply softmax or sigmoid
        for predictions only.
    References: PyTorch documentation of CrossEntropyLoss, NLLLoss, KLDivLoss, BCEWithLogitsLoss.
    """

    code, name, kind = "LOSS101", "double-activation", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps, OutputSoftmaxes, OverlapTerms)
    options: ClassVar[dict[str, float]] = {"rows": 256}

    def run(self, audit: Audit) -> Result:
        """Look at the input of each loss call of the first steps."""
        first = audit.probe(FirstSteps)
        series = _judged(first)
        rows = int(self.option(audit, "rows"))
        found = [(calls, fault) for calls in series for fault in _faults(calls, rows)]
        found.sort(key=lambda pair: not pair[1].certain)
        if found:
            calls, fault = found[0]
            module = _last_activation(first)
            answer = self.failed if fault.certain else self.warned
            return answer(
                fault.message,
                fix=fault.fix,
                measured=_measured(calls),
                threshold="logits, log-probabilities or probabilities, as the loss expects",
                evidence=(_numbers(calls),),
                location=calls[0].location or audit.loop.locate("loss"),
                module=module,
            )
        if (over_rows := _over_rows(audit.probe(OutputSoftmaxes), first)) is not None:
            return self._over_rows(audit, over_rows)
        if (overlap := audit.probe(OverlapTerms)) is not None:
            return self._overlap(audit, overlap)
        if not series:
            first.require()
            return self.skipped("No loss function that expects logits or probabilities is called.")
        kinds = ", ".join(sorted({calls[0].kind for calls in series}))
        return self.passed(f"The input of {kinds} is what the loss expects.")

    def _overlap(self, audit: Audit, seen: OverlapTerm) -> Result:
        return self.failed(
            f"The {seen.name} loss is computed of outputs from {seen.low:.3g} to {seen.high:.3g}, "
            "without a sigmoid or a softmax: it is no overlap then, and has poles where the sums "
            "cancel.",
            fix="probability = output.sigmoid()  # or softmax(dim=1), before the overlap",
            measured=f"outputs from {seen.low:.3g} to {seen.high:.3g}",
            threshold="probabilities from 0 to 1",
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
        )

    def _over_rows(self, audit: Audit, seen: OutputSoftmax) -> Result:
        rows, classes = seen.shape
        return self.failed(
            f"The softmax of the output ({rows}, {classes}) is taken over the {rows} rows of the "
            f"batch, not over the {classes} classes: what a row gets depends on the rows beside "
            "it.",
            fix="softmax(output, dim=1), or log_softmax(output, dim=1): over the classes",
            measured=f"dim={seen.dim} of ({rows}, {classes})",
            threshold="dim=1",
            location=seen.location or audit.loop.locate("loss"),
        )


def _over_rows(softmaxes: tuple[OutputSoftmax, ...], first: First) -> OutputSoftmax | None:
    """Return the softmax that is taken over rows which have a class each."""
    target = first.targets[0] if first.targets else None
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    for seen in softmaxes:
        rows, classes = seen.shape
        if seen.dim == 0 and rows != classes and classes > 1 and target.numel() == rows:
            return seen
    return None


def _judged(first: First) -> list[list[LossCall]]:
    """Return the calls of the losses that have such an expectation, by line and origin."""
    found: dict[object, list[LossCall]] = {}
    for observation in first.observations:
        for call in observation.loss_calls:
            call = _with_input(call)  # noqa: PLW2901
            if call.kind in _RULES and isinstance(call.arguments.get("input"), Tensor):
                if call.input.numel() == 0 or not call.input.is_floating_point():
                    continue
                line = call.location.line if call.location else 0
                found.setdefault((call.kind, line, call.producer, call.before), []).append(call)
    return list(found.values())


def _with_input(call: LossCall) -> LossCall:
    """Return a call of ``ctc_loss`` with its log-probabilities as the input; others as they are."""
    if call.kind != "ctc":
        return call
    return replace(call, arguments={**call.arguments, "input": call.arguments.get("log_probs")})


def _faults(calls: list[LossCall], rows: int) -> Iterator[Fault]:
    """Yield what is wrong with the inputs of calls from one line, nothing when all is well."""
    nested = _nested(calls)
    if nested:
        yield nested
    # Anything not finite proves nothing about what was meant.
    readable = [call for call in calls if bool(torch.isfinite(call.input).all())]
    if readable:
        yield from _RULES[calls[0].kind](readable, rows)


def _nested(calls: list[LossCall]) -> Fault | None:
    """One squashing right after another, whatever the loss makes of it."""
    inner, outer = _operation(calls[0].before), _operation(calls[0].producer)
    if inner not in _SQUASHING or outer not in (*_SQUASHING, "LogSoftmax"):
        return None
    return Fault(
        f"The input of {calls[0].kind} has gone through {_named(inner)} and then {_named(outer)}: "
        "one activation too many.",
        f"Remove the {_named(inner)}: {_named(outer)} must be applied to logits.",
    )


def _cross_entropy(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    producer = _operation(calls[0].producer)
    if all(_class_dim(call, 1) < 2 for call in calls):
        return
    if producer in ("Softmax", "SafeSoftmax") or _are_probabilities(calls, 1, enough):
        over = "" if _sums_to_one(calls, 1) else " (over the wrong dimension)"
        classes = _class_dim(calls[0], 1)
        yield Fault(
            f"cross_entropy gets softmax outputs{over} instead of logits and applies softmax "
            f"again: with {classes} classes it cannot fall below {floor_of(classes):.4g}.",
            "Remove the softmax before cross_entropy: it expects logits.",
        )
    elif producer == "Sigmoid":
        classes = _class_dim(calls[0], 1)
        yield Fault(
            f"cross_entropy gets sigmoid outputs (0 to 1) instead of logits: with {classes} "
            f"classes it cannot fall below {floor_of(classes):.4g}.",
            "Remove the sigmoid before cross_entropy: it expects logits.",
        )
    elif producer == "LogSoftmax" and _over_the_rows(calls, 1):
        yield _wrong_dimension("cross_entropy")
    elif _is_rectified(calls):
        yield Fault(
            "cross_entropy gets the outputs of a ReLU instead of logits: a class whose logit is 0 "
            "gets no gradient from the row, and one that is 0 in every row is never learnt.",
            "Remove the ReLU before cross_entropy: it expects logits, negative ones too.",
            certain=False,
        )
    elif producer == "Tanh":
        classes = _class_dim(calls[0], 1)
        yield Fault(
            f"cross_entropy gets tanh outputs (-1 to 1) instead of logits: with {classes} classes "
            f"it cannot fall below {floor_of(classes, width=2.0):.4g}.",
            "Remove the tanh before cross_entropy: it expects logits.",
            certain=False,
        )


def _nll(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    if all(_class_dim(call, 1) < 2 for call in calls):
        return
    producer = _operation(calls[0].producer)
    if producer in ("Softmax", "SafeSoftmax") or _are_probabilities(calls, 1, enough):
        yield Fault(
            "nll_loss gets probabilities instead of log-probabilities: it cannot fall below -1 and "
            "does not maximise a likelihood.",
            "Use log_softmax in place of softmax, or cross_entropy on logits.",
        )
    elif producer == "LogSoftmax":
        if _over_the_rows(calls, 1):
            yield _wrong_dimension("nll_loss")
    elif _share_positive(calls) > 0.01 and not _has_logarithm(calls[0]):
        yield Fault(
            f"nll_loss gets logits instead of log-probabilities ({_share_positive(calls):.0%} of "
            "its inputs are positive): the loss falls without bound.",
            "Use cross_entropy, or apply log_softmax(dim=1) before nll_loss.",
        )


def _kl_div(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    producer = _operation(calls[0].producer)
    if producer in ("Softmax", "SafeSoftmax") or any(
        _are_probabilities(calls, dim, enough) for dim in (-1, 1)
    ):
        yield Fault(
            "kl_div gets probabilities as its first argument instead of log-probabilities.",
            "loss = F.kl_div(F.log_softmax(output, dim=-1), target)",
        )
    elif producer in _LAYERS and _share_positive(calls) > 0.01 and not _has_logarithm(calls[0]):
        yield Fault(
            "kl_div gets logits as its first argument instead of log-probabilities: "
            f"{_share_positive(calls):.0%} of them are positive.",
            "loss = F.kl_div(F.log_softmax(output, dim=-1), target)",
        )


def _ctc(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    producer = _operation(calls[0].producer)
    if all(call.input.ndim < 2 or _class_dim(call, -1) < 2 for call in calls):
        return
    if producer in ("Softmax", "SafeSoftmax") or _are_probabilities(calls, -1, enough):
        yield Fault(
            "ctc_loss gets probabilities instead of log-probabilities: paths through likely "
            "symbols cost as much as through unlikely ones.",
            "log_probs = output.log_softmax(-1)",
        )
    elif producer == "LogSoftmax":
        if any(_over_another(call) for call in calls):
            yield _wrong_dimension("ctc_loss", "time or the batch", "log_softmax(dim=-1)")
    elif not _has_logarithm(calls[0]) and _share_unnormalized(calls) > 0.5:
        yield Fault(
            "ctc_loss gets logits instead of log-probabilities: their exponentials do not sum to "
            "1, and the loss falls without bound as all of them grow.",
            "log_probs = output.log_softmax(-1)",
        )


def _over_another(call: LossCall) -> bool:
    """Whether log-probabilities (T, N, C) sum to 1 over time or the batch, and not over classes."""
    table = call.input.float()
    if _is_zero(torch.logsumexp(table, dim=-1)):
        return False
    return any(_is_zero(torch.logsumexp(table, dim=dim)) for dim in range(table.ndim - 1))


def _share_unnormalized(calls: list[LossCall]) -> float:
    sums = torch.cat([torch.logsumexp(_classes_last(call, -1), dim=1) for call in calls])
    return float((sums.abs() > _NORMALIZED).float().mean())


def _bce(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    if fault := _constant(calls, "binary_cross_entropy"):
        yield fault
    elif share := _share_of_several(calls, enough):
        yield Fault(
            f"binary_cross_entropy gets a softmax over the classes, but {share:.0%} of the rows "
            "have several labels: probabilities that sum to 1 cannot all be near 1.",
            "Use binary_cross_entropy_with_logits on the output itself, without the softmax.",
        )
    outside = [call for call in calls if _outside_unit(call.input)]
    if outside:
        low, high = (float(v) for v in torch.aminmax(outside[0].input))
        yield Fault(
            f"binary_cross_entropy gets values from {low:.3g} to {high:.3g} instead of "
            "probabilities (0 to 1), and raises an error.",
            "Use binary_cross_entropy_with_logits, or apply a sigmoid to the output.",
        )


def _bce_with_logits(calls: list[LossCall], enough: int) -> Iterator[Fault]:
    producer = _operation(calls[0].producer)
    if fault := _constant(calls, "binary_cross_entropy_with_logits"):
        yield fault
        return
    if producer in _SQUASHING:
        yield Fault(
            f"binary_cross_entropy_with_logits gets {_named(producer)} outputs instead of logits "
            "and applies a sigmoid again: predictions stay between 0.5 and 0.731.",
            f"Remove the {_named(producer)} before the loss, or use binary_cross_entropy.",
        )
        return
    if _is_rectified(calls) and any(bool((call.target < 0.5).any()) for call in calls):
        yield Fault(
            "binary_cross_entropy_with_logits gets the outputs of a ReLU instead of logits: none "
            "is below 0, so no prediction is below 0.5.",
            "Remove the ReLU before the loss: logits must be able to be negative.",
        )
        return
    values = torch.cat([call.input.reshape(-1).float() for call in calls])
    low, high = (float(v) for v in torch.aminmax(values))
    if values.numel() >= enough and 0.0 <= low < 0.05 and 0.95 < high <= 1.0:
        yield Fault(
            f"binary_cross_entropy_with_logits gets only values from {low:.3g} to {high:.3g}: they "
            "look like probabilities, but it expects logits.",
            "Pass the output from before the last activation.",
            certain=False,
        )


def _is_rectified(calls: list[LossCall]) -> bool:
    made = _operation(calls[0].producer) in _RECTIFIED
    return made and not any(bool((call.input < 0).any()) for call in calls)


def _share_of_several(calls: list[LossCall], enough: int) -> float:
    """Return the share of rows with two labels or more, under a softmax; 0 for next to none."""
    if _operation(calls[0].producer) not in ("Softmax", "SafeSoftmax"):
        return 0.0
    pairs = [(call.input, call.target) for call in calls if call.input.ndim == 2]
    if not pairs or any(given.shape != target.shape for given, target in pairs):
        return 0.0
    labels = torch.cat([target for _, target in pairs])
    normalized = all(_rows_are_one(given.float()) for given, _ in pairs)
    if not normalized or len(labels) < enough or bool(((labels != 0) & (labels != 1)).any()):
        return 0.0
    share = float((labels.sum(1) > 1).float().mean())
    return share if share > _SEVERAL else 0.0


def _constant(calls: list[LossCall], function: str) -> Fault | None:
    """A softmax over one value, which is always 1, or its logarithm, which is always 0."""
    producer = _operation(calls[0].producer)
    value = {"Softmax": 1.0, "SafeSoftmax": 1.0, "LogSoftmax": 0.0}.get(producer)
    if value is None or not all(bool((call.input == value).all()) for call in calls):
        return None
    return Fault(
        f"{function} gets a {_named(producer)} over a single value, which is always {value:g}, "
        "whatever the network computes.",
        "Use binary_cross_entropy_with_logits on the output itself, without any softmax.",
    )


_RULES = {
    "cross_entropy": _cross_entropy,
    "nll": _nll,
    "kl_div": _kl_div,
    "bce": _bce,
    "bce_with_logits": _bce_with_logits,
    "ctc": _ctc,
}


def floor_of(classes: int, width: float = 1.0) -> float:
    """Return the lowest cross-entropy of logits that lie within ``width`` of one another.

    That of the right one of ``classes`` at the upper end, and the others at the lower.
    """
    return math.log(math.exp(width) + classes - 1) - width


def _operation(node: str) -> str:
    return node.rstrip("0123456789").removesuffix("Backward")


def _named(operation: str) -> str:
    names = {"Softmax": "softmax", "SafeSoftmax": "softmax", "Sigmoid": "sigmoid"}
    return names.get(operation, "log_softmax")


def _wrong_dimension(
    function: str, over: str = "the rows of the batch", right: str = "log_softmax(dim=1)"
) -> Fault:
    return Fault(
        f"{function} gets a log_softmax over the wrong dimension: probabilities sum to 1 over "
        f"{over}, not over the classes.",
        f"Use {right}, the class dimension.",
    )


def _class_dim(call: LossCall, dim: int) -> int:
    shape = call.input.shape
    return shape[dim] if len(shape) > 1 else (shape[0] if shape else 0)


def _classes_last(call: LossCall, dim: int) -> Tensor:
    """Return the input as (rows, classes)."""
    values = call.input.float()
    values = values.movedim(dim, -1) if values.ndim > 1 else values.reshape(1, -1)
    return values.reshape(-1, values.shape[-1])


def _sums_to_one(calls: Iterable[LossCall], dim: int) -> bool:
    return all(_rows_are_one(_classes_last(call, dim)) for call in calls)


def _rows_are_one(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1.0).abs() < 1e-3).all())


def _are_probabilities(calls: list[LossCall], dim: int, enough: int) -> bool:
    """Whether rows that sum to 1 are no accident: enough of them, and they differ."""
    tables = [_classes_last(call, dim) for call in calls]
    if any(table.shape[1] < 2 for table in tables) or sum(map(len, tables)) < enough:
        return False
    return all(_rows_are_one(table) for table in tables)


def _over_the_rows(calls: list[LossCall], dim: int) -> bool:
    """Whether log-probabilities sum to 1 over the batch in place of the classes."""
    tables = [call.input.float() for call in calls if call.input.ndim > 1 and len(call.input) > 1]
    return bool(tables) and all(
        _is_zero(torch.logsumexp(table, dim=0)) and not _is_zero(torch.logsumexp(table, dim=dim))
        for table in tables
    )


def _is_zero(values: Tensor) -> bool:
    return bool((values.abs() < 1e-2).all())


def _share_positive(calls: list[LossCall]) -> float:
    values = torch.cat([call.input.reshape(-1).float() for call in calls])
    return float((values > 1e-3).float().mean())


def _has_logarithm(call: LossCall) -> bool:
    return any(_operation(node) in _LOGARITHMS for node in call.lineage)


def _outside_unit(values: Tensor) -> bool:
    low, high = torch.aminmax(values)
    return float(low) < 0.0 or float(high) > 1.0


def _last_activation(first: First) -> str:
    """Return the name of the last module that is a softmax or a sigmoid."""
    seen: Observation | None = next(iter(first.observations), None)
    activations = seen.activations if seen is not None else []
    for each in reversed(activations):
        if each.type in ("Softmax", "LogSoftmax", "Sigmoid", "Softmax2d"):
            return each.module
    return ""


def _measured(calls: list[LossCall]) -> str:
    values = torch.cat([call.input.reshape(-1).float() for call in calls])
    low, high = float(values.min()), float(values.max())
    made = f", computed by {_operation(calls[0].producer)}" if calls[0].producer else ""
    return f"inputs of {calls[0].kind} from {low:.3g} to {high:.3g}{made}"


def _numbers(calls: list[LossCall]) -> Numbers:
    values = torch.cat([call.input.reshape(-1).float() for call in calls])
    dims = [-1 if call.kind == "ctc" else 1 if call.input.ndim > 1 else 0 for call in calls]
    sums = torch.cat(
        [_classes_last(call, dim).sum(1) for call, dim in zip(calls, dims, strict=True)]
    )
    return Numbers(
        title=f"Input of {calls[0].kind}",
        values={
            "smallest": float(values.min()),
            "largest": float(values.max()),
            "smallest row sum": float(sums.min()),
            "largest row sum": float(sums.max()),
            "computed by": _operation(calls[0].producer) or "unknown",
        },
    )
