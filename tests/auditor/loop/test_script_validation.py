"""Validation is cut short, for nobody reads what it finds, unless the script minds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnaudit.errors import UserCodeError
from nnaudit.loop.script import ScriptLoop, run_script

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 4)
y = x.sum(1, keepdim=True)
train = DataLoader(TensorDataset(x[:32], y[:32]), batch_size=8, shuffle=True)
val = DataLoader(TensorDataset(x[32:], y[32:]), batch_size=8)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
read = []


def validate():
    model.eval()
    with torch.no_grad():
        out = torch.cat([model(a) for a, _ in val])
    read.append(len(out))
    model.train()
    return MEASURE


for epoch in range(100):
    for step, (a, b) in enumerate(train):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(a), b).backward()
        optimizer.step()
        INSIDE
    OUTSIDE
"""


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def run(body: Callable[[ScriptLoop], Any], **parts: str) -> Any:
        text = textwrap.dedent(SCRIPT)
        for name in ("MEASURE", "INSIDE", "OUTSIDE"):
            text = text.replace(name, parts.get(name.lower(), "pass"))
        path = tmp_path / "train.py"
        path.write_text(text)
        return run_script(path, [], "cpu", 0, body)

    return run


def two_epochs(loop: ScriptLoop) -> tuple[list[float], int, bool]:
    """Six steps, of which the fifth is the first of another epoch."""
    batch = next(iter(loop.batches()))
    losses = [loop.step(batch).loss for _ in range(4)]
    later = loop.next_epoch(batch)
    assert later is not None
    losses += [later.loss, loop.step(batch).loss]
    return losses, loop.run.reruns, loop.run.session.validates_whole


def test_a_validation_that_does_not_mind_is_cut_short(drive: Any) -> None:
    _, reruns, whole = drive(two_epochs, measure="out.mean()", outside="validate()")
    assert (reruns, whole) == (0, False)


def test_a_validation_that_minds_is_run_in_full_and_the_training_goes_on_as_it_would(
    drive: Any,
) -> None:
    plain, *_ = drive(two_epochs, measure="out.mean()", outside="validate()")
    minding = "(out - y[32:]).abs().mean()"
    losses, reruns, whole = drive(two_epochs, measure=minding, outside="validate()")
    assert (reruns, whole) == (1, True)
    assert losses == plain


def test_a_validation_within_the_epoch_may_mind_too(drive: Any) -> None:
    minding = "(out - y[32:]).abs().mean()"
    every = "step % 2 or validate()"
    plain, *_ = drive(two_epochs, measure="out.mean()", inside=every)
    losses, reruns, whole = drive(two_epochs, measure=minding, inside=every)
    assert (reruns, whole) == (1, True)
    assert losses == plain


def test_what_fails_on_the_whole_validation_set_is_the_scripts_own_error(drive: Any) -> None:
    def body(loop: ScriptLoop) -> None:
        batch = next(iter(loop.batches()))
        for _ in range(12):
            loop.step(batch)

    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        drive(body, measure="1 // (len(read) < 5)", inside="validate()")
