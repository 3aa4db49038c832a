"""FIT102: what is learnt must hold for examples that were not trained on."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import (
    PredictionScore,
    classes_of,
    score_of,
    with_predictions,
)
from nnaudit.checks.fit.stream import FinalLoss, curve_of_run, standard_error
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.held_out import HeldOut, held_out_run
from nnaudit.measure.replicate import replicated
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Kind, Result, Table
from nnaudit.stats import correlated_columns, total_variation
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import Limits, evaluate_rows
from nnaudit.training.loss_bounds import input_tensors
from nnaudit.training.reference import inputs_of, reference_for, train_on

_SURE = 4.0
_NOTHING = 2.0
_WORTH = 0.15
_BEGUN, _LEARNT = 0.1, 0.25
_ROWS_PER_CLASS = 10
_REFERENCE_STEPS = 300
_COLUMNS = 64


@dataclass(frozen=True)
class Trial:
    """One training: how well the network then predicts the rows it was trained on, and others.

    ``memorised`` says whether it learnt enough of the former for the latter to mean anything.
    """

    where: str
    learnt: PredictionScore
    unseen: PredictionScore
    memorised: bool

    @property
    def suspicious(self) -> bool:
        """Whether rows were memorised, and nothing was learnt that holds for others.

        Nothing means within two deviations of chance, and too few correct answers for 15% of the
        way to all of them with a confidence of 1 - 1e-4.
        """
        return self.memorised and self.unseen.z < _NOTHING and self.unseen.upper < _WORTH


class InputDependence(Check):
    """Does the network learn anything from its inputs that holds for unseen examples?

    Why: Where labels do not belong to their inputs (one of two lists was shuffled or sorted alone),
    or where all inputs are equal or overwritten, a network still lowers its loss: it learns how
    frequent the classes are, then memorises each example. The curve looks like overfitting, but
    nothing can be learnt from such data.
    How: Predictions for rows that were not trained on are compared with their targets. If the
    inputs told nothing, the correct answers would number as those of independent predictions with
    the same shares of classes (for quantities: the correlation would be 0). The inputs matter when
    validation rows after 300 steps, or the losses of the first epoch (each taken before its row was
    trained on), are four standard deviations better: most programs end here. Only where training
    rows are being memorised and nothing is predicted for others is it tried again: 600 steps on 768
    rows of the stream with up to 512 held out, with other weights, and twice without a validation
    loader. It fails when, every time, the held-out rows are predicted within two deviations of
    chance and below 15% of the way to all correct (exact binomial bound at 1e-4), while the trained
    rows reach 25%, and a plain reference network trained on the same rows does no better.
    - A composite or hand-written loss is asked itself, and can only clear the program: it must be
      lower for validation batches, by 1% and by eight standard deviations, than with the inputs of
      their rows in ten other orders (Student's t; by chance once in 90,000 times).
    - Memorised means: 10% of the way to all correct on two training batches, or a loss in the last
      third of the run four standard errors and 1% below the best constant's (by chance once in
      30,000 runs). A network that has not learnt its training rows yet proves nothing.
    - It is only a warning with fewer than three classes, fewer than ten training rows per class,
      quantities as targets or token inputs: honest tasks of that kind may show nothing on 768 rows.
    - It is only a warning where 64 columns of the inputs are no more correlated with each other
      than independent ones (z below 4): real data are, random numbers in a smoke test are not.
    Fix: shuffle, sort and filter inputs and targets by one and the same index
    (order = rng.permutation(len(x)); x, y = x[order], y[order]) and look at a few pairs: x[i] and
    y[i] must belong together after every step of the preparation.
    References: Zhang et al., "Understanding deep learning requires rethinking generalization"
    (ICLR 2017): random labels are memorised; Andrej Karpathy, "A Recipe for Training Neural
    Networks" (2019), "input-independent baseline"; Ojala and Garriga, "Permutation Tests for
    Studying Classifier Performance" (2010).
    """

    code, name, kind = "FIT102", "input-dependence", Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.STEPS, Needs.TARGETS)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "DATA101", "DATA102", "DATA103", "DATA111", "LOSS102", "GRAD103", "GRAD108", "FIT101",
        "FIT104",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Believe unseen rows that are predicted; look closely where they are not."""
        training = audit.probe(TrainingRun)
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        if training.ending:
            return self.inconclusive(training.ending)
        last = training.moments[-1]
        score = score_of(last.val.calls)
        if score is not None and score.z > _SURE:
            return self.passed(
                f"After {len(training.losses)} steps, unseen validation examples are predicted "
                f"better than by chance: {score}.",
                **details,
            )
        if early := _first_epoch(training) or _by_moved_inputs(training):
            return self.passed(early, **details)
        learnt = score_of(last.fixed.calls)
        if learnt is None:
            return self.inconclusive(
                "The loss is composite or hand-written: predictions and targets cannot be read "
                "off it and compared.",
                **details,
            )
        begun = learnt.share >= _BEGUN and learnt.z > _SURE
        if not (begun or memorises(training)):
            return self.inconclusive(
                f"After {len(training.losses)} steps too little was learnt of the training "
                f"examples themselves to judge by others: {learnt}.",
                **details,
            )
        first = None if score is None else Trial("validation examples", learnt, score, True)
        return self._suspicious(audit, first, details)

    def _suspicious(self, audit: Audit, first: Trial | None, details: dict[str, Any]) -> Result:
        """Try again on held-out rows of the stream, until one of the trials clears the program."""
        trials = [] if first is None else [first]
        if first is not None and not first.suspicious:
            return self._unclear(first, details)
        run: HeldOut | None = None
        for fresh in (False, True)[len(trials) :]:
            run = _held_out(audit, fresh=fresh)
            found = None if run is None else _trial_of(run)
            if run is None or found is None:
                return self.inconclusive(
                    "The training examples were learnt, but there are too few held-out examples "
                    "of the same classes to say whether that helps to predict others.",
                    **details,
                )
            if not found.suspicious:
                return self._unclear(found, details)
            trials.append(found)
        assert run is not None
        return self._nothing_told(audit, trials, run, details)

    def _unclear(self, found: Trial, details: dict[str, Any]) -> Result:
        said = f"After training, on {found.where}: {found.unseen}"
        if found.unseen.z > _SURE:
            return self.passed(f"{said}.", **details)
        return self.inconclusive(
            f"{said}; on training examples: {found.learnt}. That is too little to decide.",
            **details,
        )

    def _nothing_told(
        self, audit: Audit, trials: list[Trial], run: HeldOut, details: dict[str, Any]
    ) -> Result:
        last = trials[-1]
        kind, plain = _reference(audit, run)
        said = (
            f"The network learnt its training examples ({last.learnt}), but predicts "
            f"{trials[0].where} no better than chance: {trials[0].unseen}; in another run "
            f"{last.where}: {last.unseen}"
        )
        details = {
            "evidence": (_table(trials, kind, plain), *details["evidence"]),
            "measured": str(last.unseen),
            "threshold": f"{100 * _WORTH:.0f}% of the way from chance to all correct",
            "location": audit.loop.locate("train_loader"),
            "fix": "pair every input with its own target: shuffle, sort and filter both by one "
            "order (x, y = x[order], y[order]), and look at a few pairs",
        }
        if plain is not None and plain.z >= _NOTHING:
            return self.inconclusive(
                f"{said}. But {kind} trained on the same examples predicts them: {plain}.",
                evidence=details["evidence"],
            )
        if plain is not None:
            said = f"{said}; {kind} does no better ({plain})"
        weak = _why_weak(audit, run, last, plain)
        if weak:
            return self.warned(f"{said}. Only a warning, because {weak}.", **details)
        return self.failed(f"{said}. The inputs do not belong to these targets.", **details)


