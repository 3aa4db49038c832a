"""DATA102: targets that the loss function is not defined for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, describe
from nnaudit.loop.base import Needs
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import is_total
from nnaudit.probes.data import Contents, Field, TrainingData
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Kind, Location, Result, Status, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor

CLASSES = frozenset({"cross_entropy", "nll", "multi_margin"})
PROBABILITIES = frozenset({"bce", "bce_with_logits", "multilabel_soft_margin"})
SIGNS = frozenset({"soft_margin", "hinge_embedding", "cosine_embedding"})
NOISE = 0.25
"""Noisy labels of a GAN's discriminator reach up to 1.2 on purpose."""
SEARCH_SECONDS = 10.0

_ROUNDING = 1e-3


@dataclass(frozen=True)
class Domain:
    """The targets a loss call is defined for: ``low`` to ``high``, or ``ignored``.

    Attributes:
        forbids: marks the elements of a target that lie outside.
        allowed: the valid targets in words.
        grave: by how much a target must lie outside to be a fault rather than a doubt.
    """

    allowed: str
    low: float
    high: float
    forbids: Callable[[Tensor], Tensor]
    grave: float = 0.0
    classes: int = 0


@dataclass(frozen=True)
class Violation:
    """Targets outside the domain, as found in one loss call or one field."""

    domain: Domain
    kind: str
    values: dict[float, int]
    location: Location | None
    call: LossCall | None = None
    total: float | None = None

    @property
    def counted(self) -> bool:
        """Whether the wrong targets are known to count in the total loss.

        Losses per element are often masked afterwards: they count if the total is their mean or
        sum over all elements, and not over the right ones alone.
        """
        call = self.call
        if call is None or self.domain.classes or call.reduction != "none":
            return True
        values, target = call.value, call.arguments.get("target")
        if values is None or self.total is None or not isinstance(target, Tensor):
            return False
        if values.shape != target.shape:
            return False
        right = values[~self.domain.forbids(target)]
        return _is_total(values, values, self.total) and not _is_total(right, values, self.total)

    @property
    def is_grave(self) -> bool:
        """Whether some target lies outside by more than noise would explain."""
        low, high = self.domain.low - self.domain.grave, self.domain.high + self.domain.grave
        return any(value <= low or value >= high for value in self.values) or not self.domain.grave

    def in_words(self) -> str:
        """Name the values and the domain."""
        count = sum(self.values.values())
        shown = ", ".join(f"{value:g}" for value in sorted(self.values)[:5])
        more = ", ..." if len(self.values) > 5 else ""
        noun = "target is" if count == 1 else "targets are"
        return f"{count:,} {noun} {shown}{more}, but {self.kind} expects {self.domain.allowed}"

    def fix(self) -> str:
        """Return the line to write."""
        classes = self.domain.classes
        lowest, largest = min(self.values), max(self.values)
        if not classes:
            if self.domain.low == -1:
                return "target = 2 * target - 1"
            return self._into_unit() if self.domain.high == 1 else "target.clamp(min=0)"
        if lowest < 0:
            return f"{self.kind}(..., ignore_index={lowest:g})  # if these rows are to be ignored"
        if largest == classes:
            return "target = target - 1  # if the classes are numbered from 1"
        return f"nn.Linear(..., {largest + 1:g})  # one output per class"

    def _into_unit(self) -> str:
        """Return the line that makes the targets numbers from 0 to 1."""
        lowest, largest = min(self.values), max(self.values)
        if set(self.values) == {-1.0}:
            return "target = (target + 1) / 2  # or leave these rows out, if -1 means unknown"
        if lowest < -NOISE:
            return "no Normalize() for what is the target: its values are to be 0 to 1"
        if largest > 1 + NOISE:
            return f"target = target / {largest:g}"
        return "target = target.clamp(0, 1)"


