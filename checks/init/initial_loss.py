"""INIT101: what the loss of an untrained network should be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.losses import LossCall, compare_with_labels
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import MainLoss
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.output_layer import has_bias, output_layer
from nnaudit.measure.reseeded import differing_weights
from nnaudit.probes.first_steps import First, FirstSteps, initial_steps
from nnaudit.report import Evidence, Kind, Numbers, Result, Status, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.loss_reader import written_out
from nnaudit.training.reference_loss import CLASSIFICATION, REGRESSION, Level, level_of
from nnaudit.wording import attribute

_SEVERITY = (
    Status.FAIL, Status.WARN, Status.NOTE, Status.INCONCLUSIVE, Status.PASS,
)  # fmt: skip
"""Of several terms the most severe answer counts."""

_LARGE_INPUTS = 3.0
"""Root mean square of inputs from which their size shows in the outputs more than chance does."""

BATCHES = 8
"""Batches that are looked at, at most, to reach the number of targets."""


class InitialLoss(Check):
    """Is the initial loss what an untrained network should have?

    Why: Before it has learnt anything a network should say "I do not know", and the cost of that
        can be computed: ln C for C balanced classes, ln 2 for two, the variance of the target for a
        squared error. A first loss far above it means confidently wrong outputs: the first part of
        training goes into shrinking them, activations saturate, and the learning rate that would
        suit the rest diverges. A loss far below it on random weights means that the answer reaches
        the output without being learnt.
    How: Repeats the first step's loss call (with its class weights, label smoothing and so on) on
        outputs of zero and on the best constant, and compares, over at least `targets` targets or
        as many as put the loss 4 standard errors from every limit.
        - Classification, too high: uninformative outputs of moderate size cost at most half the
          variance of the logits more than zero outputs (second-order expansion of log-sum-exp),
          well under 1 nat. More than 1 nat above warns; more than `ratio` times fails when two
          other seeds, with really different weights, show the same. It only warns where the whole
          architecture is a library's (torchvision's MNASNet with ten classes starts at 16).
        - Classification, too low: more than 1 nat below the best constant warns when it stays so
          with freshly initialised weights.
        - Outputs that depend on the targets (margin losses, scaled cosines, targets made by the
          program) are recognised by pairing the outputs with other rows' targets, and not judged.
        - Regression: fails only above `ratio` times both references with outputs ten times as large
          as 1 and as the targets, which no usual initialisation gives for inputs of unit scale.
          Targets far from zero, or very large, warn.
    Fix: Scale the last layer down or use the framework's default initialisation; normalise the
        inputs; standardise the targets, or start the output bias at their mean.
    References: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init";
        Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), section 4.1, on the output
        bias; Radford et al., Language Models are Unsupervised Multitask Learners (2019), on
        initialisation with standard deviation 0.02.
    """

    code, name, kind = "INIT101", "initial-loss", Kind.STATISTICAL
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    consequence_of = ("DATA101", "DATA102", "LOSS101", "LOSS102", "DATA111", "GRAD108")
    options: ClassVar[dict[str, float]] = {"targets": 512, "ratio": 3.0}

    def run(self, audit: Audit) -> Result:
        """Compare the first loss with that of uninformative outputs."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        results = [self._answer(audit, first, main) for main in first.supervised]
        if not results:
            return self.inconclusive(_why_unknown(first))
        return min(results, key=lambda result: _SEVERITY.index(result.status))

    def _answer(self, audit: Audit, first: First, main: MainLoss) -> Result:
        kind = main.calls[0].kind
        if kind not in CLASSIFICATION and kind not in REGRESSION:
            return self.inconclusive(
                f"The expected initial value of the {kind.replace('_', ' ')} loss is not known; it "
                f"starts at {first.steps[0].loss:.4g}."
            )
        if reason := first.own_targets(main):
            return self.inconclusive(
                f"{reason}; the expected initial value of such a loss is not known."
            )
        level = level_of([main.calls[0]], [_fed(audit.loop, first.batches[0])])
        if level is None or not math.isfinite(level.loss):
            return self.inconclusive(
                f"The initial loss is {first.steps[0].loss:.4g}, and no reference could be "
                "computed: see DATA101 (finite values) and DATA102 (valid targets)."
            )
        judge = self._regression if kind in REGRESSION else self._classification
        return judge(audit, first, main, level)

    def _classification(self, audit: Audit, first: First, main: MainLoss, level: Level) -> Result:
        enough = self.option(audit, "targets")
        if not level.settled or level.high or level.low:
            level = _more(audit, main, level, enough)
        few = level.rows < enough and not level.settled
        shown = _shown(audit, first, main, level)
        if level.high and (not few or self._gross(audit, level)):
            return self._too_high(audit, first, main, level, shown)
        if few:
            return self.inconclusive(
                f"{level.rows} targets are too few to tell whether an initial loss of "
                f"{level.loss:.3g} differs from the {level.zero:.3g} of equal class probabilities.",
                **shown,
            )
        if level.low:
            return self._too_low(audit, main, level, shown)
        return self.passed(
            f"{_first(main)} is {level.loss:.3g}; equal class probabilities give {level.zero:.3g}.",
            **shown,
        )

    def _gross(self, audit: Audit, level: Level) -> bool:
        return level.loss > self.option(audit, "ratio") * level.zero

    def _too_high(
        self, audit: Audit, first: First, main: MainLoss, level: Level, shown: dict[str, Any]
    ) -> Result:
        call, seen = main.calls[0], first.completed[0]
        what = (
            f"{_first(main)} is {level.loss:.3g}; equal class probabilities give {level.zero:.3g}"
        )
        if any("VectorNorm" in name or "CosineSimilarity" in name for name in call.lineage):
            return self.noted(
                f"{what}. The logits are cosine similarities with a scale set by the author.",
                **shown,
            )
        if not level.explained:
            return self._target_dependent(audit, main, what, level, shown)
        layer = output_layer(audit.loop.model, seen, call)
        of = f" of {layer}" if layer else ""
        spread = (
            f"have a standard deviation of {level.output_std:.3g}, which is too large"
            if level.output_std > 0.0
            else "are all the same wrong constant"
        )
        message = f"{what}. The outputs{of} {spread}"
        fix = _smaller_outputs(audit.loop, first, layer)
        if self._gross(audit, level):
            return self._replicated(audit, main, message, fix, {**shown, "module": layer})
        return self.warned(f"{message}.", fix=fix, module=layer, **shown)

    def _target_dependent(
        self, audit: Audit, main: MainLoss, what: str, level: Level, shown: dict[str, Any]
    ) -> Result:
        """Answer where the same outputs would cost much less beside other targets."""
        what = f"{what}, and the same outputs paired with other targets {level.shuffled:.3g}"
        fresh = _reinitialised(audit, main)
        if fresh is not None and fresh.explained and not fresh.high:
            return self.warned(
                f"{what}. Freshly initialised weights give {fresh.loss:.3g}: the loaded weights "
                "number their classes differently from the targets.",
                fix="Map the labels to the class order that the weights were trained with, or "
                "replace the last layer by a new one.",
                **shown,
            )
        return self.inconclusive(
            f"{what}: the outputs depend on the targets, as in a margin loss, whose expected "
            "initial value is not known.",
            **shown,
        )

    def _too_low(self, audit: Audit, main: MainLoss, level: Level, shown: dict[str, Any]) -> Result:
        what = (
            f"{_first(main)} is {level.loss:.3g}, below the {level.best:.3g} of the best constant "
            "output"
        )
        if _repeats_input(audit.loop, main):
            return self.noted(f"{what}: the targets are the inputs themselves.", **shown)
        fresh = _reinitialised(audit, main)
        if fresh is None:
            return self.inconclusive(
                f"{what}; it is unknown whether the weights are random or trained.", **shown
            )
        if not fresh.low:
            return self.passed(
                f"{what}: the weights are already trained (freshly initialised weights give "
                f"{fresh.loss:.3g}).",
                **shown,
            )
        return self.warned(
            f"{what}, and {fresh.loss:.3g} with freshly initialised weights: the target reaches "
            "the output without being learnt.",
            fix="Look for the target among the inputs, and give the loss what it expects: logits "
            "to cross_entropy, log-probabilities to nll_loss.",
            **shown,
        )

    def _regression(self, audit: Audit, first: First, main: MainLoss, level: Level) -> Result:
        enough = self.option(audit, "targets")
        result = self._regression_at(audit, first, main, level)
        if result is not None and level.rows < enough:
            level = _more(audit, main, level, enough)
            result = self._regression_at(audit, first, main, level)
        if result is not None:
            return result
        versus = f", the best constant {level.best:.3g}" if not math.isnan(level.best) else ""
        return self.passed(
            f"{_first(main)} is {level.loss:.3g}; outputs of zero give {level.zero:.3g}{versus}.",
            **_shown(audit, first, main, level),
        )

    def _regression_at(
        self, audit: Audit, first: First, main: MainLoss, level: Level
    ) -> Result | None:
        """Return what there is to say against ``level``; None when there is nothing."""
        what = f"{_first(main)} is {level.loss:.3g}"
        shown = _shown(audit, first, main, level)
        reference = max(level.zero, 0.0 if math.isnan(level.best) else level.best)
        if level.loss > self.option(audit, "ratio") * reference and level.absurd:
            layer = output_layer(audit.loop.model, first.completed[0], main.calls[0])
            message = (
                f"{what}; outputs of zero give {level.zero:.3g}. The outputs"
                f"{f' of {layer}' if layer else ''} have an RMS of {level.output_rms:.3g}, the "
                f"targets {level.target_rms:.3g}"
            )
            fix = _smaller_outputs(audit.loop, first, layer)
            return self._replicated(audit, main, message, fix, {**shown, "module": layer})
        if audit.loop.lacks(Needs.STEPS) and not compare_with_labels(main.calls):
            return None  # returns and the like: the program makes them, and they grow in training
        targets = (
            f"the targets have mean {level.target_mean:.4g} and standard deviation "
            f"{level.target_std:.3g}"
        )
        scale = f"y = (y - {level.target_mean:.4g}) / {level.target_std or 1.0:.4g}"
        if level.target_rms > 10.0 and level.loss > 2.0 * level.best:
            return self.warned(
                f"{what}; the best constant output gives {level.best:.3g}: {targets}, and the "
                f"outputs have an RMS of {level.output_rms:.3g}.",
                fix=f"Standardise the targets: {scale}"
                f"{_or_bias(audit, first, main, level.target_mean)}.",
                **shown,
            )
        if level.target_rms > 10.0 and level.output_rms < 0.1 * level.target_rms:
            return self.warned(
                f"{what}: {targets}, and the outputs have an RMS of only {level.output_rms:.3g}.",
                fix=f"Standardise the targets: {scale}.",
                **shown,
            )
        if 0.0 < level.target_rms < 0.05 and level.loss > 10.0 * reference:
            return self.noted(
                f"{what}; outputs of zero give {level.zero:.3g}: {targets}, much smaller than the "
                f"outputs with an RMS of {level.output_rms:.3g}.",
                fix=f"Standardise the targets: {scale}.",
                **shown,
            )
        return None

    def _replicated(
        self, audit: Audit, main: MainLoss, message: str, fix: str, shown: dict[str, Any]
    ) -> Result:
        """Fail when two other seeds agree, else warn."""
        if reason := audit.loop.lacks(Needs.FRESH_RUN):
            return self.warned(
                f"{message} (not repeated with other seeds: {reason}).", fix=fix, **shown
            )
        again = _again(audit, main)
        if not again:
            return self.warned(
                f"{message} (not repeated: no weight depends on the seed).", fix=fix, **shown
            )
        if not all(self._gross(audit, level) for level in again):
            return self.warned(f"{message} (not with every seed).", fix=fix, **shown)
        if library := _library_of(audit.loop):
            return self.warned(
                f"{message}, with the initialisation of {library}.", fix=fix, **shown
            )
        return self.failed(f"{message}, with each of 3 seeds.", fix=fix, **shown)


