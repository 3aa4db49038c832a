"""Targets that a step draws at random, and whether the network is given anything made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import seed_everything
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.source import source_of

_DRAWS = frozenset(
    {
        torch.randn, torch.randn_like, torch.normal, Tensor.normal_, torch.randint,
        torch.randint_like,
    }
)  # fmt: skip
"""What draws noise or classes; uniform numbers may be labels that are smoothed at random."""

_NAMES = frozenset({"randn", "randn_like", "normal", "normal_", "randint", "randint_like"})

_FEWEST = 16
"""Numbers of which it is no chance that a target holds the very same."""

_MOST = 8
"""Draws of a step that are tried."""


@dataclass(frozen=True)
class DrawnTarget:
    """A target whose rows are those of a draw.

    Attributes:
        seen: whether an input of the network, or of a part of it, changes with the draw.
        moved: a row of the draw changes another row of the first such input than of the target.
        alone: the step compares nothing else.
        location: the line of the loss.
    """

    seen: bool
    moved: bool
    alone: bool
    location: Location | None


class DrawnTargets(Probe[tuple[DrawnTarget, ...]]):
    """Takes a step and, where its target was drawn, others with another first row of the draw."""

    steps = 1

    def measure(self, audit: Audit) -> tuple[DrawnTarget, ...]:
        """Return the targets that are a draw; none where the source draws none.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        calls = (call for file in source_files(loop) for call in source_of(file).calls)
        if not any(call.name in _NAMES for call in calls):
            return ()
        batch = next(iter(consecutive_batches(loop, 1)), None)
        try:
            found = _taken(audit, batch)
            if not any(_of_draw(draw, found) for draw in found.draws):
                return ()
            first = _taken(audit, batch, hooked=True)
            return tuple(_drawn_targets(audit, batch, first))
        except UserCodeError:
            return ()


@dataclass
class _Seen:
    """What one step drew, gave to the networks, and compared."""

    draws: list[Tensor] = field(default_factory=list)
    inputs: list[list[Tensor]] = field(default_factory=list)
    """By call of the network or a part of it, a number for each row of each input."""
    targets: list[tuple[Tensor, Location | None]] = field(default_factory=list)


def _taken(audit: Audit, batch: Any, turned: int = -1, *, hooked: bool = False) -> _Seen:
    """Take a step from one random state; the first row of draw number ``turned`` is another one.

    What the networks are given is noted where it is ``hooked``.

    Raises:
        UserCodeError: the step raised.
        OutOfBudgetError: the time is used up.
    """
    loop, seen = audit.loop, _Seen()
    audit.clock.check()
    with ExitStack() as stack:
        stack.enter_context(preserved(loop.subjects))
        seed_everything(audit.seed)
        models = loop.models if hooked else ()
        for module in (part for model in models for part in model.modules()):
            if not isinstance(module, torch.jit.ScriptModule):
                hook = module.register_forward_pre_hook(_noting(seen), with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(_Draws(seen, turned))
        taken = loop.step(batches.clone(batch), losses=True).observation
    for call in taken.loss_calls if taken is not None else ():
        if call.compares:
            seen.targets.append((call.target, call.location))
    return seen


def _noting(seen: _Seen) -> Any:
    def called(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.inputs.append([_told(t) for _, t in batches.tensors((args, kwargs))])

    return called


class _Draws(ResultTap):
    """Keeps what is drawn, and turns the first row of one of the draws round."""

    def __init__(self, seen: _Seen, turned: int) -> None:
        super().__init__()
        self._seen, self._turned = seen, turned

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Keep a draw of several rows."""
        if func not in _DRAWS or made.ndim == 0 or len(made) < 2 or made.numel() < _FEWEST:
            return
        if len(self._seen.draws) >= _MOST:
            return
        if len(self._seen.draws) == self._turned:
            made.data[0] = _another(made)
        self._seen.draws.append(made.detach().clone())


def _another(made: Tensor) -> Tensor:
    """Return another first row: of noise its opposite, of classes one that is among the rest."""
    if made.is_floating_point():
        return -made[0]
    others = made[1:].reshape(-1)
    other = others[others != made[0].reshape(-1)[0]][:1]
    return made[0] if not len(other) else torch.full_like(made[0], int(other))


def _drawn_targets(audit: Audit, batch: Any, first: _Seen) -> Iterator[DrawnTarget]:
    for number, draw in enumerate(first.draws):
        of_draw = _of_draw(draw, first)
        if not of_draw:
            continue
        second = _taken(audit, batch, number, hooked=True)
        if [len(s.targets) for s in (first, second)] != [len(first.targets)] * 2:
            continue
        if len(first.inputs) != len(second.inputs) or not first.inputs:
            continue
        pairs = zip(first.inputs, second.inputs, strict=True)
        given = next((rows for before, after in pairs if (rows := _changed(before, after))), set())
        for i in of_draw:
            target, place = first.targets[i]
            rows = _changed([_told(target)], [_told(second.targets[i][0])])
            if len(rows) == 1:
                moved = bool(given) and not rows <= given
                yield DrawnTarget(bool(given), moved, len(first.targets) == 1, place)


def _of_draw(draw: Tensor, seen: _Seen) -> list[int]:
    """Return the numbers of the targets that hold the rows of ``draw``."""
    return [i for i, (target, _) in enumerate(seen.targets) if _same_rows(target, draw)]


def _told(tensor: Tensor) -> Tensor:
    """Return a number for each row, (N,), which another row, or another order, changes."""
    rows = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1)
    if tensor.layout is not torch.strided or tensor.is_complex() or not rows.shape[1]:
        return torch.zeros(len(rows))
    weights = torch.arange(1, rows.shape[1] + 1, device=rows.device).double().cos()
    return (rows.double() * weights).sum(1).cpu()


def _same_rows(target: Tensor, draw: Tensor) -> bool:
    """Whether ``target`` holds the rows of ``draw`` and no others, in any order."""
    if target.numel() != draw.numel() or target.shape[:1] != draw.shape[:1]:
        return False
    one, other = (_told(each).sort().values for each in (target, draw))
    return torch.equal(one, other)


def _changed(before: list[Tensor], after: list[Tensor]) -> set[int]:
    """Return the rows that any of the inputs has otherwise."""
    pairs = zip(before, after, strict=False)
    return {
        row
        for one, other in pairs
        if one.shape == other.shape
        for row in (one != other).nonzero().flatten().tolist()
    }
