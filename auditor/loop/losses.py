"""Torch's loss functions, and the record of a call of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.report import Location
from nnaudit.targets import batch as batches

LOSS_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll",
    F.binary_cross_entropy: "bce",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
    F.mse_loss: "mse",
    F.l1_loss: "l1",
    F.smooth_l1_loss: "smooth_l1",
    F.huber_loss: "huber",
    F.kl_div: "kl_div",
    F.poisson_nll_loss: "poisson_nll",
    F.gaussian_nll_loss: "gaussian_nll",
    F.multilabel_soft_margin_loss: "multilabel_soft_margin",
    F.soft_margin_loss: "soft_margin",
    F.multi_margin_loss: "multi_margin",
    F.multilabel_margin_loss: "multilabel_margin",
    F.hinge_embedding_loss: "hinge_embedding",
    F.ctc_loss: "ctc",
    F.triplet_margin_loss: "triplet_margin",
    F.margin_ranking_loss: "margin_ranking",
    F.cosine_embedding_loss: "cosine_embedding",
    F.triplet_margin_with_distance_loss: "triplet_margin_with_distance",
}
"""Torch's loss functions, by which every ``nn.*Loss`` module computes, and our names for them."""

_LINEAR_CROSS_ENTROPY = getattr(F, "linear_cross_entropy", None)  # since torch 2.14
if _LINEAR_CROSS_ENTROPY is not None:
    LOSS_FUNCTIONS[_LINEAR_CROSS_ENTROPY] = "linear_cross_entropy"

_MOST_LOGITS = 2**26
"""Logits that a fused loss would not have made are made to be looked at, up to this many."""

ELEMENTWISE = frozenset(
    {
        "bce", "bce_with_logits", "mse", "l1", "smooth_l1", "huber", "kl_div", "poisson_nll",
        "soft_margin", "hinge_embedding",
    }
)  # fmt: skip
"""Losses that compare output and target element by element."""

SYMMETRIC = frozenset({"mse", "l1", "smooth_l1", "huber"})
"""Losses that are the same with prediction and target exchanged, as ``loss(y, y_hat)`` has them."""


@dataclass(frozen=True)
class LossCall:
    """One call of a torch loss function.

    Attributes:
        kind: a value of :data:`LOSS_FUNCTIONS`.
        arguments: every argument by name, tensors detached, defaults filled in; what the obsolete
            ``size_average`` and ``reduce`` ask for is said by ``reduction``, and the prediction is
            ``input`` also where the user wrote it second (:func:`is_turned`).
        value: what it returned, detached; None when it raised.
        producer: the autograd node that made the input, views looked through
            (``SoftmaxBackward0``); empty for a leaf.
        before: the node that made what ``producer`` was applied to.
        lineage: the nodes from which the input was made by arithmetic and one product at most,
            nearest first: where a normalisation or a logarithm near the loss shows.
        location: the user's line that called it.
        order: the number that autograd gave to the node of ``value``; -1 where there is none.
    """

    kind: str
    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    value: Tensor | None
    producer: str = ""
    before: str = ""
    lineage: tuple[str, ...] = ()
    location: Location | None = None
    order: int = -1

    @property
    def input(self) -> Tensor:
        """The first argument: logits, log-probabilities, predictions."""
        return self._tensor("input")

    @property
    def target(self) -> Tensor:
        """What the input is compared with."""
        return self._tensor("target")

    @property
    def compares(self) -> bool:
        """Whether it compares one input with a target: triplets, pairs and paths (CTC) do not."""
        return all(isinstance(self.arguments.get(part), Tensor) for part in ("input", "target"))

    @property
    def reduction(self) -> str:
        """``mean``, ``sum``, ``none`` or ``batchmean``."""
        return str(self.arguments.get("reduction", "mean"))

    def _tensor(self, name: str) -> Tensor:
        value = self.arguments.get(name)
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.kind} was called without a tensor {name}")
        return value

    def recompute(self, prediction: Tensor, **changes: Any) -> Tensor:
        """Call the same function on another ``prediction``, other arguments as they were."""
        return self.function(**{**self.arguments, "input": prediction, **changes})

    def first_rows(self, n: int) -> LossCall:
        """Return the call on the first ``n`` rows, in memory of its own; ``value`` stays.

        Only input and target are cut, and only where they have as many rows.
        """
        rows = self.input.shape[0] if self.input.ndim else 0
        cut = {
            name: value[:n].clone()
            for name, value in self.arguments.items()
            if isinstance(value, Tensor)
            and name in ("input", "target")
            and value.ndim > 0
            and value.shape[0] == rows
        }
        return replace(self, arguments={**self.arguments, **cut})


