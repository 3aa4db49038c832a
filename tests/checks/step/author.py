"""Training loops as authors write them, driven as a script's would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.observation import Observation
from nnaudit.report import Result
from nnaudit.targets.target import Target
from support.programs import digits, perceptron, target

__all__ = ["AuthorLoop", "ask", "digits", "loss_of", "perceptron", "plain", "target"]

Body = Callable[["AuthorLoop", Any], Tensor]


class AuthorLoop(DirectLoop):
    """A loop whose body is the author's own: what it leaves out is left out."""

    def __init__(self, target: Target, body: Body) -> None:
        super().__init__(target, torch.device("cpu"), 0)
        self._body = body

    def _update(self, batch: Any, observation: Observation | None) -> float:
        loss = float(self._body(self, batch).detach())
        if observation is not None:
            observation.total_loss = loss
        return loss


def loss_of(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(loop.model(x), y)


def plain(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    return loss


def ask(check: type[Check], what: Target, body: Body | None = None, seed: int = 0) -> Result:
    torch.manual_seed(0)
    loop = AuthorLoop(what, body) if body else DirectLoop(what, torch.device("cpu"), seed)
    return run_check(check, Audit(loop))
