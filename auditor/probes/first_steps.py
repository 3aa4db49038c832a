"""The first few steps of the training, looked into: what most checks of a program's wiring need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Step
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.trace import Event, Recorder, without_gradients
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.memory import slim
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor

STEPS = 5
"""Enough to tell a constant factor from a second loss term, and zero from not yet moved."""


@dataclass(frozen=True)
class MainLoss:
    """A loss function behind the total loss.

    Attributes:
        calls: its call in each step.
        index: which of a step's loss calls it is.
        factor: total loss over what the call returned (its mean, when it returned one loss per
            element): 0.25 where four micro-batches are accumulated.
        spelled_out: the user wrote the formula by hand; ``calls`` stand for it.
        whole: whether there is nothing else in the total loss.
    """

    calls: tuple[LossCall, ...]
    index: int = 0
    factor: float = 1.0
    spelled_out: bool = False
    whole: bool = True


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
    """

    batches: tuple[Any, ...]
    targets: tuple[Any, ...]
    steps: tuple[Step, ...]
    error: UserCodeError | None = None
    partial: Observation | None = None
    still: frozenset[str] = frozenset()
    events: tuple[tuple[Event, ...], ...] = ()

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
        return main_loss_of(self.completed, self.targets[0]) if self.steps else None

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
            for index, series in enumerate(_series(self.completed))
            if is_given(series[0], self.batches[0])
        )


class FirstSteps(Probe[First]):
    """A handful of observed steps on consecutive batches of an epoch."""

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
            targets.append(_target_of(loop, batch))
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


def main_loss_of(seen: tuple[Observation, ...], target: Any) -> MainLoss | None:
    """Return the loss function that explains the total loss of all of ``seen``, or None.

    ``target`` is what the first step's output was compared with, for losses written by hand.
    """
    found = [_alone(index, series, seen) for index, series in enumerate(_series(seen))]
    whole = [main for main in found if main is not None]
    if whole:
        return min(whole, key=lambda main: abs(math.log(main.factor)))
    return _spelled_out(seen[0], target)


def _target_of(loop: Loop, batch: Any) -> Any:
    try:
        return loop.split_batch(batch).target
    except UserCodeError:  # a training_step takes batches that nothing else understands
        return None


def _series(seen: tuple[Observation, ...]) -> list[tuple[LossCall, ...]]:
    """Return the n-th loss call of every step, for each n that all steps have in common."""
    kinds = {tuple(call.kind for call in observation.loss_calls) for observation in seen}
    if len(kinds) != 1:
        return []
    return list(zip(*(observation.loss_calls for observation in seen), strict=True))


def is_given(call: LossCall, batch: Any) -> bool:
    """Whether the target of ``call`` is a tensor of ``batch``, whatever its shape and dtype."""
    target = call.arguments.get("target")
    if not isinstance(target, Tensor) or target.numel() < 2:
        return False
    flat = target.detach().cpu().double().reshape(-1)
    return any(
        tensor.numel() == flat.numel()
        and torch.equal(tensor.detach().cpu().double().reshape(-1), flat)
        for _, tensor in batches.tensors(batch)
        if not tensor.is_complex()
    )


def _alone(
    index: int, series: tuple[LossCall, ...], seen: tuple[Observation, ...]
) -> MainLoss | None:
    """Whether ``series`` times a constant is the total loss of all steps."""
    ratios = []
    for call, observation in zip(series, seen, strict=True):
        if call.value is None or observation.total_loss is None or not call.value.numel():
            return None
        value = float(call.value.float().mean())
        if not (math.isfinite(value) and math.isfinite(observation.total_loss)) or value == 0.0:
            return None
        ratios.append(observation.total_loss / value)
    first = ratios[0]
    if first <= 0.0:
        return None
    # One loss per element is averaged by hand, often without the masked ones: not quite the mean.
    per_element = all(call.value is not None and call.value.numel() > 1 for call in series)
    tolerance = 0.2 if per_element else 1e-3
    if any(abs(ratio / first - 1.0) > tolerance for ratio in ratios):
        return None
    # With one or two steps a constant factor cannot be told from a second term.
    if len(ratios) < 3 and abs(first - 1.0) > tolerance:
        return None
    return MainLoss(series, index, first)


_FORMULAS = (
    (F.cross_entropy, "cross_entropy"),
    (F.binary_cross_entropy_with_logits, "bce_with_logits"),
    (F.mse_loss, "mse"),
    (F.l1_loss, "l1"),
)


def _spelled_out(seen: Observation, target: Any) -> MainLoss | None:
    """Compare the total loss with what torch's functions make of output and target."""
    output = main_tensor(seen.output)
    total = seen.total_loss
    if output is None or total is None or not isinstance(target, Tensor):
        return None
    target = target.to(output.device)
    for function, kind in _FORMULAS:
        pairs = _class_pairs(output, target) if kind == "cross_entropy" else _equal(output, target)
        for prediction, answer in pairs:
            try:
                value = function(prediction, answer)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            if abs(float(value) - total) <= 1e-4 * abs(total):
                call = LossCall(
                    kind=kind,
                    function=function,
                    arguments={"input": prediction, "target": answer, "reduction": "mean"},
                    value=value.detach(),
                )
                return MainLoss((call,), spelled_out=True)
    return None


def _class_pairs(output: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (N, C) and classes (N,), with the classes last, second, or given as log p."""
    if target.is_floating_point() or output.ndim != target.ndim + 1 or not target.numel():
        return
    for classes_at in {output.ndim - 1, 1}:
        logits = output.movedim(classes_at, -1)
        if logits.shape[:-1] == target.shape and int(target.max()) < logits.shape[-1]:
            flat, answer = logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1).long()
            yield flat, answer
            if bool((flat >= 0).all()):
                yield torch.log(flat), answer


def _equal(output: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if output.numel() == target.numel():
        yield output.float(), target.reshape(output.shape).float()
