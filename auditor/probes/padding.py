"""The same sequences with more and with less padding: whether the network can tell.

In a batch of sequences of different lengths the short ones are padded to the longest. The shorter
half of a real batch is run as it is, and once more without the padding that only the longer half
had made necessary: exactly what the loader would have made of these rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.probes.perturbation import call_on, warmed_up
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.targets.model_inputs import main_tensor

BATCHES = 16
SECONDS = 5.0
LEAST_ROWS = 4
LEAST_WIDTH = 4
TRIMMED = 0.1
"""Share of the width that must be only padding of the rows that are compared."""


@dataclass(frozen=True)
class Padding:
    """Where a batch is padded.

    Attributes:
        valid: which positions hold content, (B, T): the first ones of each row.
        told: the path of the mask or of the lengths that say so; empty where only a pad id does.
        marker: the mask or the lengths themselves.
    """

    valid: Tensor
    told: str
    marker: Tensor | None

    @property
    def lengths(self) -> Tensor:
        """By row, (B,)."""
        return self.valid.sum(1)


@dataclass(frozen=True)
class Moved:
    """Changes of outputs, in deviations among them: the median one and the largest."""

    median: float
    most: float


@dataclass(frozen=True)
class Leak:
    """How outputs and loss of the same rows depend on how far they are padded.

    Attributes:
        padding: of the batch.
        passed_on: the mask or the lengths are among what the model is called with.
        dynamic: batches are not all padded to the same width.
        rows: how many rows were compared.
        width, trimmed: their width in the batch, and without the needless padding.
        units: outputs compared, one per row or per position that holds content.
        moved: the median and the largest change of a unit's output, in deviations among units;
            None where outputs do not vary, or vary by themselves.
        losses: with more and with less padding; None without a loss.
        noise: how far the loss is from itself when computed again.
    """

    padding: Padding
    passed_on: bool
    dynamic: bool
    rows: int
    width: int
    trimmed: int
    units: int
    moved: Moved | None
    losses: tuple[float, float] | None
    noise: float


@dataclass(frozen=True)
class NoPadding:
    """Why there is nothing to compare; ``applies`` says that there is padding all the same."""

    why: str
    applies: bool = False


class PaddingContrast(Probe[Leak | NoPadding]):
    """Compares the shorter rows of a padded batch with and without the padding they share."""

    def measure(self, audit: Audit) -> Leak | NoPadding:
        """Find a batch with enough padding among the first ones, and run it both ways.

        Raises:
            UserCodeError: the loader, or the model on a batch as it is, raised.
            OutOfBudgetError: the time is used up.
        """
        found, widths = _padded_batch(audit)
        if found is None:
            return NoPadding("no padding marked by a mask, by lengths or by padding_idx was found")
        batch, padding = found
        chosen = _shorter_rows(padding)
        if chosen is None:
            return NoPadding("the sequences of a batch are too similar in length to compare", True)
        rows, length = chosen
        try:
            wide = batches.rows(batch, rows.tolist())
        except NotSliceableError as error:
            return NoPadding(str(error), True)
        narrow = _trimmed(wide, padding.valid.shape[1], length)
        if narrow is None:
            return NoPadding("one field of the batch has content where another is padded", True)
        return _compare(audit, found, rows, (wide, narrow), dynamic=len(widths) > 1)


def _padded_batch(audit: Audit) -> tuple[tuple[Any, Padding] | None, set[int]]:
    """Return the batch of the first ones with most to trim, and all widths that were seen."""
    loop = audit.loop
    pad_ids = pad_ids_of(loop.model)
    best: tuple[Any, Padding] | None = None
    most, widths = -1.0, set()
    started = time.perf_counter()
    for batch in islice(loop.batches(), BATCHES):
        audit.clock.check()
        padding = padding_of_batch(batch, pad_ids)
        if padding is not None:
            width = padding.valid.shape[1]
            widths.add(width)
            share = 1 - float(padding.lengths.float().median()) / width
            if share > most:
                best, most = (batch, padding), share
        if time.perf_counter() - started > SECONDS:
            break
    return best, widths


def pad_ids_of(model: nn.Module) -> set[int]:
    """Return the ids that the embeddings of ``model`` take for padding."""
    return {
        int(module.padding_idx)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }


def padding_of_batch(batch: Any, pad_ids: set[int]) -> Padding | None:
    """Return where ``batch`` is padded on the right; None where nothing says so, or it is not.

    A mask is a tensor (B, T) of two values, one of them first in each row and the other to its end;
    lengths are whole numbers (B,). Either counts only where some sequence holds one and the same
    filler in all the places that are then padding, and mostly something else right before them.
    """
    n = batches.size(batch)
    tensors = [
        (path, t.detach().cpu())
        for path, t in batches.tensors(batch)
        if t.ndim > 0 and t.shape[0] == n and t.layout is torch.strided and not t.is_complex()
    ]
    wide = [(path, t) for path, t in tensors if t.ndim in (2, 3) and t.shape[1] >= LEAST_WIDTH]
    for path, valid, marker in _candidates(tensors, wide, pad_ids):
        content = [t for other, t in wide if other != path and t.shape[1] == valid.shape[1]]
        padded = not bool(valid.all()) and bool(valid[:, 0].all())
        if padded and any(_ends_with(t, valid) for t in content):
            return Padding(valid, path if path else "", marker if path else None)
    return None


def _candidates(
    tensors: list[tuple[str, Tensor]], wide: list[tuple[str, Tensor]], pad_ids: set[int]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield ``(path, valid, marker)`` of each mask, then lengths, then ids (with an empty path)."""
    for path, t in wide:
        if t.ndim == 2 and len(torch.unique(t)) == 2:
            same = t == t[:, :1]
            uniform = bool((t[:, 0] == t[0, 0]).all())
            if uniform and bool((same == same.long().cumprod(1).bool()).all()):
                yield path, same, t
    for path, t in tensors:
        whole = not (t.is_floating_point() or t.dtype is torch.bool)
        if t.ndim == 1 and whole and len(torch.unique(t)) > 1 and int(t.min()) > 0:
            for width in sorted({other.shape[1] for _, other in wide}):
                if int(t.max()) <= width:
                    yield path, torch.arange(width) < t[:, None], t
    for _, t in wide:
        whole = not (t.is_floating_point() or t.dtype is torch.bool)
        for pad in pad_ids if t.ndim == 2 and whole else ():
            content = (t != pad).flip(1).long().cummax(1).values.flip(1).bool()
            yield "", content, t


