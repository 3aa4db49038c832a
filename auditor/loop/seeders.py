"""The functions that seed the global generators of random numbers."""

from __future__ import annotations

import random
from types import FrameType
from typing import Any

import numpy as np
import torch

SEEDERS: tuple[tuple[Any, str], ...] = (
    (random, "seed"),
    (np.random, "seed"),
    (torch, "manual_seed"),
    (torch.random, "manual_seed"),
    (torch.cuda, "manual_seed"),
    (torch.cuda, "manual_seed_all"),
)
"""Each as the module that holds it, and its name there."""

RESTORERS: tuple[tuple[Any, str], ...] = (
    (random, "setstate"),
    (np.random, "set_state"),
    (torch, "set_rng_state"),
    (torch.random, "set_rng_state"),
    (torch.cuda, "set_rng_state"),
    (torch.cuda, "set_rng_state_all"),
)
"""The functions that put their states back, likewise."""


def is_torch_inside(caller: FrameType | None) -> bool:
    """Whether it is torch that calls: ``torch.manual_seed`` seeds the accelerators on its way."""
    modules = ("torch.random", "torch.cuda.random")
    return caller is not None and caller.f_globals.get("__name__") in modules
