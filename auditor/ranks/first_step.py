"""The first optimizer step of a rank, to be taken again in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 64_000_000
"""Elements of a network up to which its weights and gradients are kept: a quarter of a gigabyte of
each in single precision."""


@dataclass
class FirstStep:
    """What a rank took its first step with.

    Attributes:
        batch: the only batch that it had read.
        weights: by name, the parameters before the step.
        gradients: by name, as the optimizer was about to use them: after the reduction.
    """

    batch: Any
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


def kept(networks: Sequence[nn.Module], batches: Sequence[Any]) -> FirstStep | None:
    """Return the step that is about to be taken; None where it cannot be taken again.

    That is where there are several networks, batches for one step, sharded or too many weights.
    """
    if len(networks) != 1 or len(batches) != 1:
        return None
    named = dict(networks[0].named_parameters())
    plain = all(type(p) is nn.Parameter for p in named.values())
    if not plain or sum(p.numel() for p in named.values()) > LARGEST:
        return None
    gradients = {n: p.grad.detach().cpu().clone() for n, p in named.items() if p.grad is not None}
    weights = {name: p.detach().cpu().clone() for name, p in named.items()}
    return FirstStep(batches[0], weights, gradients)


def place(folder: Path, rank: int) -> Path:
    """Return where a rank leaves its step."""
    return folder / f"first_step{rank}.pt"


def load(folder: Path, count: int) -> tuple[FirstStep, ...]:
    """Return the steps that all ``count`` ranks left; nothing where one has left none.

    Raises:
        Exception: a batch is of a class that this process does not know.
    """
    files = [place(folder, rank) for rank in range(count)]
    if not all(file.exists() for file in files):
        return ()
    return tuple(torch.load(file, weights_only=False, map_location="cpu") for file in files)
