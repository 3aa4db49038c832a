"""FIT101: the training must be able to overfit a few fixed rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import (
    GAP,
    capital,
    curve_of,
    loss_value,
    loss_words,
    percent,
    trainable_layers,
)
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import is_scheduled
from nnaudit.measure.replicate import replicated
from nnaudit.probes.subsets import (
    CAUSES,
    TinyFit,
    TinyFitting,
    adam_run,
    fixed_rows,
    is_expensive,
    tiny_fit,
)
from nnaudit.report import Evidence, Kind, Numbers, Result
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import Limits, Run, evaluate_rows, head_of, updates_by
from nnaudit.training.loss_bounds import REGRESSION
from nnaudit.training.reference import fit_reference

ADAM_RATES = (1e-3, 1e-2)
_FEWEST_PASSES = 40


@dataclass(frozen=True)
class Diagnosis:
    """Why the rows were not fitted.

    ``verdict`` is ``slow`` (Adam fits), ``useless`` (Adam fits, and with the author's settings
    the loss does not fall), ``cut`` (no time to say), ``unclear``, ``weak`` (it underfits, perhaps
    by design) or ``broken``.
    """

    verdict: str
    reason: str
    fix: str = ""
    runs: tuple[Run, ...] = ()


class TinySubsetOverfit(Check):
    """Can the training overfit a handful of fixed examples?

    Why: A network with thousands of parameters that cannot memorise sixteen examples will not learn
    the data either. This one test finds most bugs of a training program: a detached or frozen part,
    a wrong loss, an output activation that cannot reach the targets, a learning rate that makes the
    loss diverge. It takes seconds; a long run would show the same after hours.
    How: 16 rows of the first batch (8 where each has many targets), of all classes in turn, are
    trained on exactly as the network received them, dropout off, by your own loop at your learning
    rate held constant, then at 10 times and 0.1 times that. They are fitted when the loss closes
    90% of the gap between the first loss (or that of the best constant prediction, where higher)
    and the lowest loss that the rows allow. It fails only when all of these hold: every learning
    rate fails; Adam at 1e-3 and 1e-2 on your gradients fails; no run is still falling (2% of the
    remaining loss per quarter of the run); a reference network of the right kind fits the same
    rows; less than 10% of the gap from the best constant is closed (less than 50% for a model with
    hidden layers, nothing frozen and ten parameters per target); and all this repeats on other
    rows.
    - The lowest loss follows from the targets: equal inputs with different targets, soft targets
      and label smoothing keep it above zero.
    - Quantities must close 90% of the gap from the best constant (R2 of 0.9), reconstructions 50%.
    - Where the loss is composite or hand-written the lowest loss is unknown, and a fall by 20%
      beyond the loss's own noise is enough.
    - Where only Adam fits, the optimizer's settings are at fault: a warning; a failure if at none
      of the three rates the loss came 10% of the way down or was still falling, on other rows too.
    - A model that closes more than that, but does not fit, is a warning. Healthy programs close 90%
      with room to spare.
    - Where an exact check that explains the result has failed and a step takes 20 ms or more,
      nothing is repeated and no verdict given.
    Fix: train on these rows and simplify until the loss goes to its lowest value: no
    regularisation, torch.optim.Adam(model.parameters(), lr=1e-3), a standard architecture. Then put
    the parts back one by one.
    References: Andrej Karpathy, "A Recipe for Training Neural Networks" (2019), "overfit one
    batch"; Josh Tobin, "Troubleshooting Deep Neural Networks" (Full Stack Deep Learning, 2019);
    Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 11.5.
    """

    code, name, kind = "FIT101", "tiny-subset-overfit", Kind.STATISTICAL
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS, Needs.SAME_BATCH)
    probes = (TinyFitting,)
    trains = True
    consequence_of = CAUSES

    def run(self, audit: Audit) -> Result:
        """Believe a run that fits; look closely at a program that does not."""
        tiny = audit.probe(TinyFitting)
        own = bool(audit.loop.lacks(Needs.STEPS))
        if _all_inputs_equal(tiny) and not own:
            return self._blind(audit, tiny)
        if tiny.fits(tiny.best):
            return self._fitted(audit, tiny)
        if own and not (tiny.known and _has_classes(tiny)):
            return self._unfitted(
                tiny,
                "that proves nothing, because the script makes these targets itself, if there are "
                "any",
            )
        cause = self.cause(audit)
        if cause and is_expensive(tiny.best):
            return self._unfitted(
                tiny, f"{cause} has failed, which may be why: fix that first, then rerun"
            )
        return self._suspicious(audit, tiny)

    def _unfitted(self, tiny: TinyFit, why: str) -> Result:
        """Answer where rows that were not fitted are no proof: say ``why``."""
        return self.inconclusive(
            f"{_rows(tiny)} were not fitted at {tiny.best.label}: "
            f"{loss_words(tiny.best, tiny.evaluation)}. {capital(why)}.",
            evidence=(curve_of("Loss on the fixed examples", tiny.runs.values(), tiny.evaluation),),
            threshold=_threshold(tiny),
        )

    def _fitted(self, audit: Audit, tiny: TinyFit) -> Result:
        run, author = tiny.best, tiny.runs[1.0]
        evidence = (curve_of("Loss on the fixed examples", tiny.runs.values(), tiny.evaluation),)
        remark = "" if run is author else f" at {run.label}"
        said = f"{_rows(tiny)} were fitted{remark}: {loss_words(run, tiny.evaluation)}"
        if not tiny.known:
            said = (
                f"The loss on {_rows(tiny)} fell clearly{remark}: "
                f"{loss_words(run, tiny.evaluation)}. How low it can go is unknown, because "
                f"{tiny.evaluation.unknown or 'all targets are equal'}"
            )
        if run is author:
            return self.passed(f"{said}.", evidence=evidence)
        judged = not audit.loop.lacks(Needs.STEPS) or _has_classes(tiny)
        if author.diverged and judged and not is_scheduled(audit.loop):
            again = tiny_fit(audit, second=True)
            if again.runs[1.0].diverged:
                return self.warned(
                    f"{said}. At your own learning rate it diverged, on other examples too: loss "
                    f"{author.initial:.4g} to {loss_value(author.final)}.",
                    threshold="no divergence at your learning rate",
                    evidence=evidence,
                    location=audit.loop.locate("optimizer"),
                    fix=f"lower the learning rate to {_rates(audit.loop, tiny.best_factor)}",
                )
        return self.passed(
            f"{said}. At your own learning rate: {loss_value(author.final)} after {author.steps} "
            "steps.",
            evidence=evidence,
        )

    def _suspicious(self, audit: Audit, tiny: TinyFit) -> Result:
        first = _diagnose(audit, tiny)
        runs = (*tiny.runs.values(), *first.runs)
        evidence: tuple[Evidence, ...] = (
            curve_of("Loss on the fixed examples", runs, tiny.evaluation),
        )
        best = min(runs, key=lambda run: run.final)
        said = (
            f"The training could not overfit {_rows(tiny)}. Best of {len(runs)} settings "
            f"({best.label}): {loss_words(best, tiny.evaluation)}"
        )
        details: dict[str, Any] = {"evidence": evidence, "threshold": _threshold(tiny)}
        doubtful = first.verdict == "weak" and audit.loop.lacks(Needs.STEPS)
        if first.verdict in ("cut", "unclear") or doubtful:
            return self.inconclusive(f"{said}. {capital(first.reason)}.", **details)
        if first.verdict in ("slow", "useless"):
            return self._optimizer(audit, first, details)
        details |= {"location": audit.loop.locate("model"), "fix": first.fix}
        if first.verdict == "weak":
            return self.warned(f"{said}. {capital(first.reason)}.", **details)
        verdict, fresh = _again(audit)
        if verdict == "broken":
            details["evidence"] = (*evidence, _gradients(audit.loop, tiny))
            return self.failed(
                f"{said}. {capital(first.reason)}. The same happened with {fresh}.", **details
            )
        if verdict == "weak":
            return self.warned(
                f"{said}. {capital(first.reason)}. With {fresh} it was less clear.", **details
            )
        return self.inconclusive(
            f"{said}. With {fresh} it was not so.",
            evidence=evidence,
            threshold=_threshold(tiny),
        )

    def _optimizer(self, audit: Audit, first: Diagnosis, details: dict[str, Any]) -> Result:
        """Answer where Adam fits the rows: it is the optimizer's settings, not the model."""
        details |= {"location": audit.loop.locate("optimizer"), "fix": first.fix}
        if first.verdict == "useless":
            verdict, fresh = _again(audit)
            if verdict == "useless":
                return self.failed(
                    f"{capital(first.reason)}. The same happened with {fresh}.", **details
                )
        return self.warned(f"{capital(first.reason)}.", **details)

    def _blind(self, audit: Audit, tiny: TinyFit) -> Result:
        again = tiny_fit(audit, second=True)
        if not _all_inputs_equal(again):
            return self.inconclusive(
                f"{_rows(tiny)} are all equal when they enter the network; others are not."
            )
        return self.failed(
            f"{_rows(tiny)} with different targets are all equal when they enter the network, and "
            "so are others: there is nothing to learn from.",
            threshold="inputs that differ where targets do",
            location=audit.loop.locate("train_loader"),
            fix="compare what the dataset returns for two indices, before and after its "
            "transforms: print(dataset[0], dataset[1])",
        )


