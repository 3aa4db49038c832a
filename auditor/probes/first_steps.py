"""The first few steps of the training, looked into: what most checks of a program's wiring need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Step
from nnaudit.loop.batch_target import target_of
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.total_loss import MainLoss, call_series, main_loss_of
from nnaudit.loop.trace import Event, Recorder, without_gradients
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.memory import slim, slimmed
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.training.loss_reader import find_formula, written_out

STEPS = 5
"""Enough to tell a constant factor from a second loss term, and zero from not yet moved."""


@dataclass(frozen=True)
class First:
    """What :class:`FirstSteps` saw.

    Attributes:
        batches: the batches the steps were taken on, as the loader made them.
        targets: what the outputs were compared with, by batch; None where unknown.
        steps: the steps that ended, each with its observation. Outputs are kept for the first
            step only; loss inputs up to :data:`MOST_BYTES`.
        error: what ended them early; None when nothing did.
        partial: what was seen of the step that raised.
        still: trainable parameters of the model that are bit for bit what they were before.
        events: what happened in each step that ended, in order.
        written_out: the total loss as a function of torch that the user wrote by hand.
    """

    batches: tuple[Any, ...]
    targets: tuple[Any, ...]
    steps: tuple[Step, ...]
    error: UserCodeError | None = None
    partial: Observation | None = None
    still: frozenset[str] = frozenset()
    events: tuple[tuple[Event, ...], ...] = ()
    written_out: MainLoss | None = None

    @property
    def completed(self) -> tuple[Observation, ...]:
        """What was seen of each step that ended."""
        return tuple(step.observation for step in self.steps if step.observation is not None)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What was seen of every step, of one that raised too."""
        return (*self.completed, *((self.partial,) if self.partial is not None else ()))

    def require(self) -> None:
        """Raise what a step raised: for checks that cannot answer from what was seen until then.

        Raises:
            UserCodeError: one of the steps raised it.
        """
        if self.error is not None:
            raise self.error

    @property
    def repeats_one_batch(self) -> bool:
        """Whether all batches hold the same values: training on the full batch."""
        return len({batches.digest(batch) for batch in self.batches}) == 1

    @property
    def main_loss(self) -> MainLoss | None:
        """The loss function that explains the total loss of every step; None when none does."""
        return (main_loss_of(self.completed) or self.written_out) if self.steps else None

    def own_targets(self, main: MainLoss) -> str:
        """Say what shows that the program makes the targets itself; empty when they are labels."""
        targets = [call.target for call in main.calls]
        ids = targets[0]
        if (
            ids.ndim == 1
            and ids.numel() > 1
            and not ids.is_floating_point()
            and torch.equal(ids, torch.arange(len(ids), device=ids.device, dtype=ids.dtype))
        ):
            return "The targets count the rows, as in a contrastive loss"
        same = len(targets) > 1 and all(torch.equal(ids, other) for other in targets[1:])
        if same and not self.repeats_one_batch:
            return (
                "Every batch has the same targets, so the program makes them itself (contrastive "
                "or adversarial)"
            )
        return ""

    @property
    def supervised(self) -> tuple[MainLoss, ...]:
        """The losses that compare with what the loader gives: the main one, else each such term."""
        if not self.steps:
            return ()
        main = self.main_loss
        if main is not None:
            return (main,)
        return tuple(
            MainLoss(series, index, whole=False)
            for index, series in enumerate(call_series(self.completed))
            if is_given(series[0], self.batches[0])
        )


class FirstSteps(Probe[First]):
    """A handful of observed steps on consecutive batches of an epoch."""

    steps = 5

    def measure(self, audit: Audit) -> First:
        """Take :data:`STEPS` steps, or as many as do not raise.

        Raises:
            TargetError: the loader is empty, or the loss is not a number.
            OutOfBudgetError: the time is used up.
        """
        model = audit.loop.model
        before = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not is_lazy(parameter)
        }
        seen = _taken(audit)
        seen = replace(seen, written_out=_written_out(audit.loop, seen))
        if seen.error is not None:
            return seen
        now = dict(model.named_parameters())
        still = frozenset(n for n, was in before.items() if n in now and _same(was, now[n]))
        return replace(seen, still=still)


def _taken(audit: Audit) -> First:
    """Take the steps; what raised in one of them is kept, not raised."""
    loop = audit.loop
    taken: list[Any] = []
    targets: list[Any] = []
    steps: list[Step] = []
    events: list[tuple[Event, ...]] = []
    error: UserCodeError | None = None
    with Recorder(loop) as recorder:
        for batch in consecutive_batches(loop, STEPS):
            audit.clock.check()
            # A copy: a loader may fill the same memory again.
            taken.append(batches.clone(batch))
            targets.append(target_of(loop, batch))
            try:
                loop.prepare(batch)
                # A script may have made the batch, and made ready for it, by steps: undone.
                recorder.take()
                step = loop.step(batch, observe=True)
            except UserCodeError as raised:
                error = raised
                break
            slim(step.observation, keep_output=not steps)
            steps.append(step)
            events.append(tuple(without_gradients(event) for event in recorder.take()))
    partial = getattr(error, "observation", None)
    return First(tuple(taken), tuple(targets), tuple(steps), error, partial, events=tuple(events))


def _written_out(loop: Loop, seen: First) -> MainLoss | None:
    """Return the first step's loss as a function of torch, where no recorded call explains it."""
    if not seen.completed or main_loss_of(seen.completed) is not None:
        return None
    (first, *_), target = seen.completed, seen.targets[0]
    formula = find_formula(loop, seen.batches[0], first, target, untried=True, factors=True)
    call = written_out(formula, first, target)
    if formula is None or call is None:
        return None
    return MainLoss((slimmed(call),), factor=formula.factor, formula=formula)


def _same(was: Tensor, now: Tensor) -> bool:
    return was.shape == now.shape and torch.equal(was, now.detach())


def observed_steps(audit: Audit, count: int) -> list[Step]:
    """Take the first ``count`` steps, observed; the state is put back.

    Raises:
        UserCodeError: a step raised.
        OutOfBudgetError: the time is used up.
    """
    steps: list[Step] = []
    with preserved(audit.loop.subjects):
        for batch in consecutive_batches(audit.loop, count):
            audit.clock.check()
            steps.append(audit.loop.step(batch, observe=True))
            slim(steps[-1].observation, keep_output=False)
    return steps


def initial_steps(audit: Audit, some: Iterable[Any]) -> Iterator[Step]:
    """Yield an observed step on each batch of ``some``, all from the very same state.

    Raises:
        UserCodeError: a step raised.
        OutOfBudgetError: the time is used up.
    """
    for batch in some:
        audit.clock.check()
        with preserved(audit.loop.subjects):
            step = audit.loop.step(batch, observe=True)
        slim(step.observation, keep_output=True)
        yield step


def is_given(call: LossCall, batch: Any) -> bool:
    """Whether the target of ``call`` is a tensor of ``batch``, whatever its shape and dtype."""
    target = call.arguments.get("target")
    if not isinstance(target, Tensor) or target.numel() < 2:
        return False
    return bool(batches.paths_of(batch, target))
