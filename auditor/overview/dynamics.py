"""A few dozen steps, watched: weights, activations and gradients before and after, predictions."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.report import Curve, Evidence, Series
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.targets.model_inputs import main_tensor
from nnaudit.training.evaluation import evaluate, fed_to
from nnaudit.training.stopwatch import Stopwatch

STEPS = 60
SECONDS = 2.0
MOMENTS = (0, 1, 2, 4, 8, 15, 30)
"""Steps before which the predictions are noted, besides after the last."""

LAYERS = 6
ROWS = 6
"""Layers and rows of a batch that have charts of their own."""

SAMPLE = 20_000
"""Numbers of which a distribution is drawn: more make no other picture."""

BINS = 32

SAME = 0.05
"""By less of its size a spread is called unchanged: no one sees it in the picture."""

_FIXED = 64


@dataclass
class Moment:
    """The numbers in each layer at one moment, a sample of each, by the layer's name."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    activations: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Followed:
    """What :func:`follow` saw.

    Attributes:
        before, after: the layers at both ends.
        steps: how many were taken.
        predictions: what the model returned for the fixed batch, by step.
        target: what that batch's target is.
        filters: the first layer's weights at the end, where they can be shown.
    """

    before: Moment
    after: Moment
    steps: int
    predictions: dict[int, Tensor]
    target: Any
    filters: Tensor | None = None


def follow(loop: Loop) -> Followed | None:
    """Train for :data:`STEPS` steps or :data:`SECONDS`; None where that cannot be done.

    The caller preserves the state.
    """
    if loop.lacks(Needs.STEPS):
        return None
    layers = chosen_layers(loop.model)
    try:
        batch = next(iter(loop.batches()))
        fixed = batches.clone(batch)
        try:
            fed = fed_to(loop, batches.take(fixed, _FIXED))
        except NotSliceableError:
            fed = fed_to(loop, fixed)
        watcher = _Watcher(loop, layers, fed)
        before = watcher.look()
        watcher.train()
        after = watcher.look()
    except (UserCodeError, StopIteration):
        return None
    watcher.predict()
    before.gradients, after.gradients = watcher.first_gradients, watcher.last_gradients
    target = batches.to_device(fed.target, torch.device("cpu"))
    return Followed(before, after, watcher.steps, watcher.predictions, target)


def chosen_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return up to :data:`LAYERS` layers with weight matrices, from the first to the last."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if any(p.ndim > 1 and not is_lazy(p) for p in module.parameters(recurse=False))
    ]
    count = min(LAYERS, len(found))
    places = sorted({round(i * (len(found) - 1) / max(count - 1, 1)) for i in range(count)})
    return {found[i][0] or "model": found[i][1] for i in places}


class _Watcher:
    def __init__(self, loop: Loop, layers: dict[str, nn.Module], fed: Any) -> None:
        self._loop, self._layers, self._fed = loop, layers, fed
        self.steps = 0
        self.predictions: dict[int, Tensor] = {}
        self.first_gradients: dict[str, np.ndarray] = {}
        self.last_gradients: dict[str, np.ndarray] = {}

    def look(self) -> Moment:
        moment = Moment()
        for name, module in self._layers.items():
            own = [p.detach() for p in module.parameters(recurse=False) if not is_lazy(p)]
            moment.weights[name] = sampled([p for p in own if p.ndim > 1])
            if any(p.ndim == 1 for p in own):
                moment.biases[name] = sampled([p for p in own if p.ndim == 1])
        with ExitStack() as stack:
            for name, module in self._layers.items():
                stack.callback(module.register_forward_hook(_noting(name, moment)).remove)
            evaluate(self._loop, self._fed)
        return moment

    def train(self) -> None:
        watch = Stopwatch()
        with ExitStack() as stack:
            for optimizer in self._loop.optimizers:
                stack.callback(optimizer.register_step_pre_hook(self._stepping).remove)
            while self.steps < STEPS and watch.seconds < SECONDS:
                began = self.steps
                for batch in self._loop.batches():
                    if self.steps in MOMENTS:
                        self.predict()
                    self._loop.step(batch)
                    self.steps += 1
                    if self.steps >= STEPS or watch.seconds >= SECONDS:
                        break
                if self.steps == began:
                    break

    def predict(self) -> None:
        output = main_tensor(evaluate(self._loop, self._fed))
        if output is not None and output.nbytes < 2**20:
            self.predictions[self.steps] = output.detach().float().cpu()

    def _stepping(self, *_: Any) -> None:
        found = {}
        for name, module in self._layers.items():
            grads = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
            if grads:
                found[name] = sampled([grad.detach() for grad in grads])
        self.first_gradients = self.first_gradients or found
        self.last_gradients = found or self.last_gradients


def _noting(name: str, moment: Moment) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            moment.activations[name] = sampled([tensor.detach()])

    return hook


def sampled(tensors: list[Tensor]) -> np.ndarray:
    """Return up to :data:`SAMPLE` of the finite numbers in ``tensors``, evenly picked."""
    parts = []
    for tensor in tensors:
        flat = (tensor.to_dense() if tensor.layout is not torch.strided else tensor).flatten()
        flat = flat.abs() if flat.is_complex() else flat
        step = max(1, math.ceil(flat.numel() / SAMPLE))
        parts.append(flat[::step].float().cpu().numpy())
    values = np.concatenate(parts) if parts else np.empty(0)
    return values[np.isfinite(values)]


# --- drawing --------------------------------------------------------------------------------------


