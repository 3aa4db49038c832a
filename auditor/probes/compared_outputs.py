"""Whether a loss compares outputs with each other: distances, similarities, pairs, triplets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap

_COMPARING: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.cdist, torch.pairwise_distance, F.pairwise_distance, torch.cosine_similarity,
        F.cosine_similarity, F.triplet_margin_loss, F.triplet_margin_with_distance_loss,
        F.cosine_embedding_loss, F.hinge_embedding_loss,
    }
)  # fmt: skip

_PRODUCTS = frozenset({torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__})


class ComparedOutputs(Probe[bool]):
    """Watches one step for functions of two outputs of a network."""

    def measure(self, audit: Audit) -> bool:
        """Say whether the step's own code, not a layer, compares outputs with each other.

        Raises:
            UserCodeError: the step raised.
        """
        batch = next(iter(consecutive_batches(audit.loop, 1)))
        audit.loop.prepare(batch)
        tap = _Tap()
        with tap:
            audit.loop.step(batch)
        return tap.compared


class _Tap(ResultTap):
    def __init__(self) -> None:
        super().__init__()
        self.compared = False

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Look for what compares its arguments."""
        comparing = func in _COMPARING or (func in _PRODUCTS and _is_of_itself(args))
        self.compared |= made.requires_grad and comparing


def _is_of_itself(args: tuple[Any, ...]) -> bool:
    """Whether a matrix is multiplied by its own transpose."""
    one, other = args[:2]
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.ndim != 2:
        return False
    return tuple(one.shape) == tuple(other.shape[::-1]) and one.data_ptr() == other.data_ptr()
