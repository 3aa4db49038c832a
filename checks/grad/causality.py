"""GRAD104: whether a next-token model sees the token it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.measure.noise import eps_of, tolerance
from nnaudit.probes.perturbation import (
    Call,
    ModelCall,
    Replay,
    Shift,
    compact,
    padding_of,
    position_changed,
    shift_of,
    warmed_up,
)
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor

_ROWS = 3
"""Rows to test: one is enough to prove a leak, three make sure that it is seen."""


@dataclass(frozen=True)
class _Reaction:
    """How outputs of one row react to another value at ``position``: before, at and after it."""

    row: int
    position: int
    before: float
    at: float
    after: float
    floor: float


class Causality(Check):
    """Does a next-token model predict each token without seeing it?

    Why: With a missing causal mask, a bidirectional layer or a convolution padded on both sides,
        the token to be predicted is among the inputs. The loss falls to nearly nothing and
        generated text is worthless. The same happens when the target is the input itself, not
        shifted by one.
    How: Replaces one token x_t by another (never padding), in eval mode, at the second, the middle
        and the last position of up to 3 rows. Outputs of the same row at positions before t that
        have a target must not change by more than 10 times what two identical calls differ by, or
        64 roundings: it fails otherwise.
        - Asked only where the target is the input shifted by one position: equal at 90% of the
          positions that count, as found in what the loss is called with.
        - Where outputs do not yet depend on earlier positions (layers that start at zero), 5
          training steps are taken first.
        - A target that equals the input at every position fails when the output at t depends on x_t
          and on nothing after it (copying). Autoencoders, which depend on later positions, and
          models that shift internally are skipped.
        - Prefixes without targets may see each other.
    Fix: `is_causal=True`, or a mask `torch.triu(..., diagonal=1)` added before the softmax; padding
        on the left only; `inputs, targets = ids[:, :-1], ids[:, 1:]`. With a mask in place, look
        for other ways across positions: a mask that is not passed on or blocks the wrong side,
        statistics or pooling over time, a bidirectional layer.
    References: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.3; Karpathy, "A
        Recipe for Training Neural Networks", 2019.
    """

    code, name, kind = "GRAD104", "causality", Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (ModelCall,)

    def run(self, audit: Audit) -> Result:
        """Replace tokens and watch earlier outputs."""
        call = audit.probe(ModelCall)
        if call is None:
            return self.skipped(
                "The model is not called as a whole: its parts are called one by one."
            )
        shift = shift_of(call)
        if shift is None:
            return self.skipped("The target is not the input shifted by one position.")
        try:
            reactions = _reactions(audit, call, shift)
            if isinstance(reactions, str):
                return self.skipped(reactions)
            silent = not _looks_back(reactions) and not _leaks(reactions)
            if silent and not audit.loop.lacks(Needs.OWN_STEPS):
                warmed_up(audit)
                again = _reactions(audit, call, shift)
                reactions = reactions if isinstance(again, str) else again
        except UserCodeError as error:
            return self.inconclusive(f"The model cannot be called again: {error}.")
        if not reactions:
            return self.inconclusive("No token of the first batch could be replaced.")
        return self._judged(audit, shift, reactions)

    def _judged(self, audit: Audit, shift: Shift, reactions: list[_Reaction]) -> Result:
        leaks = _leaks(reactions)
        direct = any(r.at > r.floor for r in reactions)
        table = Table(
            title="Change of a row's outputs when one of its tokens is replaced",
            columns=("row", "position", "outputs before", "at the position", "after"),
            rows=tuple((r.row, r.position, r.before, r.at, r.after) for r in reactions),
        )
        details: dict[str, Any] = {
            "threshold": f"{max(r.floor for r in reactions):.2g}",
            "evidence": (table,),
            "location": audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
        }
        if not shift.shifted:
            return self._unshifted(leaks, direct, details)
        if leaks:
            worst = max(leaks, key=lambda r: r.before)
            return self.failed(
                f"Replacing the token at position {worst.position} changes outputs at earlier "
                f"positions by up to {worst.before:.3g}: the model sees the tokens it predicts.",
                fix="Pass is_causal=True or a causal mask to every attention. If there is one, "
                "check that it blocks later positions, and look for other ways across positions: "
                "convolutions padded on both sides, pooling or statistics over time, "
                "bidirectional layers.",
                measured=f"change of earlier outputs {worst.before:.3g}",
                **details,
            )
        if not direct and not _looks_back(reactions):
            return self.inconclusive("The outputs do not depend on the tokens yet.")
        return self.passed(
            "Replacing a token changes no output before it.",
            measured=f"change of earlier outputs {max(r.before for r in reactions):.2g}",
            threshold=details["threshold"],
        )

    def _unshifted(self, leaks: list[_Reaction], direct: bool, details: dict[str, Any]) -> Result:
        if leaks:
            return self.skipped(
                "The target is the input, and the model sees all of it (an autoencoder)."
            )
        if not direct:
            return self.skipped(
                "The target is the input, but the model does not see the token it predicts."
            )
        return self.failed(
            "The target is the input itself, not shifted by one: at each position the model only "
            "has to copy its input.",
            fix="inputs, targets = ids[:, :-1], ids[:, 1:]",
            measured="target equals input at all positions",
            **details,
        )


def _leaks(reactions: list[_Reaction]) -> list[_Reaction]:
    return [r for r in reactions if r.before > r.floor]


def _looks_back(reactions: list[_Reaction]) -> bool:
    return any(r.after > r.floor for r in reactions)


def _reactions(audit: Audit, call: Call, shift: Shift) -> list[_Reaction] | str:
    with Replay(audit.loop, call) as replay:
        base = _by_position(replay(), shift)
        again = _by_position(replay(), shift)
        if base is None or again is None or base.shape != again.shape:
            return "The model's output has no position for each token."
        if not bool(torch.isfinite(base).all()):
            return "The outputs are NaN or infinite."
        floor = tolerance(base, again, eps=eps_of(audit.loop.model))
        found = []
        padding = padding_of(audit.loop.model, shift)
        for row, position in _places(shift):
            audit.clock.check()
            inputs = position_changed(call, shift, row, position, padding)
            output = None if inputs is None else _by_position(replay(inputs), shift)
            if output is not None and output.shape == base.shape:
                change = (output[row] - base[row]).abs().amax(-1)
                found.append(_reaction(change, shift, row, position, floor))
    return found


def _places(shift: Shift) -> list[tuple[int, int]]:
    """Return up to three positions in each of up to three rows that have many targets."""
    rows = torch.argsort(shift.valid.sum(1), descending=True, stable=True)[:_ROWS].tolist()
    places = []
    for row in rows:
        counting = shift.valid[row].nonzero().flatten().tolist()
        if len(counting) > 1:
            last = min(counting[-1], shift.valid.shape[1] - 1)
            middle = counting[len(counting) // 2]
            places += [(row, t) for t in sorted({counting[1], middle, last})]
    return places


def _reaction(change: Tensor, shift: Shift, row: int, position: int, floor: float) -> _Reaction:
    width = min(len(change), shift.valid.shape[1])
    counts = shift.valid[row, :width].to(change.device)
    earlier = change[: min(position, width)][counts[:position]]
    at = float(change[position]) if position < len(change) else 0.0
    later = change[position + 1 :]
    return _Reaction(row, position, _largest(earlier), at, _largest(later), floor)


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _by_position(output: Any, shift: Shift) -> Tensor | None:
    """Return the output as (B, T, ...) flattened to three dimensions; None if it has no T."""
    tokens = shift.tokens.transpose(0, 1) if shift.time == 0 else shift.tokens
    rows, length = tokens.shape[:2]
    main = main_tensor(output)
    for tensor in [*([main] if main is not None else []), *(t for _, t in batches.tensors(output))]:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            continue
        arranged = _arranged(tensor, rows, length, shift.time)
        if arranged is not None:
            return compact(arranged)
    return None


def _arranged(tensor: Tensor, rows: int, length: int, time: int) -> Tensor | None:
    if time == 0 and tensor.ndim >= 2 and tensor.shape[:2] == (length, rows):
        return tensor.transpose(0, 1).reshape(rows, length, -1)
    for width in (length, length - 1):
        if tensor.ndim >= 2 and tensor.shape[:2] == (rows, width):
            return tensor.reshape(rows, width, -1)
        if tensor.ndim == 3 and (tensor.shape[0], tensor.shape[2]) == (rows, width):
            return tensor.transpose(1, 2)
        if tensor.ndim == 2 and tensor.shape[0] == rows * width:
            if time == 0:
                return tensor.reshape(width, rows, -1).transpose(0, 1)
            return tensor.reshape(rows, width, -1)
    return None
