from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnaudit.measure.seeding import unseeded_lines, watching_seeds


@pytest.mark.parametrize(
    ("line", "clock"),
    [
        ("rng = np.random.default_rng()", False),
        ("rng = default_rng(None)", False),
        ("rng = np.random.RandomState()", False),
        ("rng = random.Random()", False),
        ("rng = random.SystemRandom()", False),
        ("random.seed()", False),
        ("x = os.urandom(4)", False),
        ("name = uuid.uuid4()", False),
        ("torch.manual_seed(int(time.time()))", True),
        ("np.random.seed(time.time_ns() % 2**32)", True),
        ("rng = np.random.default_rng(seed=int(datetime.now().timestamp()))", True),
        ("SEED = int(time.time())", True),
        ("pl.seed_everything(os.getpid())", True),
    ],
)
def test_a_line_that_no_seed_determines_is_found(tmp_path: Path, line: str, clock: bool) -> None:
    file = tmp_path / "a.py"
    file.write_text(f"import os\n{line}\n")
    (found,) = unseeded_lines([file])
    assert (found.location.line, found.text, found.clock) == (2, line, clock)


@pytest.mark.parametrize(
    "line",
    [
        "rng = np.random.default_rng(0)",
        "rng = np.random.default_rng(seed)",
        "torch.manual_seed(args.seed)",
        "started = time.time()",
        "random.seed(0)",
        "x = rng.random()",
        "print(f'{time.time() - start:.1f} s')",
    ],
)
def test_a_line_that_is_seeded_or_draws_nothing_is_not(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.py"
    file.write_text(line)
    assert unseeded_lines([file, tmp_path / "none.py"]) == ()


def seeds_itself() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def test_who_seeds_is_noted_and_the_functions_are_put_back() -> None:
    before = torch.manual_seed, np.random.seed, random.seed, torch.set_rng_state
    with watching_seeds() as watch:
        seeds_itself()
        watch.phase = "reading"
        torch.random.manual_seed(4)
        with torch.random.fork_rng():
            torch.manual_seed(5)
    assert (torch.manual_seed, np.random.seed, random.seed, torch.set_rng_state) == before
    building = [each for each in watch.seen if each.during == "building"]
    assert [each.function for each in building] == [
        "random.seed",
        "numpy.random.seed",
        "torch.manual_seed",
    ]
    assert building[0].within[0] == "seeds_itself"
    assert building[0].location.line == seeds_itself.__code__.co_firstlineno + 1
    # What is undone is forgotten, with what came before it in the same phase.
    assert [each for each in watch.seen if each.during == "reading"] == []


def test_a_program_that_starts_again_does_not_seed_while_reading() -> None:
    loop = SimpleNamespace(starting=True)
    with watching_seeds() as watch:
        watch.phase, watch.loop = "reading", loop  # type: ignore[assignment]
        seeds_itself()
        assert watch.seen == []
        loop.starting = False
        seeds_itself()
    assert [each.during for each in watch.seen] == ["reading"] * 3
