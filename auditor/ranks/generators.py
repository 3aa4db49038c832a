"""The state of the random number generators, and what was drawn from them, as hashes."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch

_CUDA: Any = torch.cuda


def states() -> dict[str, str]:
    """Return a hash of the state of every global random number generator."""
    numpy: Any = np.random.get_state()
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": numpy[1].tobytes() + str(numpy[2:]).encode(),
        "random": str(random.getstate()).encode(),
    }
    if _CUDA.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {name: hashlib.blake2b(raw, digest_size=8).hexdigest() for name, raw in found.items()}


def drawn(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Return the states ``before`` of those generators whose state has changed since."""
    return {name: state for name, state in before.items() if after.get(name) != state}