def _library_of(loop: Loop) -> str:
    """Return the library whose architecture the model is; empty for torch's parts and the user's.

    Some initialise their output layer for a thousand classes, which is too large for ten.
    """
    kind = type(loop.model)
    library = kind.__module__.partition(".")[0]
    return "" if library == "torch" or loop.locate(loop.model) is not None else library


def _again(audit: Audit, main: MainLoss) -> list[Level]:
    """Measure the first loss under two other seeds; empty when these change no weight."""
    found: list[Level] = []
    for seed in (audit.seed + 1, audit.seed + 2):
        audit.clock.check()
        with audit.loop.relaunched(seed) as other:
            if not any(differing_weights(audit.loop, other).values()):
                return []
            batch = next(consecutive_batches(other, 1))
            seen = other.step(batch, losses=True).observation
            call, fed = _same_call(main, other, batch, seen)
        level = level_of([call], [fed]) if call is not None else None
        if level is None:
            return []
        found.append(level)
    return found


def _more(audit: Audit, main: MainLoss, level: Level, enough: float) -> Level:
    """Measure over more batches, each from the initial state, to have ``enough`` targets."""
    count = min(BATCHES, math.ceil(enough / level.rows))
    if count == 1:
        return level
    some = consecutive_batches(audit.loop, count)
    distinct = list({batches.digest(batch): batch for batch in some}.values())
    calls, feds = [], []
    for batch, step in zip(distinct, initial_steps(audit, distinct), strict=True):
        call, fed = _same_call(main, audit.loop, batch, step.observation)
        if call is not None:
            calls.append(call)
            feds.append(fed)
    return level_of(calls, feds) or level


