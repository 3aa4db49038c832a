"""INIT101: what the loss of an untrained network should be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit import batch as batches
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.floor import bounds
from nnaudit.loop.base import Fed, Loop, Needs
from nnaudit.loop.taps import LossCall, Observation
from nnaudit.probes.first_steps import (
    First,
    FirstSteps,
    MainLoss,
    consecutive_batches,
    initial_steps,
)
from nnaudit.probes.reseeded import differing_weights
from nnaudit.report import Evidence, Kind, Numbers, Result, Table

CLASSIFICATION = {
    "cross_entropy": "cross-entropy",
    "nll": "negative log-likelihood",
    "bce": "binary cross-entropy",
    "bce_with_logits": "binary cross-entropy",
    "kl_div": "Kullback-Leibler divergence",
}
REGRESSION = {
    "mse": "mean squared error",
    "l1": "mean absolute error",
    "smooth_l1": "smooth L1 loss",
    "huber": "Huber loss",
}

BATCHES = 8
"""Batches that are looked at, at most, to reach the number of targets."""

LARGE = 4_000_000
"""Elements of a loss's input up to which the best constant is fitted."""


@dataclass(frozen=True)
class Level:
    """One loss, averaged over all targets, and what to hold it against.

    Attributes:
        loss: of the network's outputs.
        zero: of outputs that say nothing: zero, or equal probabilities.
        best: of the best constant output; NaN where it could not be fitted.
        shuffled: of the network's outputs, given to other rows' targets; NaN where unknown.
        unit: what one nat is in this loss (class weights make it something else).
        error: standard error of ``loss``.
        rows: number of targets.
        output_rms, output_std, target_rms, target_mean, target_std: in absolute units.
    """

    loss: float
    zero: float
    best: float
    shuffled: float
    unit: float
    error: float
    rows: int
    output_rms: float
    output_std: float
    target_rms: float
    target_mean: float
    target_std: float

    @property
    def gross(self) -> bool:
        """Whether the loss is more than three times what saying nothing costs."""
        return self.loss > 3.0 * self.zero

    @property
    def high(self) -> bool:
        """Whether the loss is more than a nat above what saying nothing costs."""
        return self.loss > self.zero + self.unit

    @property
    def low(self) -> bool:
        """Whether the loss is more than a nat below the best that a constant could do."""
        return self.loss < self.best - self.unit

    @property
    def settled(self) -> bool:
        """Whether chance could not carry the loss across a limit."""
        limits = [self.zero + self.unit]
        if not math.isnan(self.best):
            limits.append(self.best - self.unit)
        return all(abs(self.loss - limit) > 4.0 * self.error for limit in limits)

    @property
    def absurd(self) -> bool:
        """Whether a regression's outputs are ten times as large as anything asked for."""
        return self.output_rms > 10.0 * max(1.0, self.target_rms)