def _first_epoch(training: Training) -> str:
    """Say that the first epoch's losses, all of unseen rows, fell below the constant's; or not."""
    losses = training.first_epoch[len(training.first_epoch) // 2 :]
    constant = training.constant
    if len(losses) < 5 or math.isnan(constant):
        return ""
    mean, error = statistics.mean(losses), standard_error(losses)
    if not constant - mean > max(_SURE * error, 0.02 * abs(constant)):
        return ""
    return (
        f"Examples seen for the first time have a loss of {mean:.4g}, below the {constant:.4g} of "
        "the best constant prediction: the network uses its inputs."
    )


def _by_moved_inputs(training: Training) -> str:
    """Say that unseen rows cost more with each other's inputs, where the loss is not one call."""
    moved = training.moved
    if moved is None or not moved.matters:
        return ""
    return (
        f"After {len(training.losses)} steps, unseen validation examples have a loss of "
        f"{moved.loss:.4g}, and of {moved.mean:.4g} where their inputs have changed places: the "
        "network uses its inputs."
    )


def memorises(training: Training) -> bool:
    """Whether the last third of the run, of rows met before, is below the best constant.

    That is some fifty times as many rows as the fixed batches hold, and so shows what they cannot
    yet. Asked where the first epoch's losses, of rows not met before, are not below it.
    """
    seen_before = len(training.losses) - len(training.last())
    if len(training.epoch_starts) < 2 or training.epoch_starts[1] > seen_before:
        return False
    return FinalLoss.of(training).below


def _held_out(audit: Audit, *, fresh: bool) -> HeldOut | None:
    """Train on some rows and hold others out, ``fresh`` with other weights and other rows."""
    if not fresh:
        return held_out_run(audit)
    with replicated(audit) as other:
        return held_out_run(other)


def _trial_of(run: HeldOut) -> Trial | None:
    """Compare; None where the two sets of rows are not of the same classes."""
    learnt, unseen = score_of(run.on_trained.calls), score_of(run.on_unseen.calls)
    if learnt is None or unseen is None or _shifted(run):
        return None
    memorised = learnt.share >= _LEARNT and learnt.z > _SURE
    return Trial("held-out examples", learnt, unseen, memorised)


def _shifted(run: HeldOut) -> bool:
    """Whether the held-out rows are of other classes: data in the order of their labels."""
    counts = []
    for calls in (run.on_trained.calls, run.on_unseen.calls):
        wanted = classes_of(calls)[1]
        if wanted is None:
            return False
        counts.append(wanted)
    size = int(max(wanted.max() for wanted in counts)) + 1
    shares = [torch.bincount(wanted, minlength=size).numpy() for wanted in counts]
    return total_variation(*shares) > 0.25


def _reference(audit: Audit, run: HeldOut) -> tuple[str, PredictionScore | None]:
    """Train a plain network on the same rows; return its kind and how it predicts the others."""
    trained, unseen = evaluate_rows(audit.loop, run.trained), evaluate_rows(audit.loop, run.unseen)
    network = reference_for(trained, seed=audit.seed)
    if network is None or len(unseen.calls) != len(run.unseen) or not unseen.feds:
        return "", None
    inputs = [inputs_of(trained, part) for part in range(len(trained.parts))]
    passes = math.ceil(_REFERENCE_STEPS / len(inputs))
    try:
        train_on(
            list(network.parameters()),
            lambda part: network(inputs[part]),
            trained,
            label=network.kind,
            learning_rate=1e-3,
            level=None,
            limits=Limits(passes, passes, 5.0),
            clock=audit.clock,
            seed=audit.seed,
        )
        with torch.no_grad():
            predicted = [network(inputs_of(unseen, part)) for part in range(len(unseen.parts))]
    except RuntimeError:  # shapes that differ from batch to batch
        return "", None
    return network.kind, score_of(
        [with_predictions(call, made) for call, made in zip(unseen.calls, predicted, strict=True)]
    )


def _why_weak(audit: Audit, run: HeldOut, found: Trial, plain: PredictionScore | None) -> str:
    """Say why predictions no better than chance prove no fault; empty where they do."""
    if plain is None:
        return "no reference network could be tried on these examples"
    classes = found.unseen.classes
    inputs = input_tensors(audit.loop.split_batch(run.trained[0]), batches.size(run.trained[0]))
    if classes < 3 or not any(t.is_floating_point() for t in inputs):
        return "some honest tasks cannot be learnt from so few examples"
    if _made_up(audit, run):
        return (
            "the columns of the inputs are uncorrelated, as in a smoke test on random numbers, "
            "from which nothing can be learnt"
        )
    rows = sum(batches.size(part) for part in run.trained)
    if rows < _ROWS_PER_CLASS * classes:
        return f"{rows} examples are few for {classes} classes"
    return ""


def _made_up(audit: Audit, run: HeldOut) -> bool:
    """Whether the inputs are like independent random numbers, which no measurements are."""
    parts = []
    for part in run.trained:
        fed = input_tensors(audit.loop.split_batch(part), batches.size(part))
        flat = torch.cat([t.detach().float().cpu().flatten(1) for t in fed], dim=1)
        parts.append(flat[:, :: max(1, flat.shape[1] // _COLUMNS)])
    if len({part.shape[1] for part in parts}) != 1:
        return False
    found = correlated_columns(torch.cat(parts).numpy())
    return found.sd > 0.0 and found.z < _SURE


def _table(trials: list[Trial], kind: str, plain: PredictionScore | None) -> Table:
    rows = [(f"run {i + 1}, training examples", str(t.learnt)) for i, t in enumerate(trials)]
    rows += [(f"run {i + 1}, {t.where}", str(t.unseen)) for i, t in enumerate(trials)]
    if plain is not None:
        rows.append((f"{kind}, held-out examples", str(plain)))
    title = "How well the examples are predicted"
    return Table(title=title, columns=("examples", "predicted"), rows=tuple(rows))
