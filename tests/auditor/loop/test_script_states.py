"""Who listens to a script: discovery until its loop is found, the driver from then on, the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from nnaudit.errors import TargetError
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.loop.script.patches import Patches, TappedIterator
from nnaudit.loop.script.training_objects import _is_helper

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(64, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
"""

STEP = """
    optimizer.zero_grad()
    nn.functional.mse_loss(model(a), b).backward()
    optimizer.step()
"""


class Heard:
    """Notes what a listener is told, under the name of its class, and passes it on."""

    def __init__(self, listener: Any, log: list[tuple[str, str]]) -> None:
        self._listener = listener
        self._log = log

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_") and name != "on_create":
            self._log.append((type(self._listener).__name__, name))
        return getattr(self._listener, name)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the listeners of the test's script were told, in order."""
    log: list[tuple[str, str]] = []
    real = Patches.active_listener

    def active_listener(patches: Patches) -> Any:
        listener = real(patches)
        return None if listener is None else Heard(listener, log)

    monkeypatch.setattr(Patches, "active_listener", active_listener)
    return log


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def run(text: str, body: Callable[[ScriptLoop], Any]) -> Any:
        path = tmp_path / "train.py"
        path.write_text(HEAD + text)
        return run_script(path, [], "cpu", 0, body)

    return run


def steps(loop: ScriptLoop, count: int = 2) -> ScriptLoop:
    for batch in list(islice(loop.batches(), count)):
        loop.step(batch)
    return loop


def told(log: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    for state, events in groupby(log, key=lambda each: each[0]):
        yield state, [event for _, event in events]


ROUND = ["on_zero_grad", "on_forward", "on_backward", "on_step_start", "on_step_end"]


def test_a_script_is_watched_for_one_step_and_then_driven(
    drive: Any, heard: list[tuple[str, str]]
) -> None:
    loop = drive(f"for a, b in loader:{STEP}", steps)
    found, driven = told(heard)

    made = ["on_optimizer_built", "on_iterate"]
    assert found == ("Discovery", [*made, "on_next_batch", *ROUND, "on_next_batch"])
    quiet = [event for event in ROUND if event != "on_forward"]  # nobody asked for the calls
    assert driven == ("Driver", [*quiet, "on_next_batch"] * 2)
    assert loop.run.reruns == 0


def test_a_script_without_a_loader_is_driven_from_the_call_of_its_network(
    drive: Any, heard: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnaudit.loop.script.discovery.WAIT", 0.0)
    text = "for _ in range(100):\n    a = x[torch.randint(64, (8,))]; b = a.sum(1, keepdim=True)\n"
    loop = drive(text + STEP, steps)
    (found, events), *rest = told(heard)

    assert (found, events[-1]) == ("Discovery", "on_forward")
    assert events.count("on_step_end") == 2, "the second step shows that there is a loop"
    assert {state for state, _ in rest} == {"Driver"}
    assert loop.run.without_loader
    assert loop.run.reruns == 0


def test_a_script_that_ends_is_found_and_driven_again(
    drive: Any, heard: list[tuple[str, str]]
) -> None:
    text = "batches = iter(loader)\nfor _ in range(3):\n    a, b = next(batches)"
    loop = drive(text + STEP, lambda loop: steps(loop, 4))

    assert [state for state, _ in told(heard)] == ["Discovery", "Driver"] * 2
    assert loop.run.reruns == 1


def test_an_iterator_that_the_script_holds_is_no_part_of_its_state() -> None:
    """Put back with it, the auditor's own bookkeeping would be that of an earlier moment."""
    held = TappedIterator(Patches(), [torch.ones(2)], iter)
    held.latest = torch.ones(2)
    assert not _is_helper(held)
    assert _is_helper(Average())


class Average:
    """What a script may keep beside its network."""

    def __init__(self) -> None:
        self.shadow = {"weight": torch.ones(2)}


def test_a_script_that_keeps_going_at_its_end_is_ended_at_the_next_batch(
    drive: Any, heard: list[tuple[str, str]]
) -> None:
    text = f"""
def train():
    for a, b in loader:{STEP.replace(chr(10), chr(10) + 4 * " ")}

try:
    train()
except BaseException:
    train()
"""
    drive(text, steps)

    assert list(told(heard))[-1] == ("Unwinding", ["on_iterate", "on_next_batch"])


def test_a_script_that_hides_why_it_cannot_be_driven_does_not_hang(drive: Any) -> None:
    text = """
w = torch.zeros(4, 1, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
try:
    for a, b in loader:
        optimizer.zero_grad()
        ((a @ w - b) ** 2).mean().backward()
        optimizer.step()
except Exception:
    pass
"""
    with pytest.raises(TargetError, match="kept running after nnaudit took control"):
        drive(text, steps)