def _has_classes(tiny: TinyFit) -> bool:
    """Whether the targets are classes: what a network makes, such as returns, are quantities."""
    calls = tiny.evaluation.calls
    return bool(calls) and not any(call.target.is_floating_point() for call in calls)


def _all_inputs_equal(tiny: TinyFit) -> bool:
    bounds, calls = tiny.evaluation.bounds, tiny.evaluation.calls
    if bounds is None or bounds.distinct > 1 or bounds.rows < 4 or not calls:
        return False
    rows = {digest for call in calls for digest in batches.row_digests(call.target)}
    return len(rows) > 1


def _again(audit: Audit) -> tuple[str, str]:
    """Diagnose once more on fresh randomness; return the verdict and what was fresh.

    Some draws of initial weights have only dead units: bad luck, not a broken program.
    """
    same = audit.loop.lacks(Needs.FRESH_RUN)
    with replicated(audit) as other:
        tiny = tiny_fit(other, second=True)
        verdict = "fits" if tiny.fits(tiny.best) else _diagnose(other, tiny).verdict
    return verdict, "other examples" if same else "other examples and another initialisation"


def _diagnose(audit: Audit, tiny: TinyFit) -> Diagnosis:
    """Find out why no run at the author's settings fitted the rows."""
    longest = max(run.seconds for run in tiny.runs.values())
    seconds = min(15.0, max(1.5 * longest, 5.0), max(audit.clock.remaining / 6, 0.5))
    limits = Limits(seconds=seconds) if tiny.known else Limits(150, 300, seconds)
    adams: list[Run] = []
    for rate in ADAM_RATES:
        run = adam_run(audit, tiny.evaluation, rate, limits)
        adams.append(run)
        if tiny.fits(run):
            return _slow(audit, tiny, run, rate, tuple(adams))
    runs = (*tiny.runs.values(), *adams)
    best = min(runs, key=lambda run: run.final)
    made = _known(audit, tiny, best, limits) if tiny.known else _unknown(audit, tiny, runs)
    return Diagnosis(made.verdict, made.reason, made.fix, tuple(adams))


