"""Predictions of a short run with what they should have been, and such as are made up of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nnaudit.loop.base import Loop
from nnaudit.loop.batch_target import target_of
from nnaudit.loop.losses import LossCall
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.metric_functions import MetricFunction
from nnaudit.probes.training_run import Training
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import Task, extremes
from nnaudit.targets.model_inputs import main_tensor

_VOCABULARY = 24
"""Classes from which on dense targets are words or letters; the classes of masks are fewer."""

FEWEST = 32
"""Predictions below which 10% of them are too few to exchange."""

_FEWEST_ROWS = 8
"""Rows of one batch below which exchanging some of them at random often exchanges none."""

_TASKS: dict[str, Task] = {
    "cross_entropy": "classes", "nll": "classes", "multi_margin": "classes",
    "bce": "binary", "bce_with_logits": "binary",
    "mse": "numbers", "l1": "numbers", "smooth_l1": "numbers", "huber": "numbers",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Predictions of the network after a short run, with what they should have been.

    Attributes:
        batches: output (N, C, ...) and target by batch of the loader.
        validation: they are of validation data.
        words: there are many targets for a row, of many classes: the next tokens of a text.
        axis: where the outputs have a number for each class.
        given: the outputs are the model's own and the targets the loader's, unchanged.
    """

    task: Task
    batches: tuple[tuple[Tensor, Tensor], ...]
    validation: bool
    steps: int
    words: bool = False
    axis: int = 1
    given: bool = False

    @property
    def output(self) -> Tensor:
        """All outputs."""
        return torch.cat([output for output, _ in self.batches])

    @property
    def target(self) -> Tensor:
        """All targets."""
        return torch.cat([target for _, target in self.batches])

    def labelled(self, target: Tensor) -> Tensor:
        """Return which of ``target`` are classes of the network's; others stand for no label."""
        if self.task != "classes":
            return torch.ones_like(target, dtype=torch.bool)
        return (target >= 0) & (target < self.output.shape[self.axis])

    def ideal(self, target: Tensor) -> Tensor:
        """Return the output that says ``target`` with certainty, in the form of the real ones.

        Where there is no label it says the first class.
        """
        if self.task == "numbers":
            return target.clone().float()
        low, high = extremes(self.output)
        if self.task == "binary":
            return torch.where(target > 0.5, high, low)
        said = target.long().where(self.labelled(target), 0)
        output = torch.full((len(target), *self.output.shape[1:]), low)
        return output.scatter_(self.axis, said.unsqueeze(self.axis), high)

    @property
    def known(self) -> tuple[Tensor, Tensor]:
        """Outputs and targets where there is a label, classes second: (M, C) and (M,) then."""
        output, target = self.output, self.target
        if self.task != "classes":
            return output, target
        kept = self.labelled(target)
        if self.axis == 1 and bool(kept.all()):
            return output, target
        return output.movedim(self.axis, -1)[kept], target[kept]

    @property
    def whole(self) -> bool:
        """Whether all classes occur: one that does not may count as 0 in a mean over classes."""
        found = len(torch.unique(self.known[1]))
        return self.task != "classes" or found == self.output.shape[self.axis]

    @property
    def majority(self) -> float:
        """The share of the most frequent class."""
        counts = torch.unique(self.known[1].long(), return_counts=True)[1]
        return float(counts.max() / counts.sum())


def samples_of(training: Training, loop: Loop) -> tuple[Sample, ...]:
    """Return the predictions at the end of ``training``, in each form a metric may take them in.

    These are the form that the loss is given, and that of the model's output and the loader's
    target where it is another: ``logits.transpose(1, 2)`` is only the loss's. Empty where neither
    is known.
    """
    last = training.moments[-1] if training.moments else None
    if last is None or training.broke is not None:
        return ()
    held = training.val if last.val.calls or last.val.losses else training.fixed
    seen = last.val if held is training.val else last.fixed
    own = _own_form(seen, held, loop)
    found = _of_calls(training, seen, last.step, held is training.val)
    if found is not None and own is not None and _agree(found, own):
        return (replace(found, given=True),)
    if own is not None and not _are_trained(own[1], seen.calls):
        own = None
    other = None if own is None else _of_output(own, last.step, held is training.val)
    if found is not None and (found.task != "numbers" or own is None):
        return (found,) if other is None else (found, other)
    return () if other is None else (other,)


def _own_form(seen: EvalResult, held: tuple[Any, ...], loop: Loop) -> tuple[Tensor, Tensor] | None:
    """Return the model's output and the loader's target of the first batch, on the CPU."""
    output = main_tensor(seen.outputs) if held else None
    targets = [each for _, each in batches.tensors((target_of(loop, held[0]),))] if held else []
    if output is None or len(targets) != 1:
        return None
    target = targets[0].detach().cpu()
    if output.is_complex() or output.ndim == 0 or target.shape[:1] != output.shape[:1]:
        return None
    return output.detach().float().cpu(), target