def without_obsolete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a loss with ``reduction`` as torch will take it.

    ``size_average`` and ``reduce``, of before torch 0.4.1, overrule it where they are given.
    """
    obsolete = {name: arguments.get(name) for name in ("size_average", "reduce")}
    if all(value is None for value in obsolete.values()) or "reduction" not in arguments:
        return dict(arguments)
    asked = [True if value is None else value for value in obsolete.values()]
    reduction = "none" if not asked[1] else "mean" if asked[0] else "sum"
    return {**arguments, "size_average": None, "reduce": None, "reduction": reduction}


def unfused(
    func: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return ``linear_cross_entropy`` as the cross-entropy of logits that it is; others as given.

    So whatever is asked of logits and classes can be asked of it. It stays what it is where there
    are too many logits to be made for that, or classes of each of several outputs.
    """
    if func is not _LINEAR_CROSS_ENTROPY:
        return func, arguments
    hidden, weight = arguments["input"], arguments["linear_weight"]
    if not (isinstance(hidden, Tensor) and isinstance(weight, Tensor)) or weight.ndim != 2:
        return func, arguments
    if hidden.numel() // max(hidden.shape[-1], 1) * len(weight) > _MOST_LOGITS:
        return func, arguments
    try:
        logits = F.linear(hidden, weight, arguments["linear_bias"])
    except RuntimeError:  # sizes that do not fit: the function itself says it best
        return func, arguments
    ignored = arguments["ignore_index"]
    return F.cross_entropy, {
        "input": logits,
        "target": arguments["target"],
        "weight": arguments["weight"],
        "ignore_index": -100 if ignored is None else ignored,
        "reduction": arguments["reduction"],
        "label_smoothing": arguments["label_smoothing"],
    }


def compare_with_labels(calls: Iterable[LossCall]) -> bool:
    """Whether losses compare with classes, or with the same numbers every time.

    Other targets, where a program makes its batches itself, may come from its networks, as returns
    and bootstrapped values do: the loss then grows and falls with them.
    """
    targets = [call.target for call in calls]
    if not targets:
        return False
    return all(not each.is_floating_point() for each in targets) or all(
        batches.same_values(each, targets[0]) for each in targets[1:]
    )


def is_turned(func: Callable[..., Any], first: Any, second: Any, output: Any) -> bool:
    """Whether the prediction is the second argument of a loss that does not mind.

    It is the one that carries a gradient or, without gradients, a view of the model's ``output``.
    """
    if LOSS_FUNCTIONS.get(func) not in SYMMETRIC:
        return False
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    if first.requires_grad != second.requires_grad:
        return second.requires_grad
    with torch._C.DisableTorchFunction():
        made = {t.untyped_storage().data_ptr() for _, t in batches.tensors(output)}
        where = [t.untyped_storage().data_ptr() in made for t in (first, second)]
    return where == [False, True]


def refuse_fatal_call(call: LossCall) -> None:
    """Raise on CUDA what the CPU would raise.

    A device-side assertion cannot be caught and leaves the process without its device.

    Raises:
        RuntimeError: binary cross-entropy of something outside [0, 1].
    """
    if call.kind == "bce" and call.input.is_cuda and call.input.numel():
        with torch._C.DisableTorchFunction():
            low, high = torch.aminmax(call.input)
            if not (float(low) >= 0.0 and float(high) <= 1.0):
                raise RuntimeError("all elements of input should be between 0 and 1")