class TargetDomain(Check):
    """Are the targets valid for the loss function?

    Why: A class number beyond the last output stops the run with an error that, on a GPU, names
        neither the line nor the value, at the first batch that holds one. Worse, a binary target of
        255 or -1 raises nothing: the loss has no lower bound and the network chases it.
    How: Records the calls of torch's loss functions in the first training steps and compares their
        targets with what the loss accepts: class numbers in [0, C) or `ignore_index`, with C the
        class dimension of the input; binary targets in [0, 1]; +1 or -1 for margins; counts that
        are not negative. It is an invariant without a threshold: it fails outright.
        - Targets that reach the loss unchanged are also looked up in all data that are cheap to
          read; a batch with a wrong one is put through a step, which may leave it out.
        - Only a warning: binary targets up to 0.25 outside (noisy labels), and class probabilities
          that are negative or do not sum to 1.
        - When a loss call raises, it is repeated with the target in the dtype that the loss
          documents, to see whether that is the reason.
    Fix: Number the classes from 0; give the network as many outputs as there are classes; pass
        `ignore_index=`; divide an image by 255; `target.long()` for classes, `target.float()` for
        everything else.
    References: PyTorch documentation of torch.nn.functional.cross_entropy, nll_loss,
        binary_cross_entropy_with_logits, soft_margin_loss, ctc_loss.
    """

    code = "DATA102"
    name = "target-domain"
    kind = Kind.EXACT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (FirstSteps, TrainingData)

    def run(self, audit: Audit) -> Result:
        """Compare what the first steps showed, then the rest of the data, with the domain."""
        first, data = audit.probe(FirstSteps), audit.probe(TrainingData)
        found = _in_steps(first)
        for violation, batch in found:
            if not _left_out(audit, violation, batch):
                return self._wrong(violation)
        if (dtype := _wrong_dtype(first)) is not None:
            return self._dtype(first, *dtype)
        if (handwritten := _wrong_index(first)) is not None:
            return self._wrong(handwritten)
        first.require()
        if (elsewhere := _elsewhere(audit, first, data)) is not None:
            return self._wrong(elsewhere)
        if (odd := _odd_probabilities(first)) is not None:
            return self.warned(
                f"{odd[0]}, so they are not class probabilities.",
                location=odd[1].location,
                fix="F.binary_cross_entropy_with_logits(output, target)  # for several labels per "
                "row",
            )
        return self._sound(first, data)

    def _wrong(self, violation: Violation) -> Result:
        if not violation.counted:
            return self.inconclusive(
                f"{violation.in_words()}; whether the program masks them out could not be "
                "determined.",
                evidence=(_table(violation),),
                location=violation.location,
            )
        return self.answer(
            Status.FAIL if violation.is_grave else Status.WARN,
            f"{violation.in_words()}.",
            measured=", ".join(f"{value:g}" for value in sorted(violation.values)[:5]),
            threshold=violation.domain.allowed,
            evidence=(_table(violation),),
            location=violation.location,
            fix=violation.fix(),
        )

    def _dtype(self, first: First, call: LossCall, fitting: torch.dtype) -> Result:
        error = describe(first.error.original) if first.error is not None else ""
        have, want = (str(dtype).removeprefix("torch.") for dtype in (call.target.dtype, fitting))
        method = {torch.int64: "long", torch.float32: "float"}.get(fitting, f"to(torch.{want})")
        return self.failed(
            f"The target of {call.kind} is {have} but must be {want}: {error}.",
            measured=have,
            threshold=want,
            location=call.location,
            fix=f"target = target.{method.removesuffix(')')}{')' if '(' in method else '()'}",
        )

    def _sound(self, first: First, data: Contents) -> Result:
        domains = {
            call.kind: domain.allowed
            for seen in first.observations
            for call in seen.loss_calls
            if (domain := domain_of(call)) is not None
        }
        if not domains:
            return self.skipped("No loss function that restricts its targets is called.")
        said = "; ".join(f"{kind} expects {allowed}" for kind, allowed in domains.items())
        return self.passed(f"The targets of the {data.rows:,} rows read are valid: {said}.")


# --- domains ------------------------------------------------------------------------------------