def _are_trained(labels: Tensor, calls: Sequence[LossCall]) -> bool:
    """Whether the loss may be one of the loader's ``labels``: an autoencoder's is of the inputs.

    True where no call tells. A call is of the labels where they, or what is largest in each row,
    are its target.
    """
    targets = [each.target.detach().cpu() for each in calls]
    return not targets or any(
        _are_equal(labels, target)
        or any(_are_equal(labels, target.argmax(axis)) for axis in {1, target.ndim - 1} - {0, -1})
        for target in targets
    )


def _are_equal(labels: Tensor, other: Tensor) -> bool:
    """Whether ``other`` begins with the numbers of ``labels``, of the first batch."""
    first = other.flatten()[: labels.numel()]
    return len(first) == labels.numel() and torch.equal(first, labels.flatten().to(first.dtype))


def _agree(found: Sample, own: tuple[Tensor, Tensor]) -> bool:
    """Whether the loss is given the model's output and the loader's target as they are."""
    output, target = found.batches[0]
    same = output.shape == own[0].shape and target.shape == own[1].shape
    return same and torch.equal(output, own[0]) and torch.equal(target, own[1].to(target.dtype))


def _of_output(own: tuple[Tensor, Tensor], steps: int, validation: bool) -> Sample | None:
    """Return a sample of classes in the model's own form; None where they are none.

    Only a loss says whether equally many numbers are in one unit.
    """
    output, target = own
    if target.is_floating_point() or output.ndim != target.ndim + 1 or len(output) < _FEWEST_ROWS:
        return None
    axes = [
        axis
        for axis in sorted({1, output.ndim - 1})
        if output.movedim(axis, -1).shape[:-1] == target.shape and output.shape[axis] > 1
    ]
    if len(axes) != 1 or target.numel() < FEWEST or int(target.max()) < 1:
        return None
    sample = Sample("classes", ((output, target.long()),), validation, steps, axis=axes[0])
    kept = sample.labelled(sample.target)
    words = output.shape[axes[0]] > _VOCABULARY and target.ndim > 1
    outside = torch.unique(sample.target[~kept])
    if float(kept.float().mean()) == 0.0 or len(outside) > 1:
        return None
    return replace(sample, words=words, given=True)


def _of_calls(training: Training, seen: EvalResult, steps: int, validation: bool) -> Sample | None:
    """Return the predictions as the loss is given them; None where they are unknown."""
    tasks = {_TASKS.get(call.kind) for call in seen.calls}
    task = tasks.pop() if len(tasks) == 1 else None
    if task is None:
        return None
    pairs = [pair for call in seen.calls if (pair := _pair(task, call)) is not None]
    shapes = {(output.shape[1:], target.shape[1:]) for output, target in pairs}
    if len(pairs) < len(seen.calls) or len(shapes) != 1:
        return None
    if sum(len(target) for _, target in pairs) < FEWEST:
        return None
    wide = pairs[0][0].ndim > 1 and pairs[0][0].shape[1] > _VOCABULARY
    words = wide and task == "classes" and _is_dense(training)
    return Sample(task, tuple(pairs), validation, steps, words)


def _is_dense(training: Training) -> bool:
    """Whether the loss of the fixed batches has more targets than these have rows."""
    calls = training.moments[-1].fixed.calls
    pairs = zip(training.fixed, calls, strict=False)
    return any(call.target.numel() > batches.size(batch) for batch, call in pairs)


def _pair(task: Task, call: LossCall) -> tuple[Tensor, Tensor] | None:
    """Return output and target of ``call`` on the CPU; None where they are not plain."""
    if not isinstance(call.arguments.get("input"), Tensor):
        return None
    output, target = call.input.detach().float().cpu(), call.target.detach().cpu()
    if output.ndim == 0 or target.ndim == 0 or len(output) != len(target):
        return None
    if task == "classes":
        if target.is_floating_point() or target.shape != (output.shape[:1] + output.shape[2:]):
            return None
        ignored = target == call.arguments.get("ignore_index", -100)
        outside = (target < 0) | (target >= output.shape[1])
        plain = bool((outside == ignored).all()) and not bool(ignored.all())
        return (output, target.long()) if plain else None
    if output.shape != target.shape:
        return None
    binary = bool(((target == 0) | (target == 1)).all())
    return (output, target) if binary or task == "numbers" else None


def exchanged(sample: Sample | MetricFunction, share: float, seed: int) -> Tensor:
    """Return perfect predictions, the given share of the rows exchanged at random."""
    generator = torch.Generator().manual_seed(seed)
    target = sample.target
    rows = torch.randperm(len(target), generator=generator)[: max(2, round(share * len(target)))]
    said = target.clone()
    said[rows] = target[rows[torch.randperm(len(rows), generator=generator)]]
    return sample.ideal(said)
