"""How a batch is fed: which part of it goes into the model, and which is the target.

Settled once per target, from the structure of the first batch and the signature of the model's
``forward``, and then applied to every batch alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.errors import TargetError


@dataclass(frozen=True)
class ModelInputs:
    """A batch taken apart the way the training does it.

    Attributes:
        args, kwargs: what the model is called with.
        target: what the output is compared with; None when there is no such thing.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Everything the model is given."""
        return (*self.args, *self.kwargs.values())

    def named_inputs(self) -> Iterator[tuple[str, Any]]:
        """Yield what the model is given by name: its keyword, else ``input`` (``input[1]``)."""
        for i, value in enumerate(self.args):
            yield (f"input[{i}]" if len(self.args) > 1 else "input"), value
        yield from self.kwargs.items()


TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Keys that hold the target of a dict batch, first match wins."""


@dataclass(frozen=True)
class BatchFormat:
    """How batches of one structure are taken apart.

    Attributes:
        description: for people: ``model(x), target y``.
        positions: indices (or the one key) of the batch that are positional inputs.
        target_positions: indices (or the key) of the target; empty when the input is its own.
        keys: keys of a dict batch passed to the model by keyword.
        target_key: key of the target in a dict batch, or attribute of an object batch.
        whole: the model takes the batch as it is.
        spread: the one input position holds a tuple or dict that becomes the model's arguments.
    """

    description: str
    positions: tuple[int | str, ...] = ()
    target_positions: tuple[int | str, ...] = ()
    keys: tuple[str, ...] = ()
    target_key: str = ""
    whole: bool = False
    spread: bool = False

    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart."""
        if self.whole:
            return ModelInputs(
                (batch,), {}, _member(batch, self.target_key) if self.target_key else None
            )
        if self.keys:
            target = batch[self.target_key] if self.target_key else None
            return ModelInputs((), {key: batch[key] for key in self.keys if key in batch}, target)
        if not self.positions:
            return ModelInputs((batch,), {}, batch)
        if self.spread:
            inputs = batch[self.positions[0]]
            args, kwargs = (
                ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
            )
        else:
            args, kwargs = tuple(batch[i] for i in self.positions), {}
        targets = tuple(batch[i] for i in self.target_positions)
        if not targets:
            return ModelInputs(args, kwargs, args[0])
        return ModelInputs(args, kwargs, targets[0] if len(targets) == 1 else targets)


def convention_for(model: nn.Module, batch: Any) -> BatchFormat:
    """Settle how batches like ``batch`` are fed to ``model``.

    Raises:
        TargetError: the batch is empty, or of a structure that gives no answer.
    """
    accepted = _Signature.of(model)
    if isinstance(batch, Mapping):
        return _for_mapping(batch, accepted)
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise TargetError("the training loader yields empty batches: () has no input")
        return _for_sequence(batch, accepted)
    if isinstance(batch, Tensor):
        return BatchFormat("model(batch), the input is its own target")
    target = next((name for name in TARGET_NAMES if hasattr(batch, name)), "")
    kind = type(batch).__name__
    return BatchFormat(
        f"model(batch), {kind}.{target} is the target", target_key=target, whole=True
    )


@dataclass(frozen=True)
class _Signature:
    names: tuple[str, ...]
    required: int
    most: int
    open_keywords: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Signature:
        forward = getattr(model, "module", model).forward
        try:
            parameters = list(inspect.signature(forward).parameters.values())
        except (TypeError, ValueError):
            return cls((), 1, 1, False)
        positional = [
            p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        spread = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return cls(
            names=tuple(
                p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            ),
            required=sum(p.default is p.empty for p in positional),
            most=99 if spread else len(positional),
            open_keywords=any(p.kind is p.VAR_KEYWORD for p in parameters),
        )


def _for_mapping(batch: Mapping[Any, Any], accepted: _Signature) -> BatchFormat:
    target = next((name for name in TARGET_NAMES if name in batch), "")
    named = tuple(str(key) for key in batch if key in accepted.names)
    inputs = tuple(key for key in named if key != target)
    if inputs:
        # A model that takes its own labels (Hugging Face) computes the loss with them.
        keys = named if target in accepted.names else inputs
        return BatchFormat(
            f"model({', '.join(f'{key}=...' for key in keys)}), target {target or 'none'}",
            keys=keys,
            target_key=target,
        )
    others = tuple(str(key) for key in batch if key != target)
    if accepted.open_keywords and not accepted.required:
        return BatchFormat("model(**batch)", keys=others, target_key=target)
    if len(others) == 1 and accepted.required <= 1:
        return BatchFormat(
            f"model(batch[{others[0]!r}]), target {target or 'none'}",
            positions=(others[0],),
            target_positions=(target,) if target else (),
        )
    return BatchFormat("model(batch)", target_key=target, whole=True)


def _for_sequence(batch: tuple[Any, ...] | list[Any], accepted: _Signature) -> BatchFormat:
    n = len(batch)
    if n == 1:
        return BatchFormat("model(x), the input is its own target", positions=(0,))
    inputs = max(1, min(n - 1, accepted.most))
    first = batch[0]
    spread = inputs == 1 and (
        (isinstance(first, Mapping) and any(key in accepted.names for key in first))
        or (isinstance(first, (tuple, list)) and 1 < len(first) <= accepted.most)
    )
    names = ", ".join(f"batch[{i}]" for i in range(inputs))
    targets = tuple(range(inputs, n))
    return BatchFormat(
        f"model({names}), target {', '.join(f'batch[{i}]' for i in targets)}",
        positions=tuple(range(inputs)),
        target_positions=targets,
        spread=spread,
    )


def _member(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


def main_tensor(output: Any) -> Tensor | None:
    """Return the tensor of a model's output that a loss would be computed from.

    ``.logits`` or ``["logits"]`` where there is one, else the first floating tensor.
    """
    logits = _member(output, "logits") if not isinstance(output, (Tensor, tuple, list)) else None
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((t for t in output if isinstance(t, Tensor) and t.is_floating_point()), None)
    return None


def own_loss(output: Any) -> Tensor | None:
    """Return the loss that a model computed itself (``output.loss``), or None."""
    if isinstance(output, (Tensor, tuple, list)):
        return None
    loss = _member(output, "loss")
    return loss if isinstance(loss, Tensor) else None


class DefaultLoss:
    """The loss assumed where the user hands over none, from the target's dtype and shape.

    Integer classes: cross-entropy; integers for a single output and 0/1 matrices: binary
    cross-entropy with logits; anything else: mean squared error.
    """

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Return the scalar loss of ``output`` against ``target``.

        Raises:
            TargetError: no loss can be guessed for these.
        """
        prediction = main_tensor(output)
        if prediction is None or not isinstance(target, Tensor):
            raise TargetError(
                "no loss is given and none can be guessed for this output and target: define "
                "loss_fn(output, target)"
            )
        name, loss = self._choose(prediction, target)
        self.name = name
        return loss

    name = "chosen from the target"

    @staticmethod
    def _choose(prediction: Tensor, target: Tensor) -> tuple[str, Tensor]:
        whole = not (target.is_floating_point() or target.is_complex())
        if whole and prediction.ndim == target.ndim + 1 and prediction.shape[-1:] != (1,):
            # (B, T, V) and (B, T): classes last; (B, C, H, W) and (B, H, W): classes second.
            if target.ndim >= 1 and prediction.shape[:-1] == target.shape:
                flat = prediction.reshape(-1, prediction.shape[-1])
                return "cross-entropy", F.cross_entropy(flat, target.reshape(-1).long())
            return "cross-entropy", F.cross_entropy(prediction, target.long())
        if prediction.numel() == target.numel():
            aligned = target.reshape(prediction.shape).to(prediction.dtype)
            binary = bool(((aligned == 0) | (aligned == 1)).all())
            if whole or (binary and target.ndim == 2 and target.shape[1] > 1):
                loss = F.binary_cross_entropy_with_logits(prediction, aligned)
                return "binary cross-entropy with logits", loss
            return "mean squared error", F.mse_loss(prediction, aligned)
        raise TargetError(
            f"no loss is given and none fits an output of shape {tuple(prediction.shape)} and a "
            f"target of shape {tuple(target.shape)}: define loss_fn(output, target)"
        )


def device_of(model: nn.Module) -> torch.device:
    """Return where ``model``'s parameters are; the CPU when it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def has_forward(model: nn.Module) -> bool:
    """Whether the model can be called as a whole, rather than its parts only."""
    return getattr(type(model), "forward", None) is not nn.Module.forward
