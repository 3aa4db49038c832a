"""Training on a few fixed rows, and saying what came of it.

The rows are fixed: the same tensors enter the network in every pass, augmentation frozen in them.
What takes the steps may be the user's loop, the user's loop with Adam in place of the user's
optimizer, or a plain loop over another network: :func:`train` does not know.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnaudit.context import Clock
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.control import constant_lr
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import call_of_total
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs, main_tensor
from nnaudit.training.loss_bounds import Bounds, bounds, placeholder
from nnaudit.training.loss_reader import LossReader
from nnaudit.training.stopwatch import Stopwatch

# --- what the program does with some rows ----------------------------------------------------


@dataclass(frozen=True)
class RowEvaluation:
    """What the program makes of some batches before any update.

    Attributes:
        parts: the batches, on the loop's device.
        feds: each taken apart; empty when that failed.
        calls: the call of a torch loss function that made each batch's loss; empty when the loss
            is not one call.
        outputs: what the model returned for each.
        sizes: rows of each.
        loss: the mean of their losses.
        bounds: what the loss can come down to; None when unknown.
        unknown: why ``bounds`` is None, as half a sentence.
    """

    parts: tuple[Any, ...]
    feds: tuple[ModelInputs, ...]
    calls: tuple[LossCall, ...]
    output: Any
    sizes: tuple[int, ...]
    loss: float
    bounds: Bounds | None
    unknown: str = ""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.sizes)


def evaluate_rows(loop: Loop, parts: Sequence[Any]) -> RowEvaluation:
    """Run the program on ``parts`` in train mode, without an update.

    Raises:
        UserCodeError: the user's code raised.
    """
    moved = tuple(batches.to_device(part, loop.device) for part in parts)
    losses: list[float] = []
    mains: list[LossCall | None] = []
    output: Any = None
    reader = LossReader(loop)
    for i, part in enumerate(moved):
        seen = _observed(loop, part)
        losses += [seen.total_loss] if seen.total_loss is not None else []
        main = reader.call(part, seen)
        output = output if i else seen.output
        mains.append(without_input(main) if i and main is not None else main)
    loss = sum(losses) / len(losses) if losses else math.nan
    sizes = tuple(batches.size(part) for part in moved)
    try:
        feds = tuple(loop.called_with(part) for part in moved)
    except UserCodeError:
        feds = ()
    calls = tuple(call for call in mains if call is not None)
    if len(calls) < len(moved) or len({call.kind for call in calls}) > 1:
        calls = ()
    found = bounds(calls, feds, sizes) if calls and feds and min(sizes) > 0 else None
    unknown = "" if found else _why_unknown(calls)
    return RowEvaluation(moved, feds, calls, output, sizes, loss, found, unknown)


def without_input(call: LossCall) -> LossCall:
    """Return ``call`` with a placeholder for its input, which may be large."""
    shape = call.input.shape
    return dataclasses.replace(
        call, arguments={**call.arguments, "input": placeholder(call.input, shape)}
    )


def _observed(loop: Loop, part: Any) -> Observation:
    try:
        forward = loop.forward(part, train=True)
    except UserCodeError:  # a loss that needs gradients on the way: a penalty on them, say
        forward = None
    if forward is not None and forward.loss is not None:
        return forward.observation
    with updates_by(loop, None):
        return loop.step(part, losses=True).observation or Observation()


def _why_unknown(calls: tuple[LossCall, ...]) -> str:
    if not calls:
        return "the loss is composite or hand-written"
    return f"no lower bound of {calls[0].kind} is known"


# --- from the model's output to the loss's input -----------------------------------------------

_VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t,
    lambda t: t.movedim(1, -1) if t.ndim > 2 else t,
    lambda t: t.movedim(-1, 1) if t.ndim > 2 else t,
    lambda t: t[:, :-1] if t.ndim > 2 else t,
    lambda t: t.transpose(0, 1) if t.ndim > 2 else t,
)
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t,
    lambda t: t.log_softmax(1 if t.ndim > 1 else 0),
    lambda t: t.softmax(1 if t.ndim > 1 else 0),
    torch.sigmoid,
    torch.tanh,
    torch.relu,
)


@dataclass(frozen=True)
class Head:
    """How the loss's input follows from the model's output: found by trying, not by reading."""

    view: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]

    def __call__(self, output: Any, shape: torch.Size) -> Tensor:
        """Return the loss's input, of ``shape``, for ``output``.

        Raises:
            RuntimeError: the output has another number of elements.
        """
        tensor = main_tensor(output)
        if tensor is None:
            raise RuntimeError("the model returned no tensor")
        return self.activation(self.view(tensor).reshape(shape))


def head_of(output: Any, call: LossCall) -> Head | None:
    """Find the head for which ``output`` gives ``call``'s input; None when none of ours does."""
    tensor, wanted = main_tensor(output), call.input
    if tensor is None:
        return None
    for activation in _ACTIVATIONS:
        for view in _VIEWS:
            try:
                made = Head(view, activation)(tensor, wanted.shape)
            except RuntimeError:
                continue
            if torch.allclose(made.float(), wanted.float(), rtol=1e-3, atol=1e-4):
                return Head(view, activation)
    return None


