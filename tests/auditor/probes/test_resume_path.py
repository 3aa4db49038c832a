"""What a script that resumes leaves out, by its source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from nnaudit.loop.base import Loop
from nnaudit.probes.resume_path import _resumed
from nnaudit.report import Location
from nnaudit.targets.source import source_of

SCRIPT = """\
model = nn.Linear(4, 2)
optimizer = MADE
scheduler = StepLR(optimizer, 4)
start = 0
if os.path.exists("last.pt"):
    checkpoint = torch.load("last.pt")
    model.load_state_dict(checkpoint["model"])
    MORE
    start = checkpoint["epoch"] + 1
for epoch in range(start, 12):
    train()
"""


ADAM = "Adam(model.parameters())"


def resumed(tmp_path: Path, more: str, made: str = ADAM, text: str = "") -> Any:
    """How the script resumes with ``more`` in its resume path; None where it does not."""
    file = tmp_path / "train.py"
    file.write_text((text or SCRIPT).replace("MORE", more).replace("MADE", made))
    model = nn.Linear(4, 2)
    plain = made.startswith("SGD")
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if plain else None
    optimizer = optimizer or torch.optim.Adam(model.parameters())
    lines = {id(model): 1, id(optimizer): 2}
    scheduler = StepLR(optimizer, 4)
    loop = SimpleNamespace(
        models=(model,),
        optimizers=(optimizer,),
        schedulers=(scheduler,),
        locate=lambda thing: Location(file=str(file), line=lines.get(id(thing), 3)),
    )
    return _resumed(cast(Loop, loop), source_of(file))


def lost(tmp_path: Path, more: str, made: str = ADAM, text: str = "") -> Any:
    """What is left out of the resumed run; None where there is none."""
    found = resumed(tmp_path, more, made, text)
    return None if found is None else found.lost


WHILE = """\
class Trainer:
    def __init__(self, model):
        self.model = nn.Linear(4, 2)
        self.optimizer, self.epoch = MADE, 0
    def load(self, path):
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.epoch, self.best = state["epoch"], state["best"]
        MORE
    def fit(self):
        while self.epoch < 12:
            self.train()
"""

OPTIMIZER = 'optimizer.load_state_dict(checkpoint["optimizer"])'
SCHEDULER = 'scheduler.load_state_dict(checkpoint["scheduler"])'


@pytest.mark.parametrize(
    ("more", "made", "expected"),
    [
        ("pass", "Adam(model.parameters())", ("the optimizer (Adam)", "the scheduler (StepLR)")),
        (OPTIMIZER, "Adam(model.parameters())", ("the scheduler (StepLR)",)),
        (SCHEDULER, "Adam(model.parameters())", ("the optimizer (Adam)",)),
        (f"{OPTIMIZER}; {SCHEDULER}", "Adam(model.parameters())", ()),
        (SCHEDULER, "SGD(model.parameters(), 0.1)", ()),
        ('opt.load_state_dict(checkpoint["optimizer"])', "Adam(model.parameters())", ()),
    ],
)
def test_what_is_not_restored(
    tmp_path: Path, more: str, made: str, expected: tuple[str, ...]
) -> None:
    assert lost(tmp_path, more, made) == expected


def test_what_is_saved_and_not_restored(tmp_path: Path) -> None:
    writes = f"{SCRIPT}    torch.save({{'optimizer': optimizer.state_dict()}}, 'last.pt')\n"
    assert resumed(tmp_path, SCHEDULER, text=writes).saved == ("the optimizer (Adam)",)
    assert resumed(tmp_path, OPTIMIZER, text=writes).saved == ()
    assert resumed(tmp_path, SCHEDULER).saved == ()


def test_a_checkpoint_that_is_loaded_to_be_tested_is_no_resumption(tmp_path: Path) -> None:
    tested = SCRIPT.replace("range(start, 12)", "range(12)")
    assert lost(tmp_path, "pass", text=tested) is None
    weights = SCRIPT.replace('start = checkpoint["epoch"] + 1', "start = 3")
    assert lost(tmp_path, "pass", text=weights) is None


def test_a_scheduler_that_is_told_its_epoch_is_restored(tmp_path: Path) -> None:
    told = SCRIPT.replace("StepLR(optimizer, 4)", "StepLR(optimizer, 4, last_epoch=start)")
    assert lost(tmp_path, OPTIMIZER, text=told) == ()


@pytest.mark.parametrize(
    "step",
    [
        "for _ in range(start): scheduler.step()",
        "for _ in range(start * len(loader)):\n    scheduler.step()",
        "scheduler.step(start)",
    ],
)
def test_a_scheduler_that_is_stepped_to_where_it_was_is_restored(tmp_path: Path, step: str) -> None:
    stepped = SCRIPT.replace("for epoch in", f"{step}\nfor epoch in")
    assert lost(tmp_path, OPTIMIZER, text=stepped) == ()


@pytest.mark.parametrize("step", ["scheduler.step()", "scheduler.step(val_loss)"])
def test_a_scheduler_that_is_stepped_in_training_alone_begins_anew(
    tmp_path: Path, step: str
) -> None:
    stepped = SCRIPT.replace("train()", step)
    assert lost(tmp_path, OPTIMIZER, text=stepped) == ("the scheduler (StepLR)",)


def test_a_while_may_go_on_counting(tmp_path: Path) -> None:
    assert resumed(tmp_path, "pass", text=WHILE) is not None
    assert resumed(tmp_path, "pass", text=WHILE.replace("self.epoch < 12", "self.run")) is None


REMADE = "optimizer = Adam(model.parameters())"


@pytest.mark.parametrize(
    ("more", "remade"),
    [
        (f"{OPTIMIZER}; {REMADE}", ("the optimizer (Adam)",)),
        (f"{OPTIMIZER}; {SCHEDULER}; {REMADE}", ("the optimizer (Adam)",)),
        (f"{REMADE}; {OPTIMIZER}; {SCHEDULER}", ()),
        (f"{OPTIMIZER}; optimizer = prepare(optimizer); {SCHEDULER}", ()),
        (f"{OPTIMIZER}; {SCHEDULER}\n    if args.fresh:\n        {REMADE}", ()),
    ],
)
def test_an_optimizer_that_is_made_anew_after_loading(
    tmp_path: Path, more: str, remade: tuple[str, ...]
) -> None:
    assert resumed(tmp_path, more).remade == remade


ANEW = SCRIPT.replace("    model.load", "    model = BUILD\n    model.load")


@pytest.mark.parametrize(
    ("build", "after", "orphaned"),
    [
        ("nn.Linear(4, 2)", "", True),
        ('torch.load("whole.pt")', "", True),
        ("DistributedDataParallel(model)", "", False),
        ("model.to(device)", "", False),
    ],
)
def test_a_network_that_is_made_anew_after_its_optimizer(
    tmp_path: Path, build: str, after: str, *, orphaned: bool
) -> None:
    text = ANEW.replace("BUILD", build)
    found = resumed(tmp_path, f"{OPTIMIZER}; {SCHEDULER}", text=text).orphaned
    assert (found is not None and found.line == 7) is orphaned
    assert resumed(tmp_path, f"{OPTIMIZER}; {SCHEDULER}").orphaned is None


def test_a_network_that_is_made_anew_before_its_optimizer(tmp_path: Path) -> None:
    lines = ANEW.replace("BUILD", "nn.Linear(4, 2)").splitlines()
    made = lines.pop(1)
    lines.insert(2, f"if True:\n    pass\n{made}")
    assert resumed(tmp_path, "pass", text="\n".join(lines)) is not None