def charts(followed: Followed) -> tuple[Evidence, ...]:
    """Return the distributions of each layer before and after, one kind after the other."""
    kinds = {
        "weights": (followed.before.weights, followed.after.weights, False),
        "biases and gains": (followed.before.biases, followed.after.biases, False),
        "activations": (followed.before.activations, followed.after.activations, False),
        "gradients": (followed.before.gradients, followed.after.gradients, True),
    }
    return tuple(
        chart
        for name in followed.before.weights
        for kind, (before, after, log) in kinds.items()
        if name in before and name in after
        for chart in _before_and_after(f"{name}: {kind}", before[name], after[name], log=log)
    )


def _before_and_after(
    title: str, before: np.ndarray, after: np.ndarray, *, log: bool
) -> tuple[Curve, ...]:
    if log:
        before, after = (np.log10(np.abs(x[x != 0])) for x in (before, after))
    if not before.size or not after.size:
        return ()
    low, high = np.percentile(np.concatenate([before, after]), (0.2, 99.8))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    # A handful of biases in many bins would be a comb, not a distribution.
    bins = int(np.clip(2 * np.cbrt(min(before.size, after.size)), 6, BINS))
    series = []
    for name, values in (("before", before), ("after", after)):
        counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
        middles = (edges[:-1] + edges[1:]) / 2
        series.append(
            Series(
                name=name,
                x=tuple(round(float(x), 6) for x in middles),
                y=tuple(round(float(y), 5) for y in counts / values.size),
            )
        )
    return (
        Curve(
            title=title,
            x_label="log10 of the size" if log else "value",
            y_label="share of the values",
            series=tuple(series),
            shares=True,
            bars=True,
            remark=_compared(before, after, log=log),
        ),
    )


def _compared(before: np.ndarray, after: np.ndarray, *, log: bool) -> str:
    """Say by how much a distribution changed; ``log`` is one of decimal logarithms."""
    if log:
        old, new = (10 ** float(np.median(values)) for values in (before, after))
        what = "Half of them are smaller than"
    else:
        old, new = (float(values.std()) for values in (before, after))
        what = "Standard deviation"
    sizes = f"{what} {old:.3g} before, {new:.3g} after"
    if not old or not math.isfinite(new / old):
        return f"{sizes}."
    factor = new / old
    if abs(factor - 1) < SAME:
        return f"{sizes}: as good as unchanged."
    return f"{sizes}: {factor:.3g} times as large."


def _nearer(lines: list[Tensor], *, right: float) -> str:
    """Say how many rows the steps brought nearer to ``right``, and how many further away."""
    gaps = [(line[:ROWS] - right).abs() for line in (lines[0], lines[-1])]
    closer = int((gaps[1] < gaps[0]).sum())
    return f"{closer} of {len(gaps[0])} rows end nearer to the right answer than they began."


def predictions(followed: Followed) -> Curve | None:
    """Return how the predictions for a few rows of one batch develop; None where unclear."""
    target = followed.target
    if isinstance(target, (tuple, list)) and target:
        target = target[0]
    seen = [(step, output) for step, output in sorted(followed.predictions.items())]
    if not isinstance(target, Tensor) or len(seen) < 2 or target.ndim == 0:
        return None
    if not target.is_floating_point() and seen[0][1].ndim == 3:
        # Of a sequence the last prediction, with classes in the second place.
        last = target.shape == seen[0][1].shape[:2]
        seen = [(step, o[:, -1] if last else o[..., -1]) for step, o in seen]
        target = target[:, -1] if target.ndim == 2 else target
    first = seen[0][1]
    if not target.is_floating_point() and first.ndim == 2 and target.shape == first.shape[:1]:
        lines = [_of_truth(output, target) for _, output in seen]
        return _lines(
            "Probability of the correct class for some rows of one batch",
            "probability", seen, lines, [f"class {int(t)}" for t in target[:ROWS]],
            {"chance": 1.0 / first.shape[1]},
        )  # fmt: skip
    if first.numel() == target.numel() == len(target):
        truth = target.flatten().float()
        if bool(((truth == 0) | (truth == 1)).all()):
            lines = [_of_yes_or_no(output.flatten(), truth) for _, output in seen]
            return _lines(
                "Probability of the correct answer for some rows of one batch",
                "probability", seen, lines, ["yes" if t else "no" for t in truth[:ROWS]],
                {"chance": 0.5},
            )  # fmt: skip
        lines = [output.flatten() - truth for _, output in seen]
        return _lines(
            "Prediction minus target for some rows of one batch",
            "difference", seen, lines, [f"target {float(t):.3g}" for t in truth[:ROWS]],
            {"correct": 0.0},
        )  # fmt: skip
    return None


def _of_truth(output: Tensor, target: Tensor) -> Tensor:
    certain = bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-3).all())
    chances = output if certain else output.softmax(1)
    rows = target.long().clamp(0, output.shape[1] - 1)
    return chances.gather(1, rows.unsqueeze(1)).squeeze(1)


def _of_yes_or_no(output: Tensor, truth: Tensor) -> Tensor:
    certain = bool((output >= 0).all()) and bool((output <= 1).all())
    chances = output if certain else output.sigmoid()
    return torch.where(truth > 0, chances, 1 - chances)


def _lines(
    title: str,
    label: str,
    seen: list[tuple[int, Tensor]],
    lines: list[Tensor],
    names: list[str],
    thresholds: dict[str, float],
) -> Curve:
    shares = label == "probability"
    steps = tuple(float(step) for step, _ in seen)
    return Curve(
        title=title,
        x_label="step",
        y_label=label,
        series=tuple(
            Series(
                name=f"row {i}, {name}",
                x=steps,
                y=tuple(round(float(line[i]), 5) for line in lines),
            )
            for i, name in enumerate(names)
        ),
        thresholds=thresholds,
        shares=shares,
        remark=_nearer(lines, right=1.0 if shares else 0.0),
    )