class InitialLoss(Check):
    """Is the first loss what an untrained network should have?

    Why: before it has learned anything a network should say "I do not know", and what that costs
        can be computed: ln C for C balanced classes, ln 2 for two, the variance of the target for
        a squared error. A first loss far above it means outputs that are confidently wrong: the
        first part of the training goes into shrinking them, activations saturate, the learning
        rate that would suit the rest makes it diverge. A loss that is far below it on random
        weights means that the answer reaches the output without being learned.
    How: the very loss call of the first step is called again, with its class weights, label
        smoothing, ignored index and so on, on outputs of zero (equal probabilities), and on the
        best constant. For a classification loss the null hypothesis is that the outputs are
        uninformative and of moderate size: then the loss is between the best constant's and the
        zero output's plus half the variance of the logits, which an ordinary initialisation keeps
        well under 1 nat (the second-order expansion of log-sum-exp gives ln C + var (1 - 1/C) / 2).
        More than 1 nat above is a warning. More than 3 times is a failure, when two more runs
        under other seeds, whose weights must really be other ones, show the same: a correctly
        initialised network does not do that once, so the chance of three is far below 1e-4.
        Giving the outputs to other rows' targets tells apart logits that are too large (the loss
        stays) and outputs that depend on the targets (it does not: a margin loss, which is left
        alone, as are cosines that the author scales and targets the program makes itself). More
        than 1 nat below the best constant is a warning where the weights follow the seed. At
        least 512 targets are used, or as many as put the loss 4 standard errors away from every
        limit. For a regression loss it fails only above 3 times both references with outputs 10
        times as large as 1 and as the targets, which no customary initialisation makes of inputs
        of unit scale; targets far from zero, or large, are a warning that says how to scale them.
    Fix: scale the last layer down or back to the framework's default; normalise the inputs;
        standardise the targets, or start the output bias at their mean.
    References: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init";
        Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), section 4.1, on the output
        bias; Radford et al., Language Models are Unsupervised Multitask Learners (2019), on
        initialisation with standard deviation 0.02.
    """

    code, name, kind = "INIT101", "initial-loss", Kind.STATISTICAL
    needs = (Needs.STEPS,)
    probes = (FirstSteps,)
    consequence_of = ("DATA101", "DATA102", "LOSS101", "LOSS102", "DATA111")
    options = {"targets": 512, "ratio": 3.0}

    def run(self, audit: Audit) -> Result:
        """Measure the first loss against what saying nothing costs."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        main = first.main_loss
        if main is None:
            return self.inconclusive(_why_unknown(first))
        call = main.calls[0]
        if call.kind not in CLASSIFICATION and call.kind not in REGRESSION:
            return self.inconclusive(
                f"No theory says what the {call.kind.replace('_', ' ')} loss of an untrained "
                f"network should be; it starts at {first.steps[0].loss:.4g}."
            )
        if reason := _made_targets(first, main):
            return self.inconclusive(reason)
        feds = [_fed(audit.loop, first.batches[0])]
        level = measure([call], feds)
        if level is None or not math.isfinite(level.loss):
            return self.inconclusive(
                f"The first loss is {first.steps[0].loss:.4g}, which cannot be held against "
                "anything: see the checks on finite values and on targets."
            )
        if call.kind in REGRESSION:
            return self._regression(audit, first, main, level)
        return self._classification(audit, first, main, level)

    # --- classification ---------------------------------------------------------------------

    def _classification(self, audit: Audit, first: First, main: MainLoss, level: Level) -> Result:
        if not level.settled and level.rows < self.option(audit, "targets"):
            level = _more(audit, main) or level
        few = level.rows < self.option(audit, "targets") and not level.settled
        shown = self._shown(audit, first, main, level)
        if level.high and (not few or level.gross):
            return self._too_high(audit, first, main, level, shown)
        if few:
            return self.inconclusive(
                f"{level.rows} targets are too few to say whether a first loss of "
                f"{level.loss:.3g} differs from the {level.zero:.3g} of uninformed outputs.",
                **shown,
            )
        if level.low and level.rows >= self.option(audit, "targets"):
            return self._too_low(audit, main, level, shown)
        return self.passed(
            f"The first {CLASSIFICATION[main.calls[0].kind]} is {level.loss:.3g}, where uninformed "
            f"outputs have {level.zero:.3g}.",
            **shown,
        )

    def _too_high(
        self, audit: Audit, first: First, main: MainLoss, level: Level, shown: dict[str, Any]
    ) -> Result:
        call, seen = main.calls[0], first.completed[0]
        what = (
            f"The first {CLASSIFICATION[call.kind]} is {level.loss:.3g}, where uninformed outputs "
            f"have {level.zero:.3g}"
        )
        if any("VectorNorm" in name or "CosineSimilarity" in name for name in call.lineage):
            return self.noted(f"{what}: the logits are cosines that the author scales.", **shown)
        explained = _explained(level)
        if not explained and _random(audit, self.code) is not False:
            return self.inconclusive(
                f"{what}, and giving the outputs to other targets brings it to "
                f"{level.shuffled:.3g}: the outputs depend on the targets, as in a margin loss.",
                **shown,
            )
        if not explained:
            return self.warned(
                f"{what} and outputs given to other rows' targets {level.shuffled:.3g}: the loaded "
                "weights answer with other classes than the targets name.",
                fix="Map the labels to the order of classes the weights were trained with, or "
                "replace the last layer by a new one.",
                **shown,
            )
        layer = _output_layer(seen, call)
        where = f" of {layer}" if layer else ""
        reason = (
            f"the outputs{where} have a standard deviation of {level.output_std:.3g}, which alone "
            f"makes it {level.shuffled:.3g}: they are too large"
        )
        fix = _smaller_outputs(seen, layer)
        shown = {**shown, "module": layer}
        if not level.gross or level.loss <= self.option(audit, "ratio") * level.zero:
            return self.warned(f"{what}; {reason}.", fix=fix, **shown)
        return self._replicated(audit, level, f"{what}; {reason}", fix, shown)

    def _too_low(self, audit: Audit, main: MainLoss, level: Level, shown: dict[str, Any]) -> Result:
        what = (
            f"The first {CLASSIFICATION[main.calls[0].kind]} is {level.loss:.3g}, less than the "
            f"{level.best:.3g} of the best constant answer"
        )
        if _repeats_input(audit.loop, main):
            return self.noted(f"{what}: the targets are the inputs themselves.", **shown)
        random = _random(audit, self.code)
        if random is None:
            return self.inconclusive(
                f"{what}, and nothing shows whether the weights are random or loaded.", **shown
            )
        if not random:
            return self.passed(f"{what}: the weights are loaded and know the task.", **shown)
        again = self._again(audit, low=True)
        if not all(again):
            return self.inconclusive(f"{what}, but not under another seed.", **shown)
        return self.warned(
            f"{what}, on random weights, under three seeds: the answer reaches the output without "
            "being learned.",
            fix="Look for the target among the inputs, and check that the loss is given logits "
            "(cross-entropy) or log-probabilities (NLL).",
            **shown,
        )

    # --- regression -------------------------------------------------------------------------

    def _regression(self, audit: Audit, first: First, main: MainLoss, level: Level) -> Result:
        call, seen = main.calls[0], first.completed[0]
        if level.rows < self.option(audit, "targets"):
            level = _more(audit, main) or level
        shown = self._shown(audit, first, main, level)
        reference = max(level.zero, 0.0 if math.isnan(level.best) else level.best)
        what = f"The first {REGRESSION[call.kind]} is {level.loss:.3g}"
        if level.loss > self.option(audit, "ratio") * reference and level.absurd:
            layer = _output_layer(seen, call)
            message = (
                f"{what}, where outputs of zero have {level.zero:.3g}; the outputs have a root mean "
                f"square of {level.output_rms:.3g} for targets of {level.target_rms:.3g}: they are "
                "too large"
            )
            shown = {**shown, "module": layer}
            return self._replicated(audit, level, message, _smaller_outputs(seen, layer), shown)
        if result := self._unscaled_targets(level, reference, what, shown):
            return result
        versus = f", the best constant {level.best:.3g}" if not math.isnan(level.best) else ""
        return self.passed(f"{what}, where outputs of zero have {level.zero:.3g}{versus}.", **shown)

    def _unscaled_targets(
        self, level: Level, reference: float, what: str, shown: dict[str, Any]
    ) -> Result | None:
        mean, std = level.target_mean, level.target_std
        target = f"the targets are {mean:.4g} +- {std:.3g}"
        scale = f"y = (y - {mean:.4g}) / {std:.4g}"
        far = level.loss > 2.0 * level.best and level.target_rms > 10.0
        if far and abs(mean) > std:
            return self.warned(
                f"{what} and the best constant's {level.best:.3g}: {target}, and the outputs start "
                f"near {_near(level)}.",
                fix=f"Standardise the targets, {scale}, or start the output bias at their mean: "
                f"nn.init.constant_(last_layer.bias, {mean:.4g}).",
                **shown,
            )
        if far or (level.target_rms > 10.0 and level.output_rms < 0.1 * level.target_rms):
            return self.warned(
                f"{what}: {target}, and the outputs start with a root mean square of "
                f"{level.output_rms:.3g}.",
                fix=f"Standardise the targets: {scale}.",
                **shown,
            )
        if level.loss > 10.0 * reference and 0.0 < level.target_rms < 0.05:
            return self.warned(
                f"{what}, where outputs of zero have {level.zero:.3g}: {target}, much smaller than "
                f"the outputs, whose root mean square is {level.output_rms:.3g}.",
                fix=f"Standardise the targets: {scale}.",
                **shown,
            )
        return None

    # --- both -------------------------------------------------------------------------------

    def _replicated(
        self, audit: Audit, level: Level, message: str, fix: str, shown: dict[str, Any]
    ) -> Result:
        """Fail when two other seeds agree, else warn."""
        if reason := audit.loop.lacks(Needs.FRESH_RUN):
            return self.warned(f"{message} (not replicated: {reason}).", fix=fix, **shown)
        again = self._again(audit, low=False)
        if not again:
            return self.warned(
                f"{message} (the weights do not follow the seed, so it cannot be replicated).",
                fix=fix,
                **shown,
            )
        if not all(again):
            return self.warned(f"{message} (not so under every seed).", fix=fix, **shown)
        return self.failed(f"{message}, under three seeds.", fix=fix, **shown)

    def _again(self, audit: Audit, *, low: bool) -> list[bool]:
        """Whether it is the same under two other seeds; empty when these change no weight."""
        found: list[bool] = []
        for seed in (audit.seed + 1, audit.seed + 2):
            audit.clock.check()
            with audit.loop.relaunched(seed) as other:
                if not any(differing_weights(audit.loop, other).values()):
                    return []
                level = _first_level(other)
            if level is None:
                found.append(False)
            elif low:
                found.append(level.low)
            else:
                found.append(level.loss > self.option(audit, "ratio") * level.zero)
        return found

    def _shown(self, audit: Audit, first: First, main: MainLoss, level: Level) -> dict[str, Any]:
        call = main.calls[0]
        limit = level.zero + level.unit if call.kind in CLASSIFICATION else 3.0 * level.zero
        return {
            "measured": f"{level.loss:.4g} +- {level.error:.2g} over {level.rows} targets",
            "threshold": f"{limit:.4g}",
            "evidence": _evidence(first, main, level),
            "location": call.location or audit.loop.locate("loss") or audit.loop.locate("model"),
        }


def measure(calls: Sequence[LossCall], feds: Sequence[Fed | None]) -> Level | None:
    """Hold the pooled loss of ``calls`` against outputs that know nothing; None if impossible."""
    try:
        parts = [_one(call) for call in calls]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    rows = sum(part["rows"] for part in parts)
    if not rows:
        return None

    def pooled(name: str) -> float:
        return sum(part[name] * part["rows"] for part in parts) / rows

    squares = {name: pooled(name) for name in ("output_square", "target_square")}
    means = {name: pooled(name) for name in ("output_mean", "target_mean")}
    variance = pooled("variance")
    return Level(
        loss=pooled("loss"),
        zero=pooled("zero"),
        best=_best_constant(calls, feds),
        shuffled=pooled("shuffled"),
        unit=pooled("unit"),
        error=math.sqrt(variance / rows) if variance >= 0 else math.inf,
        rows=rows,
        output_rms=math.sqrt(squares["output_square"]),
        output_std=math.sqrt(pooled("output_variance")),
        target_rms=math.sqrt(squares["target_square"]),
        target_mean=means["target_mean"],
        target_std=math.sqrt(max(squares["target_square"] - means["target_mean"] ** 2, 0.0)),
    )


def _one(call: LossCall) -> dict[str, Any]:
    """Measure one call; losses are means over its targets."""
    prediction, target = call.input, call.target.float()
    loss = _mean_loss(call, prediction)
    zero = _mean_loss(call, _uninformed(call))
    each = _per_row(call)
    classes = _classes(call)
    spread = prediction.float().var(correction=0) if prediction.numel() > 1 else torch.zeros(())
    if call.kind in ("cross_entropy", "nll") and prediction.ndim > 1:
        # What all classes have in common does not matter to a softmax.
        spread = prediction.float().var(dim=1, correction=0).mean()
    # Class weights change the unit of the loss, and so of its error.
    scale = loss / float(each.mean()) if float(each.mean()) else 1.0
    return {
        "rows": each.numel(),
        "loss": loss,
        "zero": zero,
        "shuffled": _shuffled(call),
        "unit": zero / math.log(classes) if call.kind in CLASSIFICATION and classes > 1 else 1.0,
        "variance": float(each.var(correction=0)) * scale**2 if each.numel() > 1 else math.inf,
        "output_square": float(prediction.float().square().mean()),
        "output_variance": float(spread),
        "output_mean": float(prediction.float().mean()),
        "target_square": float(target.square().mean()),
        "target_mean": float(target.mean()),
    }


def _mean_loss(call: LossCall, prediction: Tensor) -> float:
    changes = {name: None for name in ("size_average", "reduce") if name in call.arguments}
    if call.kind == "kl_div":
        total = call.recompute(prediction, reduction="sum", **changes)
        return float(total) / max(prediction.numel() // _classes(call), 1)
    return float(call.recompute(prediction, reduction="mean", **changes))


def _per_row(call: LossCall) -> Tensor:
    """The loss of each target: of each row for a loss that compares element by element."""
    changes = {name: None for name in ("size_average", "reduce") if name in call.arguments}
    each = call.recompute(call.input, reduction="none", **changes).float()
    if call.kind in ("cross_entropy", "nll"):
        flat = each.reshape(-1)
        target = call.target
        if target.is_floating_point() or target.numel() != flat.numel():
            return flat
        counted = target.reshape(-1) != int(call.arguments.get("ignore_index", -100))
        return flat[counted]
    rows = each.shape[0] if each.ndim else 1
    return each.reshape(rows, -1).mean(dim=1)


def _classes(call: LossCall) -> int:
    shape = call.input.shape
    if call.kind in ("cross_entropy", "nll"):
        return shape[1] if len(shape) > 1 else shape[0]
    if call.kind == "kl_div":
        return shape[-1] if shape else 1
    return 2


def _uninformed(call: LossCall) -> Tensor:
    if call.kind in ("nll", "kl_div"):
        return torch.full_like(call.input, -math.log(max(_classes(call), 1)))
    return torch.full_like(call.input, 0.5 if call.kind == "bce" else 0.0)


def _shuffled(call: LossCall) -> float:
    """The loss when every row is given another row's output."""
    prediction = call.input
    rows = prediction.shape[0] if prediction.ndim else 0
    if rows < 2 or call.target.ndim == 0 or call.target.shape[0] != rows:
        return math.nan
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return _mean_loss(call, prediction[order.to(prediction.device)])