# --- steps with other updates ------------------------------------------------------------------


def densify(parameters: Iterable[Tensor]) -> None:
    """Make sparse gradients dense: Adam refuses them."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


class _Substitute:
    """Undoes an optimizer's updates and makes its own from the same gradients."""

    def __init__(self, optimizer: torch.optim.Optimizer, learning_rate: float | None) -> None:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._saved: list[Tensor] = []
        self._own = (
            None
            if learning_rate is None
            else torch.optim.Adam([p for p in self._parameters if p.requires_grad], learning_rate)
        )

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._saved = [p.detach().clone() for p in self._parameters]
        if isinstance(optimizer, torch.optim.LBFGS):  # one evaluation, at the present weights
            optimizer.param_groups[0].update(max_iter=1, line_search_fn=None)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, saved in zip(self._parameters, self._saved, strict=True):
                parameter.copy_(saved)
        densify(self._parameters)
        if self._own is not None:
            self._own.step()


@contextmanager
def updates_by(loop: Loop, learning_rate: float | None) -> Iterator[None]:
    """Let a fresh Adam at ``learning_rate`` update the weights; None leaves them as they are.

    The user's step runs as ever, with its forward, loss, scaling and clipping; what its
    optimizers change is undone, whatever they are, and Adam steps with the gradients that they
    were given.
    """
    with ExitStack() as stack:
        for optimizer in loop.optimizers:
            own = _Substitute(optimizer, learning_rate)
            stack.callback(optimizer.register_step_pre_hook(own.before).remove)
            stack.callback(optimizer.register_step_post_hook(own.after).remove)
        stack.enter_context(constant_lr(loop, 0.0))
        yield


# --- training ----------------------------------------------------------------------------------

_FEW_PASSES = 25


@dataclass(frozen=True)
class Limits:
    """How long to train: ``passes`` over the rows, up to ``most`` while the loss still falls.

    ``seconds`` are counted as on a quiet machine.
    """

    passes: int = 300
    most: int = 1500
    seconds: float = 10.0


@dataclass(frozen=True)
class Run:
    """One training on fixed rows.

    Attributes:
        label: what took the steps, for people: ``your optimizer, lr x 10``.
        losses: the mean loss of each pass over the rows, each taken before its updates.
        steps: optimizer steps taken.
        seconds: what they cost, as on a quiet machine.
        fitted: the loss came down to the level asked for.
        crashed: what the user's code raised once the run had diverged; else empty.
        cut: the time was up before the run had its full length.
        joined: the loss began as one call of a loss function and ended as more than that: a term
            that was zero at first, as one of pseudo-labels, has joined it.
    """

    label: str
    losses: tuple[float, ...]
    steps: int
    seconds: float
    fitted: bool = False
    crashed: str = ""
    cut: bool = False
    joined: bool = False

    @property
    def initial(self) -> float:
        """The loss of the first pass."""
        return self.losses[0]

    @property
    def final(self) -> float:
        """The mean of the last two passes; infinite when the run diverged to NaN."""
        last = [loss if math.isfinite(loss) else math.inf for loss in self.losses[-2:]]
        return math.inf if self.crashed else sum(last) / len(last)

    @property
    def diverged(self) -> bool:
        """Whether it ended in NaN, infinity, or far above where it began."""
        scale = max(abs(self.initial), 1e-12)
        return not self.fitted and not self.final <= self.initial + scale

    def falling(self, floor: float = 0.0, share: float = 0.02) -> bool:
        """Whether the last quarter closed ``share`` of what was left, beyond its own noise."""
        if self.diverged:
            return False
        return _falling(self.losses, floor, share)


