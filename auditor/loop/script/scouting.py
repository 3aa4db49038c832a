"""Whether the first training that a script comes to only makes the teacher of a later one.

What a later training learns from the first one's network is what the script is for, and where its
author errs: the distillation, not the teacher. Which one that is, the script must be run to show.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnaudit.targets import batch as batches

LONGEST = 20.0
"""Seconds for which a script may train before the loop that is to be audited is settled."""

Input = tuple[tuple[int, ...], Any]
"""The shape of a tensor without its rows, and its type."""


class Scout:
    """Follows a script through its trainings, from the first one on.

    A student's training is a later one: in a round of it, a network that was trained before and is
    not trained now is called on inputs like those of the network that is trained, which was not.
    Inputs of one shape and type are alike; a head is not, that is trained on an encoder's output.

    Attributes:
        loop: the number of the training loop to audit, as far as is known.
        found_student: that one is the training of a student.
    """

    def __init__(self, loop: int, stepped: list[Optimizer]) -> None:
        """``loop`` is the one the script is in, where the optimizers that ``stepped`` did so."""
        self.loop = loop
        self.found_student = False
        self._settled = False
        self._trained = _held(stepped)
        self._now: dict[int, Tensor] = {}
        self._at = loop
        self._called: list[tuple[set[int], set[Input]]] = []
        self._end = time.perf_counter() + LONGEST

    @property
    def over(self) -> bool:
        """Whether it is known which loop to audit, or takes too long to learn."""
        return self._settled or time.perf_counter() > self._end

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The script calls an outermost ``module``."""
        if not self.over:
            inputs = {
                (tuple(tensor.shape[1:]), tensor.dtype)
                for _, tensor in batches.tensors((args, kwargs))
            }
            self._called.append(({id(p) for p in module.parameters()}, inputs))

    def stepped(self, optimizer: Optimizer, loop: int) -> None:
        """An ``optimizer`` has stepped in training loop number ``loop``."""
        if loop > self._at:
            self._trained |= self._now
            self._now, self._at = {}, loop
        held, called = _held([optimizer]), self._called
        self._now |= held
        self._called = []
        if loop == self.loop:
            self._trained |= held
        elif held.keys() & self._trained.keys():
            self._settled = True  # the same network in another phase: both are of one kind
        elif self._learns_from_teacher(called):
            self.loop, self.found_student, self._settled = loop, True, True

    def _learns_from_teacher(self, called: list[tuple[set[int], set[Input]]]) -> bool:
        now, before = self._now.keys(), self._trained.keys()
        students = [inputs for owned, inputs in called if owned & now]
        teachers = [inputs for owned, inputs in called if owned & before and not owned & now]
        return any(student & teacher for student in students for teacher in teachers)


def _held(optimizers: Iterable[Optimizer]) -> dict[int, Tensor]:
    """Return what the ``optimizers`` train by its id, which stays its own while it is kept."""
    return {
        id(parameter): parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