def _slow(audit: Audit, tiny: TinyFit, run: Run, rate: float, runs: tuple[Run, ...]) -> Diagnosis:
    if tiny.best.cut:
        reason = (
            f"Adam at {rate:g} fits them in {run.steps} steps, but there was no time to take as "
            "many with your optimizer"
        )
        return Diagnosis("cut", reason, runs=runs)
    if audit.loop.rates_rise:
        reason = (
            f"Adam at {rate:g} fits them in {run.steps} steps, but the script raises its learning "
            "rate by itself, to an unknown peak"
        )
        return Diagnosis("unclear", reason, runs=runs)
    reason = (
        f"your optimizer cannot overfit {_rows(tiny)} at your learning rate or at 0.1 or 10 times "
        f"that: {loss_words(tiny.best, tiny.evaluation)} at best. Adam at learning rate {rate:g} "
        f"fits them in {run.steps} steps, so the optimizer's settings are the cause"
    )
    fix = f"optimizer = torch.optim.AdamW(model.parameters(), lr={rate:g})"
    return Diagnosis("useless" if _unmoved(tiny) else "slow", reason, fix, runs)


def _unmoved(tiny: TinyFit) -> bool:
    """Whether no run with the author's optimizer got anywhere: diverged, or stood still.

    A slow optimizer is on its way; one that is a hundred times too fast or too slow is not.
    """
    bounds = tiny.evaluation.bounds
    if bounds is None or not tiny.known:
        return False
    start = tiny.evaluation.loss
    enough = start - 0.1 * (start - bounds.floor)
    return all(run.final > enough and not run.falling(bounds.floor) for run in tiny.runs.values())


