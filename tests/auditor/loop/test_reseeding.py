"""Which seeds of a script are shifted for another run: all but a literal one set on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnaudit.loop.script.reseeding import shifting
from nnaudit.measure.seeding import Seeding, watching_seeds

SHIFT = 1_000


@pytest.fixture
def seeded(tmp_path: Path) -> Callable[..., int]:
    """Execute a script's text under a shift, and return what torch was seeded with."""

    def run(text: str, *, preamble: bool = False, **variables: Any) -> int:
        path = tmp_path / "train.py"
        path.write_text(text)
        with torch.random.fork_rng(), shifting(SHIFT, lambda: preamble, lambda: True):
            exec(compile(text, str(path), "exec"), {"torch": torch, **variables})
            return torch.initial_seed()

    return run


LITERAL = [
    "torch.manual_seed(42)\n",
    "torch.manual_seed(\n    42\n)\n",
    "torch.manual_seed(\n    seed=42,\n)\n",
    "torch.manual_seed(0x2A)\n",
    "alias = torch\nalias.random.manual_seed(42)\n",
]


@pytest.mark.parametrize("text", LITERAL)
def test_a_literal_seed_stays_however_it_is_written(seeded: Any, text: str) -> None:
    assert seeded(text) == 42
    assert seeded(text, preamble=True) == 42 + SHIFT, "before anything is made, it is the run's"


@pytest.mark.parametrize(
    "text",
    [
        "torch.manual_seed(int('42'))\n",
        "seed = 42\ntorch.manual_seed(seed)\n",
        "seed = 42\ntorch.manual_seed(seed)  # not manual_seed(42)\n",
        "seed = 40\ntorch.manual_seed(\n    seed\n    + 2\n)\n",
    ],
)
def test_a_computed_seed_is_shifted(seeded: Any, text: str) -> None:
    assert seeded(text) == 42 + SHIFT


@pytest.mark.parametrize("text", LITERAL)
def test_who_watches_the_seeds_does_not_change_which_are_shifted(seeded: Any, text: str) -> None:
    """Whether the watch was put on before, or on a script that runs already."""
    with watching_seeds():
        assert seeded(text) == 42
    body = "".join(f"    {line}\n" for line in (*text.splitlines(), "seen.extend(watch.seen)"))
    seen: list[Seeding] = []
    watched = f"with watching() as watch:\n{body}"
    assert seeded(watched, watching=watching_seeds, seen=seen) == 42
    assert {each.location.line for each in seen} == {
        1 + text.count("\n", 0, text.index("seed(")) + 1
    }


def test_other_generators_are_shifted_too(seeded: Any) -> None:
    states = random.getstate(), np.random.get_state()
    try:
        seeded("import random, numpy\nn = 5\nrandom.seed(n)\nnumpy.random.seed(n)\n")
        found = random.random(), np.random.rand()
        random.seed(5 + SHIFT)
        np.random.seed(5 + SHIFT)
        assert found == (random.random(), np.random.rand())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
