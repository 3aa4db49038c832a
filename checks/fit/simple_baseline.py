"""FIT109: a network should do at least as well as a simple one on the same batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import PredictionScore, score_of
from nnaudit.checks.fit.runs import capital
from nnaudit.checks.fit.stream import FEWEST, FinalLoss, curve_of_run, on_its_way
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.training_run import Training, TrainingRun
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import densify, evaluate_rows
from nnaudit.training.loss_bounds import input_tensors
from nnaudit.training.loss_reader import LossReader
from nnaudit.training.reference import Reference, reference_for
from nnaudit.training.stopwatch import Stopwatch

_MARGIN = 0.15
_BEGUN = 0.25
_SECONDS = 4.0
_FIRST = 8
_RATE = 3e-3


@dataclass(frozen=True)
class Baseline:
    """A simple network after as many steps, and how well it predicts the validation rows."""

    kind: str
    score: PredictionScore
    steps: int


class SimpleBaseline(Check):
    """Does the network do at least as well as a simple one on the same batches?

    Why: A method is worth what it gains over a linear model and a small standard network. Where a
    large network does worse than either after as many steps, something keeps it from learning:
    the learning rate, the initial weights, an input that does not reach it, or an architecture that
    does not suit the data.
    How: A linear model (where there is one target per example) and a small reference network
    (convolutional for images, recurrent for tokens, else a perceptron) are trained by Adam at 3e-3
    on the same batches as your network, for as many steps of your own loop. All then predict the
    validation rows and are compared by how far they get from chance to all correct (for quantities
    by the correlation with the targets). It warns when a simple network is ahead by 15 points of
    100 and by four standard errors (about 3e-5 by chance) while your loss has stopped falling.
    - A network that got 85% of the way is not compared. One whose loss is still falling is compared
      with the linear model only.
    - It also warns where the loss falls but validation does not profit: your network got a quarter
      of the way, and at the pace of the last two thirds of the run it would still be 15 points
      behind after nine times as many steps.
    - A loss that is otherwise still falling or has hardly moved is a note: 300 steps are a short
      run, and large networks with small learning rates start slowly.
    - A run that was cut short, where steps are slow, is a note; fewer than 60 steps are not
      compared.
    Fix: use the simple network until you know why yours does worse: look at the learning rate
    (STEP109), the initial weights (INIT101), normalisation (NORM101).
    References: Josh Tobin, "Troubleshooting Deep Neural Networks" (Full Stack Deep Learning,
    2019), "start simple"; Rules of Machine Learning, rule 4 (Zinkevich, 2017); Lipton and
    Steinhardt, "Troubling Trends in Machine Learning Scholarship" (2018), on weak baselines.
    """

    code, name, kind = "FIT109", "simple-baseline", Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS, Needs.VAL_LOADER)
    probes = (TrainingRun,)
    trains = True
    consequence_of = (
        "FIT101", "FIT102", "FIT104", "FIT106", "DATA101", "DATA102", "DATA103", "DATA111",
        "LOSS101", "LOSS102", "LOSS104", "LOSS105", "GRAD101", "GRAD102", "GRAD106", "GRAD107",
        "GRAD108", "MODE101", "STEP101", "STEP102", "STEP107", "INIT101",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Compare where there is something to gain."""
        training = audit.probe(TrainingRun)
        own = score_of(training.moments[-1].val.calls)
        if training.ending or own is None:
            return self.inconclusive(
                training.ending
                or "Not judged: the predictions on the validation set cannot be compared with its "
                "targets."
            )
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        steps = len(training.losses)
        if own.share >= 1 - _MARGIN:
            return self.passed(
                f"After {steps} steps the validation set is predicted so well that no simple "
                f"network could do much better: {own}.",
                **details,
            )
        # A shorter run, which is one of slow steps, never warns: it need not pay for the others.
        candidates = _baselines(audit, training) if steps >= FEWEST else []
        if not candidates:
            few = f"{steps} steps are too few to compare your network with a simple one: {own}."
            made = "No simple network could be built for these inputs."
            return self.inconclusive(few if steps < FEWEST else made, **details)
        best = max(candidates, key=lambda baseline: baseline.score.share)
        details["evidence"] = (_table(own, steps, candidates), *details["evidence"])
        said = (
            f"After {steps} steps, on the validation set: {own}. {capital(best.kind)} trained on "
            f"the same batches: {best.score}"
        )
        if not _ahead(own, best.score):
            return self.passed(f"{said}.", **details)
        too_early = ""
        if training.cut:
            too_early = "There was no time for a full run."
        elif _unsettled(training) and not _falls_short(training, own, best.score):
            too_early = "Your loss is still falling or has hardly moved."
        if too_early:
            return self.noted(f"{said}. {too_early}", **details)
        return self.warned(
            f"{said}.",
            measured=f"{100 * (best.score.share - own.share):.0f} points of 100 behind",
            threshold=f"{100 * _MARGIN:.0f} points",
            location=audit.loop.locate("model"),
            fix=f"begin with {best.kind}, and find out what keeps yours from learning: check the "
            "learning rate (STEP109), the initial weights (INIT101), normalisation (NORM101)",
            **details,
        )


