"""Elementwise operations of (N, 1) with (N,) in the user's own code, which make (N, N)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.observation import Broadcast
from nnaudit.probes.first_steps import First, initial_steps
from nnaudit.report import Location
from nnaudit.targets import batch as batches


def broadcasts_of_rows(audit: Audit, first: First) -> Iterator[Broadcast]:
    """Yield those of the first step that has some whose N is the rows of the batch.

    With a row less in the batch they are of (N - 1, 1) and (N - 1,): a comparison with all classes
    stays as wide as it was. A product counts where it is by a field of the batch, or by one minus
    it, as in a cross-entropy that is written out: weights of all pairs are made some other way.
    """
    for batch, seen in zip(first.batches, first.observations, strict=False):
        if seen.broadcasts:
            lines = _lines_with_fewer_rows(audit, batch)
            for each in seen.broadcasts:
                if each.factor is not None and not _is_of_batch(each.factor, batch):
                    continue
                if each.location in lines and _differ(each, lines[each.location]):
                    yield each
            return


def _is_of_batch(factor: Tensor, batch: Any) -> bool:
    """Whether ``factor`` (N,) is a field of ``batch``, or one minus it."""
    given = factor.double()
    for _, tensor in batches.tensors(batch):
        if tensor.numel() == given.numel() and not tensor.is_complex():
            field = tensor.detach().reshape(-1).to(given)
            if torch.equal(field, given) or torch.equal(1 - field, given):
                return True
    return False


def _lines_with_fewer_rows(audit: Audit, batch: Any) -> dict[Location | None, Broadcast]:
    try:
        fewer = batches.take(batch, batches.size(batch) - 1)
        step = next(initial_steps(audit, [fewer]))
    except (batches.NotSliceableError, UserCodeError):
        return {}
    seen = step.observation
    return {each.location: each for each in seen.broadcasts} if seen is not None else {}


def _differ(one: Broadcast, other: Broadcast) -> bool:
    return one.shapes[0][0] != other.shapes[0][0] and one.shapes[1][0] != other.shapes[1][0]