def _same_call(
    main: MainLoss, loop: Loop, batch: Any, seen: Observation | None
) -> tuple[LossCall | None, ModelInputs | None]:
    """Find in another step the call that corresponds to the main one."""
    fed = _fed(loop, batch)
    if seen is None:
        return None, fed
    if main.formula is not None:
        return written_out(main.formula, seen, fed.target if fed is not None else None), fed
    calls = seen.loss_calls
    same = main.index < len(calls) and calls[main.index].kind == main.calls[0].kind
    return (calls[main.index] if same else None), fed


def _fed(loop: Loop, batch: Any) -> ModelInputs | None:
    try:
        return loop.split_batch(batch)
    except UserCodeError:
        return None


def _repeats_input(loop: Loop, main: MainLoss) -> bool:
    """Whether the network is asked for what it is given, as an autoencoder is."""
    target = main.calls[0].target
    fed = _fed(loop, next(consecutive_batches(loop, 1)))
    return any(
        tensor.numel() == target.numel()
        and torch.equal(tensor.to(target.device).reshape(-1).double(), target.reshape(-1).double())
        for _, tensor in batches.tensors(fed.inputs if fed is not None else ())
    )


def _reinitialised(audit: Audit, main: MainLoss) -> Level | None:
    """Measure the first loss with the weights of all layers drawn anew; None if there is none."""
    drawn = [m for m in audit.loop.model.modules() if hasattr(m, "reset_parameters")]
    if not drawn:
        return None
    for module in drawn:
        cast(Any, module).reset_parameters()
    batch = next(consecutive_batches(audit.loop, 1))
    step = next(initial_steps(audit, [batch]))
    call, fed = _same_call(main, audit.loop, batch, step.observation)
    return level_of([call], [fed]) if call is not None else None