def _best_constant(calls: Sequence[LossCall], feds: Sequence[Fed | None]) -> float:
    if any(fed is None for fed in feds) or sum(call.input.numel() for call in calls) > LARGE:
        return math.nan
    averaged = [
        dataclasses.replace(call, arguments={**call.arguments, "reduction": "mean"})
        for call in calls
    ]
    sizes = [call.input.shape[0] if call.input.ndim else 1 for call in calls]
    known = [fed for fed in feds if fed is not None]
    found = bounds(averaged, known, sizes) if calls[0].kind != "kl_div" else None
    return found.constant if found is not None else math.nan


def _first_level(loop: Loop) -> Level | None:
    """Measure the loss of a relaunched run's first step."""
    batch = consecutive_batches(loop, 1)[0]
    step = loop.step(batch, observe=True)
    if step.observation is None:
        return None
    main = First((batch,), (_target(loop, batch),), (step,)).main_loss
    # Of the accumulated or scaled losses one step shows too little: their call stands alone.
    calls = step.observation.loss_calls
    call = main.calls[0] if main is not None else calls[0] if len(calls) == 1 else None
    return measure([call], [_fed(loop, batch)]) if call is not None else None


def _more(audit: Audit, main: MainLoss) -> Level | None:
    """Measure over more batches, every one from the initial state."""
    calls: list[LossCall] = []
    feds: list[Fed | None] = []
    some = consecutive_batches(audit.loop, BATCHES)
    distinct = {batches.digest(batch): batch for batch in some}
    for batch, step in zip(
        distinct.values(), initial_steps(audit, distinct.values()), strict=False
    ):
        call = _same_call(batch, step.observation, audit.loop, main)
        if call is not None:
            calls.append(call)
            feds.append(_fed(audit.loop, batch))
    return measure(calls, feds) if calls else None