def _ends_with(sequence: Tensor, valid: Tensor) -> bool:
    """Whether ``sequence`` holds one filler where it is not valid, and other things before."""
    padding = sequence[~valid]
    filler = padding[:1]
    if not bool((padding == filler).all()):
        return False
    last = sequence[torch.arange(len(valid)), valid.sum(1) - 1]
    other = (last != filler).reshape(len(valid), -1).any(1)
    return bool(other.float().mean() >= 0.8)


def _shorter_rows(padding: Padding) -> tuple[Tensor, int] | None:
    """Return the shorter half of the rows, or fewer, and the longest of their lengths."""
    lengths, width = padding.lengths, padding.valid.shape[1]
    order = torch.argsort(lengths)
    count = len(order) // 2
    while count >= LEAST_ROWS:
        longest = int(lengths[order[:count]].max())
        if width - longest >= max(2, TRIMMED * width):
            return order[:count].sort().values, longest
        count -= 1
    return None


def _trimmed(batch: Any, width: int, length: int) -> Any | None:
    """Return ``batch`` cut to ``length`` along its width; None if that would cut off content."""
    lost = False

    def cut(leaf: Any) -> Any:
        nonlocal lost
        if not isinstance(leaf, Tensor) or leaf.ndim < 2 or leaf.shape[1] != width:
            return leaf
        if leaf.ndim > 2 and leaf.shape[2] == width:
            return leaf[:, :length, :length]
        rest = leaf[:, length:]
        lost = lost or not bool((rest == rest[:1, :1]).all())
        return leaf[:, :length]

    made = batches.map_leaves(batch, cut)
    return None if lost else made


# --- running it both ways ------------------------------------------------------------------------