def domain_of(call: LossCall) -> Domain | None:
    """Return the domain of ``call``'s target; None where any number will do."""
    target, source = _tensors_of(call)
    if target is None or source is None:
        return None
    arguments = call.arguments
    domain = None
    if call.kind in CLASSES and not (target.is_floating_point() or target.is_complex()):
        ignored = arguments.get("ignore_index", -100) if call.kind != "multi_margin" else None
        domain = _class_domain(source.shape[1 if source.ndim > 1 else 0], ignored)
    elif call.kind == "ctc":
        domain = _class_domain(source.shape[-1], None, blank=int(arguments.get("blank", 0)))
    elif call.kind in PROBABILITIES:
        domain = _between("numbers from 0 to 1", 0.0, 1.0, grave=NOISE)
    elif call.kind in SIGNS:
        domain = Domain("-1 or 1", -1.0, 1.0, lambda t: (t != 1) & (t != -1))
    elif call.kind == "poisson_nll" or (call.kind == "kl_div" and not arguments["log_target"]):
        domain = _between("numbers of at least 0", 0.0, float("inf"))
    return domain


def _tensors_of(call: LossCall) -> tuple[Tensor | None, Tensor | None]:
    names = ("targets", "log_probs") if call.kind == "ctc" else ("target", "input")
    if call.kind == "cosine_embedding":
        names = ("target", "input1")
    target, source = (call.arguments.get(name) for name in names)
    return (
        target if isinstance(target, Tensor) else None,
        source if isinstance(source, Tensor) and source.ndim > 0 else None,
    )


def _class_domain(classes: int, ignored: int | None, blank: int | None = None) -> Domain:
    def forbids(target: Tensor) -> Tensor:
        outside = (target < 0) | (target >= classes)
        if blank is not None:
            outside |= target == blank
        return outside if ignored is None else outside & (target != ignored)

    allowed = f"classes 0 to {classes - 1}"
    if blank is not None:
        allowed += f" except {blank}, the blank"
    if ignored is not None and ignored != -100:
        allowed += f" (or {ignored}, which is ignored)"
    return Domain(allowed, 0, classes - 1, forbids, classes=classes)


def _between(allowed: str, low: float, high: float, *, grave: float = 0.0) -> Domain:
    def forbids(target: Tensor) -> Tensor:
        # NaN and infinity are for DATA101 to say.
        outside = (target < low - _ROUNDING) | (target > high + _ROUNDING)
        return outside & torch.isfinite(target)

    return Domain(allowed, low, high, forbids, grave=grave)


def _valid_part(call: LossCall, target: Tensor) -> Tensor:
    """Leave out what a loss does not read: CTC's padding."""
    lengths = call.arguments.get("target_lengths")
    if call.kind != "ctc" or target.ndim != 2 or lengths is None:
        return target
    limits = torch.as_tensor(lengths, device=target.device).reshape(-1, 1)
    return target[torch.arange(target.shape[1], device=target.device) < limits]