def _same_call(batch: Any, seen: Observation | None, loop: Loop, main: MainLoss) -> LossCall | None:
    """Find in another step the call that corresponds to the main one."""
    if seen is None:
        return None
    if main.spelled_out:
        steps = First((batch,), (_target(loop, batch),), ())
        alone = dataclasses.replace(steps, steps=(_as_step(seen),)).main_loss
        return alone.calls[0] if alone is not None else None
    same = [c for c in seen.loss_calls if c.kind == main.calls[0].kind]
    lines = [c for c in same if c.location == main.calls[0].location]
    return (lines or same or [None])[0]


def _as_step(seen: Observation) -> Any:
    from nnaudit.loop.base import Step

    return Step(seen.total_loss or math.nan, (), 0.0, seen)


def _target(loop: Loop, batch: Any) -> Any:
    fed = _fed(loop, batch)
    return fed.target if fed is not None else None


def _fed(loop: Loop, batch: Any) -> Fed | None:
    try:
        return loop.feed(batch)
    except UserCodeError:
        return None


def _made_targets(first: First, main: MainLoss) -> str:
    """Why the targets are the program's own making and no labels; empty when they are labels."""
    targets = [call.target for call in main.calls]
    ids = targets[0]
    if not ids.is_floating_point() and ids.ndim == 1 and ids.numel() > 1:
        counting = torch.arange(ids.numel(), device=ids.device)
        if torch.equal(ids, counting):
            return "The targets count the rows, as in a contrastive loss: its start has no theory."
    same = len(targets) > 1 and all(torch.equal(ids, other) for other in targets[1:])
    if same and not first.repeats_one_batch:
        return (
            "Every batch has the same targets, so the program makes them itself (contrastive or "
            "adversarial): what such a loss starts at has no theory."
        )
    return ""