def _unsettled(training: Training) -> bool:
    """Whether the loss is falling still, or has hardly moved: a small learning rate."""
    return on_its_way(training) or not FinalLoss.of(training).moved


def _falls_short(training: Training, own: PredictionScore, other: PredictionScore) -> bool:
    """Whether it has begun to learn, but its validation score will not reach the other's in time.

    The score is extrapolated from the last two evaluations, the second of which came after three
    times as many steps, to nine times as many steps.
    """
    before = score_of(training.moments[-2].val.calls) if len(training.moments) > 1 else None
    if before is None or own.share < _BEGUN:
        return False
    return other.share - (own.share + 2 * (own.share - before.share)) > _MARGIN


def _ahead(own: PredictionScore, other: PredictionScore) -> bool:
    """Whether the other is better by the margin and by four standard errors of the difference."""
    gain = other.share - own.share
    if own.classes:
        spread = sum(score.right * (1 - score.right) for score in (own, other))
        error = math.sqrt(max(spread, 1e-12) / own.rows) / max(1 - own.chance, 1e-12)
    else:
        error = math.sqrt(sum((1 - score.share**2) ** 2 for score in (own, other)) / own.rows)
    return gain > max(_MARGIN, 4 * error)


def _baselines(audit: Audit, training: Training) -> list[Baseline]:
    """Train a linear model on the stream, and where yours has stopped falling the reference too.

    Empty where none can be made.
    """
    loop = audit.loop
    try:
        first = evaluate_rows(loop, [batches.clone(b) for b in consecutive_batches(loop, _FIRST)])
    except UserCodeError:
        return []
    if not first.calls or (first.bounds is not None and first.bounds.reconstruction):
        return []
    # Where rows have several targets a linear model would see those of later positions.
    kinds = [True] if first.calls[0].target.numel() == first.sizes[0] else []
    # A loss that still falls is no warning, so the more expensive comparison is left out.
    kinds += [] if kinds and _unsettled(training) else [False]
    made = [reference_for(first, linear=linear, seed=audit.seed) for linear in kinds]
    networks = [network for network in made if network is not None]
    unseen = _unseen(audit, training)
    if not networks or not unseen:
        return []
    try:
        steps = _train(audit, networks, len(training.losses))
        return [
            Baseline(network.kind, score, steps)
            for network in networks
            if (score := _predicted_by(network, unseen)) is not None
        ]
    except (RuntimeError, ValueError):  # inputs that differ from batch to batch
        return []


_Pair = tuple[list[Tensor], LossCall]


def _unseen(audit: Audit, training: Training) -> list[_Pair]:
    """Inputs and loss calls of the validation batches, where these hold the targets."""
    pairs: list[_Pair] = []
    calls = training.moments[-1].val.calls
    if len(batches.paths_of(training.val[0], calls[0].target)) != 1:
        return []  # made on the way to the loss, from random numbers perhaps: not these inputs' own
    for batch, call in zip(training.val, calls, strict=True):
        try:
            fed = audit.loop.split_batch(batches.to_device(batch, audit.loop.device))
        except UserCodeError:
            return []
        pairs.append((input_tensors(fed, batches.size(batch)), call))
    return pairs


def _train(audit: Audit, networks: list[Reference], steps: int) -> int:
    """Train all networks side by side; return for how many steps there was time."""
    loop, watch = audit.loop, Stopwatch()
    reader = LossReader(loop)
    optimizers = [torch.optim.Adam(network.parameters(), _RATE) for network in networks]
    done = 0
    for batch in consecutive_batches(loop, steps):
        audit.clock.check()
        moved = batches.to_device(batch, loop.device)
        forward = loop.forward(moved, train=True)
        call = reader.call(moved, forward.observation)
        if call is None:
            break
        inputs = input_tensors(loop.split_batch(moved), batches.size(moved))
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = call.recompute(network(inputs))
            loss.backward()  # type: ignore[no-untyped-call]
            densify(network.parameters())
            optimizer.step()
        done += 1
        if watch.seconds > _SECONDS:
            break
    return done


def _predicted_by(network: Reference, unseen: list[_Pair]) -> PredictionScore | None:
    calls = []
    with torch.no_grad():
        for inputs, call in unseen:
            made = network(inputs)[: len(call.input)]
            calls.append(
                LossCall(call.kind, call.function, {**call.arguments, "input": made}, None)
            )
    return score_of(calls)


def _table(own: PredictionScore, steps: int, candidates: list[Baseline]) -> Table:
    rows = [("your network", steps, str(own), own.share)]
    rows += [(each.kind, each.steps, str(each.score), each.score.share) for each in candidates]
    return Table(
        title="How well the validation set is predicted",
        columns=("network", "steps", "predicted", "share of the way from chance to all correct"),
        rows=tuple(rows),
    )
