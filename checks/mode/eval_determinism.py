"""MODE102: whether the network in eval mode gives the same answer twice."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, describe, user_code
from nnaudit.loop.base import Loop, Needs, seed_everything
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.randomness import Draw, Made, RandomnessTap
from nnaudit.report import Kind, Numbers, Result, Table, Text
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs, has_forward
from nnaudit.training.evaluation import IN_PARTS, distance, evaluate, fed_to, rounding

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@dataclass(frozen=True)
class Repeats:
    """Differences of outputs in eval mode from one state, against their size.

    ``noise`` is with the same random numbers, ``spread`` with others; ``made`` are the layers that
    every call makes anew.
    """

    noise: float
    spread: float
    tolerance: float
    draws: tuple[Draw, ...]
    made: tuple[Made, ...] = ()


class EvalDeterminism(Check):
    """Does the network in eval mode give the same output for the same input?

    Why: F.dropout drops by default, in eval mode too, and so does the dropout_p of
        scaled_dot_product_attention: where the model's mode is not handed on, validation is
        measured with half of the network missing, and predictions change from call to call.
    How: Exact. One batch is run three times from the same state in eval mode: twice with the same
        random numbers, which measures what the device's arithmetic alone does, and once with
        others. The output must not differ by more than ten times the first difference, or 64
        units of rounding. Where it does, every use of random numbers in the forward pass is
        listed. A dropout called from the user's own code and switched on fails, unless the line
        itself says training=True, and so does a dropout module that is no part of the model, so
        that no eval() reaches it, and a layer with weights that every call makes anew, the second
        as well as the first. A declared dropout, or a module of the model kept in train mode,
        may be meant (Monte Carlo dropout) and is a warning. Random numbers that the model draws
        in so many words are how it samples (a variational autoencoder, a diffusion model), and
        are a note. Then it is run three times in a row with nothing put back: outputs that differ
        both times come of what the model keeps from batch to batch, a hidden state that is never
        reset. Where a random sampler draws the batches, so that rows do not continue each other,
        that is a warning. A model that raises in eval mode and in train mode takes the same
        inputs, no targets among them, fails, unless it refuses them by an assertion.
    Fix: F.dropout(x, p, training=self.training)
    References: PyTorch documentation of torch.nn.functional.dropout and
        scaled_dot_product_attention; Gal and Ghahramani, "Dropout as a Bayesian Approximation"
        (2016), for dropout that is meant to stay on.
    """

    code, name, kind = "MODE102", "eval-determinism", Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)

    def run(self, audit: Audit) -> Result:
        """Run one batch three times."""
        loop = audit.loop
        if not has_forward(loop.model):
            return self.skipped(IN_PARTS)
        batch = batches.clone(next(iter(consecutive_batches(loop, 1))))
        try:
            with preserved(loop.subjects):
                fed = fed_to(loop, batch)
        except UserCodeError as error:
            return self.inconclusive(f"The model could not be run on a batch by itself: {error}.")
        try:
            repeats = _repeat(loop, fed, audit.seed)
        except UserCodeError as error:
            return self._raised(loop, fed, error)
        numbers = Numbers(
            title="Differences of the output, against its size",
            values={
                "same random numbers": repeats.noise,
                "other random numbers": repeats.spread,
                "tolerance": repeats.tolerance,
            },
        )
        if repeats.spread > repeats.tolerance:
            return self._differ(audit, repeats, numbers)
        carried = _carried(loop, fed, audit.seed)
        if carried > repeats.tolerance and _is_shuffled(loop):
            return self._remembers(audit, carried, numbers)
        return self.passed("Outputs in eval mode do not depend on chance.", evidence=(numbers,))

    def _remembers(self, audit: Audit, carried: float, numbers: Numbers) -> Result:
        return self.warned(
            f"The same batch three times in a row gives outputs that differ by {100 * carried:.2g} "
            "% of their size: the network carries something over from the batches before, and the "
            "loader shuffles, so those are others' rows.",
            measured=f"{100 * carried:.2g} % apart",
            threshold="the same output",
            evidence=(numbers,),
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
            fix="begin every batch anew: state = None in forward(), not self.state",
        )

    def _raised(self, loop: Loop, fed: ModelInputs, error: UserCodeError) -> Result:
        """Name the crash; it is proof only where train mode takes the very same inputs."""
        said = f"In eval mode the model raises {describe(error.original)}"
        details: dict[str, Any] = {
            "location": error.location,
            "evidence": (Text(title="Traceback", text=error.traceback),),
        }
        if not _runs_in_training(loop, fed):
            return self.inconclusive(
                f"{said}; called by itself in train mode it raises too.", **details
            )
        if isinstance(error.original, (AssertionError, NotImplementedError)):
            return self.inconclusive(f"{said}, on purpose; it may want other inputs.", **details)
        if any(value is fed.target for value in fed.inputs):
            return self.inconclusive(
                f"{said}; it was given the targets too, as in training, and may not want them.",
                **details,
            )
        return self.failed(
            f"{said}; in train mode it takes the same batch.",
            measured="an error in eval mode",
            threshold="an output",
            fix="run model.eval() and model(inputs) on one batch, and mend the line that raises",
            **details,
        )

    def _differ(self, audit: Audit, repeats: Repeats, numbers: Numbers) -> Result:
        said = (
            f"Two outputs of one input in eval mode differ by {100 * repeats.spread:.2g} % of "
            f"their size (by {100 * repeats.noise:.2g} % with the same random numbers)"
        )
        details: dict[str, Any] = {
            "measured": f"{100 * repeats.spread:.2g} % apart",
            "threshold": f"{100 * repeats.tolerance:.2g} %",
            "evidence": (numbers, _table(repeats.draws)),
        }
        if repeats.made:
            layer = repeats.made[0]
            return self.failed(
                f"{said}: every call makes a new {layer.type}, whose weights are random and which "
                "no optimizer holds.",
                location=layer.location,
                fix=f"self.layer = nn.{layer.type}(...)  # in __init__, not in forward",
                **details,
            )
        forgotten = [
            d for d in repeats.draws if d.dropout and (d.outside or not (d.by_module or d.declared))
        ]
        if forgotten and forgotten[0].outside:
            return self.failed(
                f"{said}: a dropout module that is no part of the model, so that model.eval() does "
                "not reach it, is switched on.",
                location=forgotten[0].location,
                fix="self.dropout = nn.Dropout(p)  # in __init__, and in no plain list",
                **details,
            )
        if forgotten:
            what = forgotten[0].function
            off = "dropout_p=self.p if self.training else 0.0"
            return self.failed(
                f"{said}: {what} is switched on, whatever the model's mode.",
                location=forgotten[0].location,
                fix=f"{what}(..., {off if 'attention' in what else 'training=self.training'})",
                **details,
            )
        where = next((draw.location for draw in repeats.draws if draw.location), None)
        names = ", ".join(dict.fromkeys(draw.function for draw in repeats.draws))
        why = f"it draws random numbers ({names})" if names else "where from was not seen"
        details["location"] = where or audit.loop.locate("model")
        if repeats.draws and not any(draw.dropout for draw in repeats.draws):
            return self.noted(
                f"{said}: {why}. Metrics of such a model need several samples, or its mean.",
                **details,
            )
        return self.warned(
            f"{said}: {why}.",
            fix="where it is not meant: draw only if self.training, and return the mean otherwise",
            **details,
        )


def _runs_in_training(loop: Loop, fed: ModelInputs) -> bool:
    """Whether the model, in train mode and without gradients, takes what it was given."""
    args, kwargs = batches.clone((fed.args, fed.kwargs))
    try:
        with preserved(loop.subjects), torch.no_grad(), user_code("running the model"):
            loop.model.train()
            loop.model(*args, **kwargs)
    except UserCodeError:
        return False
    return True


def _repeat(loop: Loop, fed: ModelInputs, seed: int) -> Repeats:
    outputs, tap = [], RandomnessTap(loop.models)
    for number in (seed, seed, seed + 1):
        with preserved(loop.subjects), tap:
            tap.draws.clear()
            seed_everything(number)
            outputs.append(evaluate(loop, fed))
    noise = distance(outputs[0], outputs[1])
    spread = distance(outputs[0], outputs[2])
    made = _made_again(loop, fed, tap) if tap.made else ()
    return Repeats(noise, spread, max(10 * noise, rounding(outputs[0])), tuple(tap.draws), made)


def _made_again(loop: Loop, fed: ModelInputs, tap: RandomnessTap) -> tuple[Made, ...]:
    """Return the layers that a second call makes too: some are made once, by the first."""
    with preserved(loop.subjects):
        evaluate(loop, fed)
        with tap:
            tap.made.clear()
            evaluate(loop, fed)
    return tuple(tap.made)


def _carried(loop: Loop, fed: ModelInputs, seed: int) -> float:
    """Return by how much outputs of one batch differ when nothing is put back in between.

    The smaller of two differences in a row: what is made once, at the first call, is no state. Nor
    is a generator of random numbers of the model's own.
    """
    attributes = [value for module in loop.model.modules() for value in vars(module).values()]
    if any(isinstance(value, _GENERATORS) for value in attributes):
        return 0.0
    outputs = []
    with preserved(loop.subjects):
        for _ in range(3):
            seed_everything(seed)
            outputs.append(evaluate(loop, fed))
    return min(distance(outputs[0], outputs[1]), distance(outputs[1], outputs[2]))


def _is_shuffled(loop: Loop) -> bool:
    access = RandomAccess.of(loop.train_loader)
    return access is not None and access.shuffles


def _table(draws: tuple[Draw, ...]) -> Table:
    lines = dict.fromkeys(
        (d.function, f"{d.location.file}:{d.location.line}" if d.location else "", d.by_module)
        for d in draws
    )
    return Table(
        title="Random numbers drawn in eval mode",
        columns=("function", "line", "by a module of torch"),
        rows=tuple((f, where, "yes" if module else "no") for f, where, module in lines)[:20],
    )