def _unknown(audit: Audit, tiny: TinyFit, runs: tuple[Run, ...]) -> Diagnosis:
    """Where the lowest loss is unknown, only a loss that does not fall at all is certain."""
    why = tiny.evaluation.unknown or "all targets are equal"
    # Fitting one order of shuffled targets for a moment lowers the loss a little.
    little = 0.05 if tiny.shuffled_targets else 0.01
    unmoved = not any(tiny.fell(run, little) for run in runs)
    if not unmoved:
        return Diagnosis("unclear", f"how low the loss can go is unknown, because {why}")
    short = any(len(run.losses) < _FEWEST_PASSES and not run.diverged for run in runs)
    if short or len(audit.loop.optimizers) > 1 or _is_low_already(tiny):
        return Diagnosis("unclear", "in a program of this kind that alone proves nothing")
    fix = "compute the loss from the model's output, without detach(), .item() or torch.no_grad()"
    if tiny.fresh_targets and not tiny.shuffled_targets:
        return Diagnosis("weak", f"the loss fell at no learning rate, but {why}", fix)
    if tiny.noise > 0.1 * abs(tiny.evaluation.loss):
        return Diagnosis("weak", "the loss fell neither at any learning rate nor with Adam", fix)
    if tiny.shuffled_targets:
        reason = (
            "the targets are shuffled apart from the inputs in every step, and the loss does not "
            "get 5% below that of the best constant prediction"
        )
        return Diagnosis(
            "broken",
            reason,
            "shuffle inputs and targets by one permutation: x, y = x[order], y[order]",
        )
    return Diagnosis(
        "broken", "the loss did not fall by 1% at any learning rate, nor with Adam", fix
    )


def _is_low_already(tiny: TinyFit) -> bool:
    """A loss that starts near zero, or at a bound, need not fall."""
    return not math.isfinite(tiny.evaluation.loss) or abs(tiny.evaluation.loss) < 1e-3


def _known(audit: Audit, tiny: TinyFit, best: Run, limits: Limits) -> Diagnosis:
    bounds = tiny.evaluation.bounds
    assert bounds is not None
    if len(best.losses) < _FEWEST_PASSES or (best.cut and best.falling(bounds.floor)):
        return Diagnosis("cut", f"there was time for {best.steps} steps only: raise --budget")
    # A quantity may be far away; a class is not, and a long run that creeps has no way to go.
    crept = len(best.losses) >= limits.most and bounds.kind not in REGRESSION
    if best.falling(bounds.floor, 0.1 if crept else 0.02):
        return Diagnosis("unclear", "the loss was still falling")
    layers = trainable_layers(audit.loop.model)
    reference = fit_reference(
        tiny.evaluation, limits=limits, clock=audit.clock, linear=layers < 2, seed=audit.seed
    )
    if reference is not None and not reference[1].fitted:
        reason = f"{reference[0]} cannot fit them either, so the data or the loss are the cause"
        return Diagnosis("unclear", reason)
    closed = bounds.closed(best.final)
    reason = f"that closes {percent(closed)} of the loss gap ({GAP})"
    if reference is not None:
        reason += f", while {reference[0]} fits them"
    doubt = _doubt(audit, tiny, best, layers=layers)
    equal = _equal_predictions(audit, tiny)
    if equal >= 0.25 and closed < 0.9:
        reason += f"; {100 * equal:.0f}% of the predictions are exactly equal after training"
    hopeless = closed < 0.1
    underfit = not doubt and (closed < 0.5 or (equal >= 0.25 and closed < 0.9))
    fix = _fix(audit.loop, equal)
    if reference is not None and (underfit or hopeless):
        return Diagnosis("broken", reason, fix)
    return Diagnosis(
        "weak", f"{reason}{f'. Only a warning, because {doubt}' if doubt else ''}", fix
    )