def _falling(losses: Sequence[float], floor: float, share: float) -> bool:
    quarter = len(losses) // 4
    if quarter < 3:
        return True  # too early to say otherwise
    before = np.asarray(losses[-2 * quarter : -quarter])
    after = np.asarray(losses[-quarter:])
    fall = float(before.mean() - after.mean())
    noise = float(np.diff(np.concatenate((before, after))).std()) / math.sqrt(quarter)
    return fall > max(share * abs(float(before.mean()) - floor), 3 * noise)


def train(
    step: Callable[[int], float],
    parts: int,
    *,
    label: str,
    level: float | None,
    floor: float,
    limits: Limits,
    clock: Clock,
    seed: int = 0,
) -> Run:
    """Take steps in passes over ``parts`` batches until they are fitted or it is hopeless.

    Args:
        step: takes the step on the batch of that number and returns the loss before it.
        level: stop once the loss of a pass has settled below this.
        floor: the lowest possible loss, to say what is left; 0 where it is not known.

    Raises:
        OutOfBudgetError: the audit's time is used up.
        UserCodeError: the very first step raised.
    """
    order = np.random.default_rng(seed)
    watch = Stopwatch()
    passes: list[float] = []
    steps, crashed, fitted, cut = 0, "", False, False
    while not (fitted or crashed or cut or _settled(passes, floor, limits)):
        clock.check()
        taken: list[float] = []
        for part in order.permutation(parts) if passes else range(parts):
            try:
                taken.append(step(int(part)))
            except UserCodeError as error:
                if not passes and not taken:
                    raise
                crashed = str(error)
                break
            steps += 1
            if not math.isfinite(taken[-1]) or _too_long(watch.seconds, len(passes), limits):
                cut = True
                break
        passes += [sum(taken) / len(taken)] if taken else []
        fitted = level is not None and _fitted(passes, level)
    seconds = watch.seconds
    cut = cut and math.isfinite(passes[-1])
    return Run(label, tuple(passes), steps, seconds, fitted, crashed, cut)


def _too_long(elapsed: float, passes: int, limits: Limits) -> bool:
    """Slow steps get three times as long: most networks that fit do so in a few."""
    return elapsed > limits.seconds * (1 if passes >= _FEW_PASSES else 3)


def _fitted(passes: list[float], level: float) -> bool:
    return len(passes) > 1 and max(passes[-2:]) <= level


def _settled(passes: list[float], floor: float, limits: Limits) -> bool:
    n = len(passes)
    if n >= limits.most or (passes and not math.isfinite(passes[-1])):
        return True
    # Looked at now and then: a plateau in the middle of a run is no plateau.
    looked = n >= limits.passes and (n - limits.passes) % max(limits.passes // 3, 1) == 0
    return looked and not _falling(passes, floor, 0.02)


def fit(
    loop: Loop,
    evaluation: RowEvaluation,
    *,
    label: str,
    limits: Limits,
    clock: Clock,
    seed: int = 0,
) -> Run:
    """Train the user's program on the rows of ``evaluation``, with whatever knobs are turned.

    The level is :meth:`~nnaudit.training.loss_bounds.Bounds.level`; where the bounds are unknown,
    half of the first loss.

    Raises:
        OutOfBudgetError: the audit's time is used up.
        UserCodeError: the first step raised.
    """
    known = evaluation.bounds
    if known is not None and known.informative:
        level = known.level(evaluation.loss)
    else:
        level = evaluation.loss - 0.5 * abs(evaluation.loss)
    first: list[Observation | None] = []

    def step(part: int) -> float:
        taken = loop.step(evaluation.parts[part], losses=not first)
        if not first:
            first.append(taken.observation)
        return taken.loss

    run = train(
        step,
        len(evaluation.parts),
        label=label,
        level=level,
        floor=known.floor if known is not None else level,
        limits=limits,
        clock=clock,
        seed=seed,
    )
    if run.fitted or known is None or not math.isfinite(run.final) or not _is_one_call(first[0]):
        return run
    last = loop.step(evaluation.parts[0], losses=True).observation
    return dataclasses.replace(run, joined=not _is_one_call(last))


def _is_one_call(seen: Observation | None) -> bool:
    return seen is not None and call_of_total(seen) is not None
