"""How many epochs a training loop counts, read off the loops around its line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nnaudit.loop.script.planned_run import counted_span

HEAD = (
    "from types import SimpleNamespace\nargs = SimpleNamespace(epochs=7)\nEPOCHS, found = 5, []\n"
)


def counted(tmp_path: Path, script: str, **variables: Any) -> Any:
    """Return what ``counted_epochs`` said the first time it was called by ``script``."""
    path = tmp_path / f"train{len(list(tmp_path.iterdir()))}.py"  # linecache remembers files
    path.write_text(HEAD + script)
    names = {"counted_epochs": lambda: counted_span().epochs, "span": counted_span, **variables}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names["found"][0]


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("range(EPOCHS)", 5),
        ("range(1, args.epochs + 1)", 7),
        ("tqdm(range(12), desc='epochs')", 12),
        ("trange(config['epochs'])", 4),
        ("range(0, 100, 5)", 0),
        ("range(len(found) + 3)", 0),
        ("count()", 0),
        ("[1, 2, 3]", 0),
    ],
)
def test_the_outer_of_two_loops_counts_epochs(tmp_path: Path, over: str, expected: int) -> None:
    names = {"tqdm": lambda it, **_: it, "trange": range, "config": {"epochs": 4}}
    script = (
        f"for epoch in {over}:\n    for batch in 'ab':\n        found.append(counted_epochs())\n"
    )
    assert counted(tmp_path, script, count=lambda: range(2), **names) == expected


FUNCTIONS = """
def epoch(loader):
    for batch in loader:
        found.append(counted_epochs())

class Trainer:
    def __init__(self):
        self.epochs = 9
    def fit(self):
        for i in range(self.epochs):
            epoch('ab')

def main():
    for i in range(args.epochs):
        for word in 'xy':
            pass
        epoch('ab')
"""


def test_loops_are_found_across_functions(tmp_path: Path) -> None:
    assert counted(tmp_path, FUNCTIONS + "main()\n") == 7
    assert counted(tmp_path, FUNCTIONS + "Trainer().fit()\n") == 9


@pytest.mark.parametrize(
    "script",
    [
        "for fold in range(5):\n    main()\n",
        "epoch('ab')\n",
        "found.append(counted_epochs())\n",
        "while not found:\n    epoch('ab')\n",
    ],
)
def test_other_loops_are_not_certain(tmp_path: Path, script: str) -> None:
    assert counted(tmp_path, FUNCTIONS + script) == 0


class Arguments:
    num_train_epochs = 3.0
    max_steps = -1


class Trainer:
    args = Arguments()


@pytest.mark.parametrize(("steps", "expected"), [(-1, 3), (500, 0)])
def test_a_trainer_of_a_framework_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, expected: int
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    monkeypatch.setattr(Trainer, "__module__", "transformers.trainer")
    monkeypatch.setattr(Arguments, "max_steps", steps)
    script = "found.append(counted_epochs())\n"
    assert counted(tmp_path, script, trainer=Trainer()) == expected


WHOLE = """
for epoch in range(6):
    for i, batch in enumerate(loader):
        for part in batch:
            break
        found.append(span())
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("enumerate(loader)", "zip(range(100), loader)"),
        ("        found", "        if found:\n            break\n        found"),
        ("span())\n", "span())\n    if epoch > 3:\n        break\n"),
    ],
)
def test_a_loop_that_may_be_left_early_is_not_whole(tmp_path: Path, old: str, new: str) -> None:
    whole = counted(tmp_path, WHOLE, loader="ab")
    assert (whole.epochs, whole.whole) == (6, True)
    left = counted(tmp_path, WHOLE.replace(old, new), loader="ab")
    assert (left.epochs, left.whole) == (6, False)


def test_a_trainer_that_stops_early_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EarlyStopping:
        pass

    monkeypatch.setattr(Trainer, "__module__", "transformers.trainer")
    script, trainer = "found.append(span())\n", Trainer()
    assert counted(tmp_path, script, trainer=trainer).whole
    trainer.callbacks = [EarlyStopping()]  # type: ignore[attr-defined]
    assert not counted(tmp_path, script, trainer=trainer).whole


MADE = """
for epoch in range(6):
    order = torch.randperm(len(x))
    for i in OVER:
        found.append(span())
"""


@pytest.mark.parametrize(
    ("over", "batches"),
    [
        ("range(0, len(x), 32)", 4),
        ("range(0, x.shape[0], size)", 4),
        ("tqdm(range(0, x.size(0) - size, size))", 3),
        ("range(len(x) // size)", 3),
        ("range(n // size)", 3),
        ("order.split(size)", 4),
        ("torch.randperm(n).split(size)", 4),
        ("range(4)", 0),
        ("range(n)", 0),
        ("range(0, n)", 0),
        ("range(0, len(mine), size)", 0),
        ("range(0, n, 1)", 0),
        ("order", 0),
        ("text.split(' ')", 0),
    ],
)
def test_batches_that_a_loop_makes_of_the_places_of_rows(
    tmp_path: Path, over: str, batches: int
) -> None:
    class Mine:
        def __len__(self) -> int:  # the user's code, which nothing may call to find out
            return 100

    names = {"torch": torch, "tqdm": lambda it: it, "x": torch.zeros(100, 2), "n": 100, "size": 32}
    script = MADE.replace("OVER", over)
    said = counted(tmp_path, script, mine=Mine(), text="a b", **names)
    assert said.batches == batches
    assert (said.epochs, said.whole) == (6, batches > 0 or over == "order")
