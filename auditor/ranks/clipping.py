"""Noting the norms by which a rank clips its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad

from nnaudit.loop.trace import patched
from nnaudit.ranks.journal import Journal
from nnaudit.ranks.record import Clipped
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered


@contextmanager
def noted(journal: Journal, before: Callable[[], None]) -> Iterator[None]:
    """Write down every call of ``clip_grad_norm_`` on gradients that are whole.

    ``before`` is called before any are clipped.
    """

    def noting(real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def clip(parameters: Any, max_norm: float, norm: Tensor, *args: Any, **named: Any) -> None:
            before()
            held = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            if not any(isinstance(p, DTensor) for p in held):
                at = callstack.user_line()
                journal.add(
                    Clipped(step=journal.step, norm=float(norm), limit=float(max_norm), at=at)
                )
            real(held, max_norm, norm, *args, **named)

        return clip

    # Whichever way the user imported clip_grad_norm_, it calls this.
    with patched(clip_grad, "_clip_grads_with_norm_", noting):
        yield
