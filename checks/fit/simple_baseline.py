"""FIT109: a network should do no worse than a simple one on the same batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.fit.predictions import Told, told_of
from nnaudit.checks.fit.stream import FEWEST, Standing, curve_of_run, on_its_way
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
class Rival:
    """A simple network after as many steps, and what it tells of the validation rows."""

    kind: str
    told: Told
    steps: int


class SimpleBaseline(Check):
    """Does the network do at least as well as a simple one on the same batches?

    Why: A linear model and a small standard network are what a method is worth against. Where a
    large network does worse than either after as many steps, something keeps it from learning:
    the learning rate, the initial weights, an input that does not get through, or it is the wrong
    network for such data.
    How: A linear model (where there is one target per example) and a small reference network
    (convolutional for images, recurrent for tokens, else a perceptron) see the same stream of
    batches as your network for as many steps, trained by Adam at 3e-3 on your own loss. All then
    predict the validation rows. They are compared by the share of the way from chance to all right
    (for quantities by the correlation with the targets). A network that closed 85 % of the way
    needs no comparison, one whose loss is still falling only that with the linear model. It warns
    when a simple network is ahead by 15 points of a hundred and by four standard errors, about
    3e-5 by chance, while your loss has stopped falling, or falls and validation rows do not profit:
    a quarter of the way is gone, and at the pace of the last two thirds of the run it would be 15
    points behind after nine times as many steps. A network that is still on its way, or has hardly
    moved yet, is a note, for 300 steps are a short run, and large networks with small learning
    rates start slowly. Fewer than 60 steps, all that there is time for where they are slow, are not
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
        own = told_of(training.moments[-1].val.calls)
        if training.broke is not None or own is None:
            return self.inconclusive("What the network tells of validation rows is not known.")
        details: dict[str, Any] = {"evidence": (curve_of_run(training),)}
        steps = len(training.losses)
        if own.share >= 1 - _MARGIN:
            return self.passed(
                f"After {steps} steps no simple network could do much better: {own}.", **details
            )
        # A shorter run, which is one of slow steps, never warns: it need not pay for the rivals.
        candidates = _rivals(audit, training) if steps >= FEWEST else []
        if not candidates:
            few = f"{steps} steps are too few to hold a network against a simple one: {own}."
            made = "No simple network could be made for these inputs."
            return self.inconclusive(few if steps < FEWEST else made, **details)
        best = max(candidates, key=lambda rival: rival.told.share)
        details["evidence"] = (_table(own, steps, candidates), *details["evidence"])
        said = f"On validation rows the network tells after {steps} steps: {own}; {best.kind}"
        said = f"{said}, on the same batches: {best.told}"
        if not _ahead(own, best.told):
            return self.passed(f"{said}.", **details)
        if _slow(training) and not _stands(training, own, best.told):
            return self.noted(f"{said}; but it is still on its way.", **details)
        return self.warned(
            f"{said}.",
            measured=f"{best.told.share - own.share:.2f} behind",
            threshold=f"{_MARGIN:g}",
            location=audit.loop.locate("model"),
            fix=f"begin with {best.kind}, and find out what keeps yours from learning: see "
            "STEP109, INIT101, NORM101",
            **details,
        )


def _slow(training: Training) -> bool:
    """Whether the loss is falling still, or has hardly moved: a small learning rate."""
    return on_its_way(training) or not Standing.of(training).moved


def _stands(training: Training, own: Told, other: Told) -> bool:
    """Whether it has begun to learn, and what it tells of unseen rows does not grow towards them.

    It may go on as between the last two looks, the second after three times as many steps, for two
    more such whiles: until nine times as many steps are taken.
    """
    before = told_of(training.moments[-2].val.calls) if len(training.moments) > 1 else None
    if before is None or own.share < _BEGUN:
        return False
    return other.share - (own.share + 2 * (own.share - before.share)) > _MARGIN


def _ahead(own: Told, other: Told) -> bool:
    """Whether the other tells more, by the margin and four standard errors of the difference."""
    gain = other.share - own.share
    if own.classes:
        spread = sum(told.right * (1 - told.right) for told in (own, other))
        error = math.sqrt(max(spread, 1e-12) / own.rows) / max(1 - own.chance, 1e-12)
    else:
        error = math.sqrt(sum((1 - told.share**2) ** 2 for told in (own, other)) / own.rows)
    return gain > max(_MARGIN, 4 * error)


def _rivals(audit: Audit, training: Training) -> list[Rival]:
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
    # A network on its way is not warned of, so the dearer comparison is left out.
    kinds += [] if kinds and _slow(training) else [False]
    made = [reference_for(first, linear=linear, seed=audit.seed) for linear in kinds]
    networks = [network for network in made if network is not None]
    unseen = _unseen(audit, training)
    if not networks or not unseen:
        return []
    try:
        steps = _train(audit, networks, len(training.losses))
        return [
            Rival(network.kind, told, steps)
            for network in networks
            if (told := _told_by(network, unseen)) is not None
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


def _told_by(network: Reference, unseen: list[_Pair]) -> Told | None:
    calls = []
    with torch.no_grad():
        for inputs, call in unseen:
            made = network(inputs)[: len(call.input)]
            calls.append(
                LossCall(call.kind, call.function, {**call.arguments, "input": made}, None)
            )
    return told_of(calls)


def _table(own: Told, steps: int, candidates: list[Rival]) -> Table:
    rows = [("your network", steps, str(own), own.share)]
    rows += [(rival.kind, rival.steps, str(rival.told), rival.told.share) for rival in candidates]
    return Table(
        title="What is told of the validation rows",
        columns=("network", "steps", "told", "share of the way from chance"),
        rows=tuple(rows),
    )
