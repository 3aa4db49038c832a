"""MODE102: whether the network in eval mode gives the same answer twice."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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

    Why: `F.dropout` is active by default, in eval mode too, and so is the `dropout_p` of
        `scaled_dot_product_attention`: where the model's mode is not passed on, validation is
        measured with half of the network missing, and predictions change from call to call.
    How: Runs one batch three times from the same state in eval mode: twice with the same random
        numbers, which measures the noise of the device, and once with others. Outputs must not
        differ by more than ten times that noise, or 64 roundings. Where they do, every use of
        random numbers in the forward pass is listed.
        - Fails on an active dropout called from the user's own code (unless the line says
          `training=True`), on a dropout module outside the model, which `eval()` does not reach,
          and on a layer with weights that every call creates again.
        - Warns on a declared dropout or a module kept in train mode, which may be by design (Monte
          Carlo dropout).
        - Notes random numbers that the model draws explicitly (a variational autoencoder, a
          diffusion model), and those of Python's or NumPy's where `forward` has a number or a flag
          as an argument that evaluation may set otherwise (teacher forcing).
        - Then runs it three times in a row without restoring anything. Outputs that change come
          from a state that the model keeps from batch to batch and never resets: a warning where a
          random sampler draws the batches, a note in a program without validation, which may call
          `forward` in training alone (a queue of keys is filled there).
        - Fails when the model raises in eval mode on inputs that train mode accepts, no targets
          among them, unless an assertion refuses them.
    Fix: `F.dropout(x, p, training=self.training)`
    References: PyTorch documentation of torch.nn.functional.dropout and
        scaled_dot_product_attention; Gal and Ghahramani, "Dropout as a Bayesian Approximation"
        (2016), for dropout that is meant to stay on.
    """

    code, name, kind = "MODE102", "eval-determinism", Kind.EXACT
    needs = (Needs.OWN_BATCHES,)

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
            return self.inconclusive(
                f"Not measured: the model cannot be run on a batch on its own: {error}."
            )
        try:
            repeats = _repeat(loop, fed, audit.seed)
        except UserCodeError as error:
            return self._raised(loop, fed, error)
        numbers = Numbers(
            title="Differences of the output, relative to its size",
            values={
                "same random numbers": repeats.noise,
                "other random numbers": repeats.spread,
                "tolerance": repeats.tolerance,
            },
        )
        if repeats.spread > repeats.tolerance:
            return self._differ(audit, fed, repeats, numbers)
        carried = _carried(loop, fed, audit.seed)
        if carried > repeats.tolerance and _is_shuffled(loop):
            return self._remembers(audit, carried, numbers)
        return self.passed(
            "Outputs in eval mode do not depend on random numbers.", evidence=(numbers,)
        )

    def _remembers(self, audit: Audit, carried: float, numbers: Numbers) -> Result:
        answer = self.noted if audit.loop.lacks(Needs.VAL_LOADER) else self.warned
        return answer(
            "Running the same batch three times in a row gives outputs that differ by "
            f"{_percent(carried)} of their size: the network carries a state over from previous "
            "batches, which are unrelated rows because the loader shuffles.",
            measured=f"outputs differ by {_percent(carried)}",
            threshold="the same output",
            evidence=(numbers,),
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
            fix="state = None  # in forward(), so that every batch starts from an empty state",
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
                f"{said}; called on its own it also raises in train mode.", **details
            )
        if isinstance(error.original, (AssertionError, NotImplementedError)):
            return self.inconclusive(f"{said}, by design; it may expect other inputs.", **details)
        if any(value is fed.target for value in fed.inputs):
            return self.inconclusive(
                f"{said}; it got the targets too, as in training, and may not expect them here.",
                **details,
            )
        return self.failed(
            f"{said}, but accepts the same batch in train mode.",
            measured="an error in eval mode",
            threshold="an output",
            fix="run model.eval() and model(inputs) on one batch, and fix the line that raises",
            **details,
        )

    def _differ(self, audit: Audit, fed: ModelInputs, repeats: Repeats, numbers: Numbers) -> Result:
        said = (
            f"Two outputs for the same input in eval mode differ by {_percent(repeats.spread)} of "
            f"their size (by {_percent(repeats.noise)} with the same random numbers)"
        )
        details: dict[str, Any] = {
            "measured": f"outputs differ by {_percent(repeats.spread)}",
            "threshold": _percent(repeats.tolerance),
            "evidence": (numbers, _table(repeats.draws)),
        }
        if repeats.made:
            layer = repeats.made[0]
            return self.failed(
                f"{said}: every call creates a new {layer.type} with random weights, which no "
                "optimizer holds.",
                location=layer.location,
                fix=f"self.layer = nn.{layer.type}(...)  # in __init__, not in forward",
                **details,
            )
        forgotten = [
            d for d in repeats.draws if d.dropout and (d.outside or not (d.by_module or d.declared))
        ]
        if forgotten and forgotten[0].outside:
            return self.failed(
                f"{said}: a dropout module outside the model is active, because model.eval() does "
                "not reach it.",
                location=forgotten[0].location,
                fix="self.dropout = nn.Dropout(p)  # in __init__, not in a plain list",
                **details,
            )
        if forgotten:
            what = forgotten[0].function
            off = "dropout_p=self.p if self.training else 0.0"
            return self.failed(
                f"{said}: {what} is active whatever the model's mode.",
                location=forgotten[0].location,
                fix=f"{what}(..., {off if 'attention' in what else 'training=self.training'})",
                **details,
            )
        where = next((draw.location for draw in repeats.draws if draw.location), None)
        names = ", ".join(dict.fromkeys(draw.function for draw in repeats.draws))
        why = f"it draws random numbers ({names})" if names else "the source was not found"
        details["location"] = where or audit.loop.locate("model")
        if not repeats.draws and _has_settings(audit.loop.model, fed):
            return self.noted(
                f"{said}: Python or NumPy draws random numbers for it. Training and evaluation may "
                "call the model with other settings (teacher forcing).",
                **details,
            )
        if repeats.draws and not any(draw.dropout for draw in repeats.draws):
            return self.noted(
                f"{said}: {why}. Compute metrics of such a model over several samples, or from its "
                "mean.",
                **details,
            )
        return self.warned(
            f"{said}: {why}.",
            fix="unless this is by design, draw only if self.training, and return the mean "
            "otherwise",
            **details,
        )


def _has_settings(model: nn.Module, fed: ModelInputs) -> bool:
    """Whether ``forward`` takes a number or a flag that the caller may set: a probability, say."""
    given = [value for value in (*fed.args, *fed.kwargs.values()) if not isinstance(value, Tensor)]
    parameters = list(inspect.signature(model.forward).parameters.values())
    left = [each for each in parameters[len(fed.args) :] if each.name not in fed.kwargs]
    return any(isinstance(value, (bool, float)) for value in (*given, *(p.default for p in left)))


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


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _table(draws: tuple[Draw, ...]) -> Table:
    lines = dict.fromkeys(
        (d.function, f"{d.location.file}:{d.location.line}" if d.location else "", d.by_module)
        for d in draws
    )
    return Table(
        title="Random numbers drawn in eval mode",
        columns=("function", "line", "in a torch module"),
        rows=tuple((f, where, "yes" if module else "no") for f, where, module in lines)[:20],
    )