def _first(main: MainLoss) -> str:
    kind = main.calls[0].kind
    term = "" if main.whole else " (one term of the loss)"
    return f"The initial {({**CLASSIFICATION, **REGRESSION})[kind]}{term}"


def _why_unknown(first: First) -> str:
    start = f"it starts at {first.steps[0].loss:.4g}"
    kinds = sorted({call.kind.replace("_", " ") for call in first.completed[0].loss_calls})
    if not kinds:
        return f"The loss is written by hand, and its expected initial value is not known; {start}."
    return (
        f"The loss is not a single loss function (it uses {', '.join(kinds)}), and its expected "
        f"initial value is not known; {start}."
    )


def _or_bias(audit: Audit, first: First, main: MainLoss, mean: float) -> str:
    """The second way to reach targets far from zero; empty where the output layer has no bias."""
    layer = output_layer(audit.loop.model, first.completed[0], main.calls[0])
    if not has_bias(audit.loop.model, layer):
        return ""
    bias = f"nn.init.constant_({attribute(f'model.{layer}.bias')}, {mean:.4g})"
    return f", or start the output bias at their mean: {bias}"


def _smaller_outputs(loop: Loop, first: First, layer: str) -> str:
    leaves = [each for each in first.completed[0].activations if each.is_leaf]
    size = _input_size(loop, first.batches[0])
    if size > _LARGE_INPUTS and leaves and leaves[0].std > 1.0:
        return (
            f"Standardise the inputs: their root mean square is {size:.3g} where initial weights "
            "are made for 1, and the outputs are that much too large. x = (x - mean) / std, of the "
            "training set."
        )
    large = next((each for each in leaves if each.std > 10.0), None)
    if large is None or not layer or large.module == layer:
        name = attribute(f"model.{layer}.weight") if layer else "the weight of the last layer"
        return (
            f"Scale the last layer down: nn.init.normal_({name}, std=0.02), or keep the "
            "framework's default initialisation."
        )
    return (
        f"The signal is too large from {large.module} ({large.type}, standard deviation "
        f"{large.std:.3g}) on: normalise the inputs to unit variance, and initialise that layer "
        "with the framework's default or nn.init.kaiming_normal_."
    )