def _doubt(audit: Audit, tiny: TinyFit, best: Run, *, layers: int) -> str:
    """Return a reason why underfitting may be by design; empty when there is none."""
    bounds, call = tiny.evaluation.bounds, tiny.evaluation.calls[0]
    assert bounds is not None
    parameters = list(audit.loop.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    targets = sum(c.target.numel() for c in tiny.evaluation.calls)
    doubts = {
        "a reconstruction through a bottleneck need not be exact": bounds.reconstruction,
        "a model without hidden layers cannot fit everything": layers < 2,
        f"only {trained:,} parameters are trained": trained < 10 * targets,
        "more than half of the parameters are frozen": trained
        < 0.5 * sum(p.numel() for p in parameters),
        "the loss differs between two evaluations of the same weights": tiny.noise
        > 0.02 * (bounds.constant - bounds.floor),
        "the loss is not computed from the model's output alone": head_of(
            tiny.evaluation.output, call
        )
        is None,
        "the targets change with the weights": _targets_move(audit, tiny, best),
    }
    return next((reason for reason, holds in doubts.items() if holds), "")


def _targets_move(audit: Audit, tiny: TinyFit, best: Run) -> bool:
    """Whether training changes the targets, as a target network or a teacher of itself does."""
    with fixed_rows(audit.loop), updates_by(audit.loop, 1e-2):
        for _ in range(3):
            audit.loop.step(tiny.evaluation.parts[0])
        later = evaluate_rows(audit.loop, tiny.evaluation.parts[:1])
    if not later.calls:
        return True
    before, after = tiny.evaluation.calls[0].target, later.calls[0].target
    return before.shape != after.shape or not torch.equal(before, after)


def _equal_predictions(audit: Audit, tiny: TinyFit) -> float:
    """Return the share of rows whose prediction, after training, equals the commonest exactly."""
    with fixed_rows(audit.loop), updates_by(audit.loop, 1e-2):
        for _ in range(_FEWEST_PASSES):
            for part in tiny.evaluation.parts:
                audit.loop.step(part)
        later = evaluate_rows(audit.loop, tiny.evaluation.parts)
    rows = batches.row_digests(later.calls[0].input) if later.calls else []
    bounds = later.bounds
    if not rows or len(later.parts) > 1 or not bounds or len(rows) != bounds.distinct:
        return 0.0
    return max(rows.count(row) for row in rows) / len(rows)


def _fix(loop: Loop, equal: float) -> str:
    frozen = [name for name, p in loop.model.named_parameters() if not p.requires_grad]
    if frozen and len(frozen) > 0.5 * len(list(loop.model.parameters())):
        return (
            f"unfreeze {frozen[-1]} ({len(frozen)} parameters are frozen): p.requires_grad_(True)"
        )
    if equal >= 0.25:
        last = [m for m in loop.model.modules() if next(m.children(), None) is None]
        ending = type(last[-1]).__name__ if last else ""
        if last and isinstance(last[-1], (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ReLU6)):
            return f"remove the {ending} after the last layer: it limits the predictions"
    return (
        "train on these rows with plain Adam at 1e-3 and remove parts until the loss reaches the "
        "target: look for detach(), no_grad() and activations after the last layer"
    )


def _gradients(loop: Loop, tiny: TinyFit) -> Numbers:
    """What the optimizer is given on the fixed rows."""
    with fixed_rows(loop), updates_by(loop, None):
        seen = loop.step(tiny.evaluation.parts[0], observe=True).observation
    gradients = [g for g in seen.gradients if g.owned] if seen is not None else []
    missing = sum(g.norm is None for g in gradients)
    zero = sum(g.norm == 0.0 for g in gradients)
    return Numbers(
        title="Gradients on the fixed examples",
        values={
            "parameters in the optimizer": len(gradients),
            "without a gradient": missing,
            "with a gradient of zero": zero,
        },
    )


def _rates(loop: Loop, factor: float) -> str:
    rates = {float(g["lr"]) * factor for o in loop.optimizers for g in o.param_groups}
    return ", ".join(f"{rate:.2g}" for rate in sorted(rates))


def _threshold(tiny: TinyFit) -> str:
    bounds = tiny.evaluation.bounds
    if bounds is None or not tiny.known:
        return "a loss that falls by 20%"
    level = bounds.level(tiny.evaluation.loss)
    return f"a loss below {level:.4g} (lowest possible: {bounds.floor:.4g})"


def _rows(tiny: TinyFit) -> str:
    whole = " (whole batches)" if tiny.whole else ""
    return f"{tiny.evaluation.rows} fixed examples{whole}"