def _compare(
    audit: Audit, found: tuple[Any, Padding], rows: Tensor, both: tuple[Any, Any], *, dynamic: bool
) -> Leak | NoPadding:
    loop = audit.loop
    (batch, padding), (wide, narrow) = found, both
    valid = padding.valid[rows]
    length = int(valid.sum(1).max())
    with preserved(loop.subjects):
        passed_on = _is_passed_on(loop, batch, padding)
        measured = _measured(loop, wide, narrow, valid[:, :length])
        if isinstance(measured, str):
            return NoPadding(measured, True)
        if measured[1] is None and not loop.lacks(Needs.OWN_STEPS):
            # A head that starts at zero says nothing until it has left it.
            warmed_up(audit)
            again = _measured(loop, wide, narrow, valid[:, :length])
            measured = measured if isinstance(again, str) else again
    units, moved, losses, noise = measured
    return Leak(
        padding=padding,
        passed_on=passed_on,
        dynamic=dynamic,
        rows=len(rows),
        width=valid.shape[1],
        trimmed=length,
        units=units,
        moved=moved,
        losses=losses,
        noise=noise,
    )


def _is_passed_on(loop: Loop, batch: Any, padding: Padding) -> bool:
    if padding.marker is None:
        return False
    call = call_on(loop, batch)
    given = [t.detach().cpu() for _, t in batches.tensors(call.inputs)] if call is not None else []
    return any(
        t.shape == padding.marker.shape
        and (torch.equal(t.long(), padding.marker.long()) or _opposite(t, padding.marker))
        for t in given
        if not t.is_complex()
    )


def _opposite(one: Tensor, other: Tensor) -> bool:
    """Whether one mask marks what the other leaves."""
    return one.ndim == 2 and bool(((one != 0) == (other == 0)).all())


_Measured = tuple[int, Moved | None, tuple[float, float] | None, float]


def _measured(loop: Loop, wide: Any, narrow: Any, valid: Tensor) -> _Measured | str:
    try:
        third = loop.forward(narrow)
    except UserCodeError as error:
        return f"the model cannot run on the shorter sequences alone: {error}"
    try:
        first, second = loop.forward(wide), loop.forward(wide)
    except UserCodeError as error:
        return f"the model cannot run on sequences with more padding than they need: {error}"
    one, again, other = (main_tensor(each.output) for each in (first, second, third))
    units, moved = 0, None
    if one is not None and again is not None and other is not None:
        units, moved = _moved((one, again, other), valid)
    losses, noise = None, 0.0
    if first.loss is not None and second.loss is not None and third.loss is not None:
        losses, noise = (first.loss, third.loss), abs(first.loss - second.loss)
    return units, moved, losses, noise


def _moved(outputs: tuple[Tensor, Tensor, Tensor], valid: Tensor) -> tuple[int, Moved | None]:
    """Return how many units of output there are, and how far they move.

    ``outputs`` are those of the wide rows, of the same once more, and of the narrow ones.

    A unit is the output of a row, (C,), or of a position that holds content.
    """
    values = [output.detach().cpu().double() for output in outputs]
    if values[0].shape == values[2].shape:
        units = [value.reshape(len(value), -1) for value in values]
    else:
        units = [made for v in values if (made := _by_position(v, valid)) is not None]
    if len(units) < 3 or len({u.shape for u in units}) > 1 or len(units[0]) < LEAST_ROWS:
        return 0, None
    base, repeat, changed = units
    spread = float((changed - changed.mean(0)).square().sum(1).mean().sqrt())
    scale = float(changed.abs().max())
    if spread <= 1e-6 * scale or float((base - repeat).norm(dim=1).max()) > 1e-3 * spread:
        return len(base), None
    change = (base - changed).norm(dim=1) / spread
    return len(base), Moved(float(change.median()), float(change.max()))


def _by_position(output: Tensor, valid: Tensor) -> Tensor | None:
    """Return the outputs of the valid positions, (units, C): of (n, T, ...), or (n, C, T)."""
    rows, length = valid.shape
    if output.shape[0] != rows or output.ndim < 2:
        return None
    if output.ndim == 3 and output.shape[1] < length <= output.shape[2]:
        output = output.transpose(1, 2)
    if output.shape[1] < length:
        return None
    kept = output[:, :length][valid]
    return kept.reshape(len(kept), -1)