def _repeats_input(loop: Loop, main: MainLoss) -> bool:
    """Whether the network is asked for what it is given, as an autoencoder is."""
    target = main.calls[0].target
    for batch in consecutive_batches(loop, 1):
        fed = _fed(loop, batch)
        for _, tensor in batches.tensors(fed.inputs if fed is not None else ()):
            if tensor.numel() == target.numel() and torch.equal(
                tensor.to(target.device).reshape(-1).double(), target.reshape(-1).double()
            ):
                return True
    return False


def _random(audit: Audit, code: str) -> bool | None:
    """Whether the weights follow the seed; None where the run cannot be started anew."""
    del code
    if audit.loop.lacks(Needs.FRESH_RUN):
        return None
    audit.clock.check()
    with audit.loop.relaunched(audit.seed + 1) as other:
        return any(differing_weights(audit.loop, other).values())


def _explained(level: Level) -> bool:
    """Whether outputs of this size, given to any targets, cost as much."""
    if math.isnan(level.shuffled):
        return True
    excess = level.loss - level.zero
    return level.loss - level.shuffled < max(level.unit, 0.3 * excess)


def _near(level: Level) -> str:
    return "zero" if level.output_rms < 1.0 else f"{level.output_rms:.3g}"


def _why_unknown(first: First) -> str:
    start = f"the total starts at {first.steps[0].loss:.4g}"
    calls = first.completed[0].loss_calls
    if not calls:
        return f"The loss is written by hand and none that nnaudit knows; {start}."
    kinds = ", ".join(sorted({call.kind.replace("_", " ") for call in calls}))
    return f"The loss has several terms (among them {kinds}) and no theory of its own; {start}."