def violation_of(call: LossCall, total: float | None) -> Violation | None:
    """Return the targets of ``call`` that lie outside its domain; None when none does.

    ``total`` is the loss that the step minimised.
    """
    domain, (target, _) = domain_of(call), _tensors_of(call)
    if domain is None or target is None:
        return None
    values = _valid_part(call, target)
    outside = domain.forbids(values)
    weight = call.arguments.get("weight")
    if call.kind in PROBABILITIES and isinstance(weight, Tensor):
        outside &= weight.expand_as(values) != 0
    wrong = values[outside]
    if wrong.numel() == 0:
        return None
    if domain.low == -1 and not bool(((wrong == 0) | (wrong == 1)).all()):
        return None  # graded similarities: unusual, not wrong
    values, counts = torch.unique(wrong.float(), return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Violation(domain, call.kind, found, call.location, call, total)


def _is_total(values: Tensor, all_values: Tensor, total: float) -> bool:
    """Whether ``total`` is the sum of ``values``, over one of the usual denominators."""
    summed = float(values.double().sum())
    rows = all_values.shape[0] if all_values.ndim else 1
    usual = (1, rows, values.numel(), all_values.numel())
    return any(is_total(summed / n, total) for n in usual if n)


# --- where they are -----------------------------------------------------------------------------


def _in_steps(first: First) -> list[tuple[Violation, Any]]:
    """Return every violation in the first steps, with its batch."""
    return [
        (violation, batch)
        for batch, seen in zip(first.batches, first.observations, strict=False)
        for call in seen.loss_calls
        if (violation := violation_of(call, seen.total_loss)) is not None
    ]


def _left_out(audit: Audit, violation: Violation, batch: Any) -> bool:
    """Whether the program masks the wrong targets: its loss does not depend on their value.

    They are replaced by a right one, in case a mask comes with the batch, and by one that is still
    further out, in case the mask is a comparison. A class number out of range always counts.
    """
    domain = violation.domain
    if domain.classes:
        return False

    def inside(leaf: Tensor) -> Tensor:
        # Between the two signs there is nothing: go to one of them.
        return torch.ones_like(leaf) if domain.low == -1 else leaf.clamp(domain.low, domain.high)

    def beyond(leaf: Tensor) -> Tensor:
        return torch.where(leaf < domain.low, leaf - 1, leaf + 1)

    loss = _loss_on(audit, batch)
    for change in (inside, beyond):
        changed = _only_targets(audit, batch, violation, change)
        if changed is not None and loss is not None and _loss_on(audit, changed) == loss:
            return True
    return False


def _only_targets(
    audit: Audit, batch: Any, violation: Violation, change: Callable[[Tensor], Tensor]
) -> Any:
    """Return ``batch`` with its wrong targets changed; None where the target is an input too.

    Also where none is in what is taken for the target: a batch that has not changed says nothing.
    """
    fed, domain = inputs_and_target(audit.loop, batch), violation.domain
    given = violation.call.arguments.get("target") if violation.call is not None else None
    own = {id(leaf) for _, leaf in batches.leaves((fed.target,))}
    if isinstance(given, Tensor):
        # Of several inputs and a label, another may be taken for it: an autoencoder's is its input.
        same = {id(leaf) for _, leaf in batches.tensors(batch) if batches.same_values(leaf, given)}
        own = same or own
    own -= {id(leaf) for _, leaf in batches.leaves(fed.inputs)}
    wrong = 0

    def changed(leaf: Any) -> Any:
        nonlocal wrong
        if id(leaf) not in own or not isinstance(leaf, Tensor) or leaf.is_complex():
            return leaf
        outside = domain.forbids(leaf)
        wrong += int(outside.sum())
        return torch.where(outside, change(leaf), leaf)

    new = batches.map_leaves(batch, changed)
    return new if wrong else None


def _loss_on(audit: Audit, batch: Any) -> float | None:
    with preserved(audit.loop.subjects):
        try:
            return audit.loop.step(batch).loss
        except UserCodeError:
            return None


def _elsewhere(audit: Audit, first: First, data: Contents) -> Violation | None:
    """Look for wrong targets in all that was read, and see what a step does with them."""
    for path, call in _passed_on(first):
        domain = domain_of(call)
        field = data.fields.get(path)
        if domain is None or field is None or call.kind == "ctc":
            continue
        if not _holds_wrong(field, domain):
            continue
        batch = _batch_with(audit, path, domain)
        if batch is None:
            continue
        seen = _observed(audit, batch)
        for again in seen.loss_calls:
            violation = violation_of(again, seen.total_loss)
            if violation is not None and not _left_out(audit, violation, batch):
                return violation
    return None


def _passed_on(first: First) -> Iterator[tuple[str, LossCall]]:
    """Yield the fields of the first batch that reach a loss call unchanged, with that call."""
    if not first.observations:
        return
    for call in first.observations[0].loss_calls:
        target, _ = _tensors_of(call)
        for path in batches.paths_of(first.batches[0], target) if target is not None else ():
            yield path, call


def _holds_wrong(field: Field, domain: Domain) -> bool:
    if field.low > field.high:
        return False
    held = field.counts if field.counts is not None else (field.low, field.high)
    return bool(domain.forbids(torch.tensor(list(held), dtype=torch.float64)).any())


def _batch_with(audit: Audit, path: str, domain: Domain) -> Any:
    """Return the next batch of the training that holds a wrong target at ``path``, or None."""
    started = time.perf_counter()
    for batch in audit.loop.batches():
        audit.clock.check()
        tensor = dict(batches.tensors(batch)).get(path)
        if tensor is not None and bool(domain.forbids(tensor).any()):
            return batch
        if time.perf_counter() - started > SEARCH_SECONDS:
            break
    return None


def _observed(audit: Audit, batch: Any) -> Observation:
    with preserved(audit.loop.subjects):
        try:
            step = audit.loop.step(batch, losses=True)
        except UserCodeError as error:
            seen = getattr(error, "observation", None)
            return seen if isinstance(seen, Observation) else Observation()
    return step.observation or Observation()


# --- steps that raise ---------------------------------------------------------------------------


def _wrong_dtype(first: First) -> tuple[LossCall, torch.dtype] | None:
    """Return the loss call whose target's dtype made the step raise, and the dtype that works."""
    if first.error is None or first.partial is None:
        return None
    for call in reversed(first.partial.loss_calls):
        target, source = _tensors_of(call)
        if target is None or source is None or call.kind == "ctc":
            continue
        fitting = torch.int64 if call.kind in CLASSES else source.dtype
        if target.dtype == fitting:
            continue
        if _raises(call, source, target) and not _raises(call, source, target.to(fitting)):
            return call, fitting
    return None


def _raises(call: LossCall, source: Tensor, target: Tensor) -> bool:
    """Whether the loss or its backward pass raises, on the CPU, where errors are harmless."""
    arguments = {
        name: value.cpu() if isinstance(value, Tensor) else value
        for name, value in call.arguments.items()
    }
    arguments["target"] = target.cpu()
    name = "input1" if call.kind == "cosine_embedding" else "input"
    # The loss may see fewer rows than the target has: its input is kept in part only.
    arguments[name] = source.detach().cpu().clone().requires_grad_(source.is_floating_point())
    try:
        with torch.enable_grad():
            call.function(**arguments).sum().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return True
    return False


def _wrong_index(first: First) -> Violation | None:
    """Return the class numbers beyond the outputs that made a hand-written loss raise."""
    error, seen = first.error, first.partial
    if error is None or seen is None or not _is_index_error(error.original):
        return None
    output, target = main_tensor(seen.output), first.targets[-1]
    if output is None or not isinstance(target, Tensor) or output.ndim < 2:
        return None
    if target.is_floating_point() or target.ndim != 1 or output.shape[0] != target.shape[0]:
        return None
    domain = _class_domain(output.shape[1], None)
    wrong = target[domain.forbids(target)].cpu()
    if wrong.numel() == 0:
        return None
    values, counts = torch.unique(wrong.float(), return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Violation(domain, "the loss", found, error.location)


def _is_index_error(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, IndexError) or "out of bounds" in text or "out of range" in text


def _odd_probabilities(first: First) -> tuple[str, LossCall] | None:
    """Return what is odd about the class probabilities given to a cross-entropy, and the call."""
    for seen in first.observations:
        for call in seen.loss_calls:
            target, source = _tensors_of(call)
            if call.kind != "cross_entropy" or target is None or source is None:
                continue
            if not target.is_floating_point() or target.ndim == 0:
                continue
            sums = target.sum(1 if target.ndim > 1 else 0)
            off = ((sums - 1).abs() > 0.02) & (sums != 0)
            if bool((target < -_ROUNDING).any()):
                return f"Targets of cross_entropy are as low as {float(target.min()):.3g}", call
            if bool(off.any()):
                worst = float(sums.flatten()[(sums - 1).abs().flatten().argmax()])
                return f"Targets of cross_entropy sum to {worst:.3g} over the classes", call
    return None


def _table(violation: Violation) -> Table:
    rows = tuple((value, float(count)) for value, count in sorted(violation.values.items())[:20])
    return Table(title="Invalid targets", columns=("target", "count"), rows=rows)