def _input_size(loop: Loop, batch: Any) -> float:
    """Return the root mean square of all numbers that the model is given; 0 where they are ids."""
    fed = _fed(loop, batch)
    tensors = batches.tensors(fed.inputs if fed is not None else ())
    inputs = [tensor for _, tensor in tensors if tensor.is_floating_point()]
    numbers = torch.cat([x.detach().double().flatten() for x in inputs]) if inputs else None
    return 0.0 if numbers is None or not len(numbers) else float(numbers.square().mean().sqrt())


def _shown(audit: Audit, first: First, main: MainLoss, level: Level) -> dict[str, Any]:
    call = main.calls[0]
    limit = level.zero + level.unit if call.kind in CLASSIFICATION else 3.0 * level.zero
    return {
        "measured": f"{level.loss:.4g} +- {level.error:.2g} over {level.rows} targets",
        "threshold": f"{limit:.4g}",
        "evidence": _evidence(first, main, level),
        "location": call.location or audit.loop.locate("loss") or audit.loop.locate("model"),
    }


def _evidence(first: First, main: MainLoss, level: Level) -> tuple[Evidence, ...]:
    call = main.calls[0]
    values: dict[str, float | str] = {"initial loss": level.loss, "outputs of zero": level.zero}
    if not math.isnan(level.best):
        values["best constant output"] = level.best
    if call.kind in CLASSIFICATION and not math.isnan(level.shuffled):
        values["outputs paired with other targets"] = level.shuffled
    values["standard deviation of the outputs"] = level.output_std
    if call.kind in REGRESSION:
        values["mean of the targets"] = level.target_mean
        values["standard deviation of the targets"] = level.target_std
    if abs(main.factor - 1.0) > 1e-2:
        values["total loss divided by this term"] = main.factor
    scales = Table(
        title="Scale of the last layers",
        columns=("module", "type", "mean", "standard deviation"),
        rows=tuple(_scales(first.completed[0])),
    )
    noise = {"initial loss": level.error}
    return (Numbers(title="Initial loss", values=values, noise=noise), scales)


def _scales(seen: Observation) -> Iterator[tuple[float | str, ...]]:
    leaves = [each for each in seen.activations if each.is_leaf]
    for each in leaves[-12:]:
        yield (each.module, each.type, each.mean, each.std)