def _output_layer(seen: Observation, call: LossCall) -> str:
    """Return the last module whose output is as large as the loss's input, innermost first."""
    for activation in reversed(seen.activations):
        if activation.is_leaf and math.prod(activation.shape) == call.input.numel():
            return activation.module
    return ""


def _smaller_outputs(seen: Observation, layer: str) -> str:
    leaves = [each for each in seen.activations if each.is_leaf]
    large = next((each for each in leaves if each.std > 10.0), None)
    if large is None or not layer or large.module == layer:
        name = f"model.{layer}.weight" if layer else "the weight of the last layer"
        return (
            f"Scale the last layer down: nn.init.normal_({name}, std=0.02), or leave it at the "
            "framework's default."
        )
    return (
        f"The signal is too large from {large.module} ({large.type}, standard deviation "
        f"{large.std:.3g}) on: normalise the inputs to unit variance, and initialise that layer "
        "with the framework's default or nn.init.kaiming_normal_."
    )


def _evidence(first: First, main: MainLoss, level: Level) -> tuple[Evidence, ...]:
    call = main.calls[0]
    values: dict[str, float | str] = {"first loss": level.loss, "outputs of zero": level.zero}
    if not math.isnan(level.best):
        values["best constant output"] = level.best
    if call.kind in CLASSIFICATION and not math.isnan(level.shuffled):
        values["outputs given to other rows"] = level.shuffled
    values["standard deviation of the outputs"] = level.output_std
    if call.kind in REGRESSION:
        values |= {
            "mean of the targets": level.target_mean,
            "standard deviation of the targets": level.target_std,
        }
    if abs(main.factor - 1.0) > 1e-2:
        values["factor between this and the total loss"] = main.factor
    scales = Table(
        title="Scale of the last layers",
        columns=("module", "type", "mean", "standard deviation"),
        rows=tuple(_scales(first.completed[0])),
    )
    return (Numbers(title="The first loss", values=values), scales)


def _scales(seen: Observation) -> Iterator[tuple[float | str, ...]]:
    leaves = [each for each in seen.activations if each.is_leaf]
    for each in leaves[-12:]:
        yield (each.module, each.type, each.mean, each.std)
