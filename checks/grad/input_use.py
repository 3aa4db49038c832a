"""GRAD108: whether the output depends on the input at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.probes.perturbation import (
    Call,
    Inputs,
    ModelCall,
    Replay,
    differ,
    noise_floor,
    outputs_of,
    warmed_up,
)
from nnaudit.report import Kind, Numbers, Result
from nnaudit.targets import batch as batches


@dataclass(frozen=True)
class _Change:
    """Largest change of any output, against what two identical calls differ by."""

    largest: float
    floor: float
    repeated: float

    @property
    def visible(self) -> bool:
        return self.largest > self.floor

    @property
    def none(self) -> bool:
        return self.largest <= self.repeated


class InputUse(Check):
    """Does the output change with the input?

    Why: An output that is the same for every input can only learn the average target. The causes
        are units that are all dead, a product with zero, or an input that is overwritten or not
        passed on.
    How: Calls the model in eval mode on the first batch, then with the inputs moved to other rows,
        then with random inputs of the same scale, always from the same state with the same random
        numbers; where nothing changes, in train mode too. A change counts beyond 10 times what two
        identical calls differ by and beyond 64 roundings.
        - Fails when the output does not change at all, even after 5 training steps (an output layer
          may start at zero).
        - Warns when it changes within rounding only: the input is nearly lost.
    Fix: Follow the input through `forward()`: dead ReLUs on the output, a variable that is
        overwritten, a factor of zero.
    References: Lu et al., "Dying ReLU and Initialization", 2019.
    """

    code, name, kind = "GRAD108", "input-use", Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (ModelCall,)
    consequence_of = ("LOSS101",)

    def run(self, audit: Audit) -> Result:
        """Change the inputs, before and after a few steps."""
        call = audit.probe(ModelCall)
        if call is None:
            return self.skipped(
                "The model is not called as a whole: its parts are called one by one."
            )
        try:
            change = _change(audit, call)
        except UserCodeError as error:
            return self.inconclusive(f"The model cannot be called again: {error} (see MODE102).")
        if isinstance(change, str):
            return self.inconclusive(change)
        taken = 0
        if not change.visible and not audit.loop.lacks(Needs.OWN_STEPS):
            taken = warmed_up(audit)
            again = _change(audit, call)
            change = change if isinstance(again, str) else again
        return self._fine(change) if change.visible else self._lost(audit, change, taken)

    def _fine(self, change: _Change) -> Result:
        return self.passed(
            "The output changes with the input.",
            measured=f"largest change {change.largest:.3g}",
            threshold=f"more than {change.floor:.3g}",
        )

    def _lost(self, audit: Audit, change: _Change, taken: int) -> Result:
        details: dict[str, Any] = {
            "measured": f"largest change {change.largest:.3g} after {taken} steps",
            "threshold": f"more than {change.floor:.3g}",
            "evidence": (
                Numbers(
                    title="Change of the output with other inputs",
                    values={"largest change": change.largest, "rounding": change.floor},
                ),
            ),
            "location": audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
        }
        if change.none:
            return self.failed(
                f"The output is the same for every input, before training and after {taken} steps.",
                fix="Follow the input through forward(): dead units, a factor of zero, or a "
                "variable that is overwritten.",
                **details,
            )
        return self.warned(
            f"The output changes with the input by only {change.largest:.2g}, no more than "
            "rounding errors: the input is nearly lost inside the network.",
            fix="Add normalisation layers or skip connections; check the scale of the weights.",
            **details,
        )


def _change(audit: Audit, call: Call) -> _Change | str:
    """Look in eval mode, and where nothing shows in train mode, as training does.

    Untrained running statistics of a normalisation can shrink everything to nothing.
    """
    change = _change_in(audit, call, train=False)
    if isinstance(change, str) or not change.visible:
        in_training = _change_in(audit, call, train=True)
        if isinstance(change, str) or (not isinstance(in_training, str) and in_training.visible):
            return in_training
    return change


def _change_in(audit: Audit, call: Call, *, train: bool) -> _Change | str:
    with Replay(audit.loop, call, train=train) as replay:
        output = replay()
        base = outputs_of(output)
        if base is None or not base.numel():
            return "The model returns no floating-point tensor."
        if not bool(torch.isfinite(base).all()):
            return "The outputs are NaN or infinite."
        floor = noise_floor(replay, audit.loop.model, output)
        repeated = outputs_of(replay())
        differs = 0.0 if repeated is None else 10.0 * float((repeated - base).abs().max())
        largest, tried = 0.0, False
        for inputs in _others(call.inputs, audit.seed):
            if not differ(inputs, call.inputs):
                continue
            try:
                moved = outputs_of(replay(inputs))
            except UserCodeError:  # not every model takes random numbers
                continue
            if moved is None:
                continue
            tried = True
            if moved.shape != base.shape:
                return _Change(math.inf, floor, differs)
            distance = float((moved - base).abs().max())
            largest = max(largest, math.inf if math.isnan(distance) else distance)
            if largest > floor:
                break
    return _Change(largest, floor, differs) if tried else "No other inputs could be tried."


def _rolled_sparse(leaf: Tensor) -> Tensor:
    """Return ``leaf`` with every row in the place of the next one."""
    whole = leaf.coalesce()
    places = whole.indices().clone()
    places[0] = (places[0] + 1) % leaf.shape[0]
    return torch.sparse_coo_tensor(places, whole.values(), leaf.shape).coalesce()


def _is_dense(leaf: Any) -> bool:
    """Whether ``leaf`` is a tensor that values can be moved about in: no sparse one."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided


def _others(inputs: Inputs, seed: int) -> list[Inputs]:
    generator = torch.Generator().manual_seed(seed)

    def rolled(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.layout is torch.sparse_coo:
            return _rolled_sparse(leaf)
        return leaf.roll(1, 0) if _is_dense(leaf) and leaf.ndim else leaf

    def drawn(leaf: Any) -> Any:
        if not _is_dense(leaf) or not leaf.numel():
            return leaf
        if not leaf.is_floating_point():
            flat = leaf.reshape(-1)
            return flat[torch.randperm(len(flat), generator=generator).to(leaf.device)].view_as(
                leaf
            )
        values = leaf.float()
        size = float(values.std(correction=0)) or float(values.abs().max()) or 1.0
        noise = torch.randn(leaf.shape, generator=generator).to(leaf.device)
        return (values + size * noise).to(leaf.dtype)

    return [batches.map_leaves(inputs, rolled), batches.map_leaves(inputs, drawn)]
