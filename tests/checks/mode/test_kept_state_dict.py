"""MODE107: state dicts kept by reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from nnaudit.checks.mode.kept_state_dict import KeptStateDict
from nnaudit.context import Audit
from nnaudit.measure.kept_network import KeptNetwork, kept_networks
from nnaudit.probes.kept_states import Assignment, KeptNetworks, KeptState, KeptStates, assignment
from nnaudit.report import Location, Result, Status
from nnaudit.targets.source import source_of
from support.verdicts import verdict

AT = Location(file="train.py", line=7)


def judged(*states: KeptState, networks: tuple[KeptNetwork, ...] = ()) -> Result:
    return verdict(KeptStateDict, {KeptStates: states, KeptNetworks: networks})


def test_a_reference_that_is_used_later_fails() -> None:
    result = judged(KeptState(AT, 6, 6, Assignment("self.best", used=20)))
    assert result.status is Status.FAIL
    assert "Line 20 uses the latest weights" in result.message
    assert result.fix == "self.best = copy.deepcopy(model.state_dict())"
    assert result.location == AT


def test_one_whose_use_is_not_found_is_a_warning_if_it_is_called_the_best() -> None:
    assert judged(KeptState(AT, 6, 6, Assignment("best"))).status is Status.WARN
    assert judged(KeptState(AT, 6, 6, Assignment("shared"))).status is Status.PASS


def test_the_network_itself_is_no_copy() -> None:
    kept = KeptNetwork("best_model", "model", AT, used=20)
    assert judged(networks=(kept,)).status is Status.FAIL
    assert judged(networks=(replace(kept, used=0),)).status is Status.WARN


def test_one_that_no_condition_keeps_passes() -> None:
    assert judged(KeptState(AT, 6, 6, None)).status is Status.PASS
    assert judged().status is Status.PASS


def test_the_steps_of_a_program_without_epochs_are_watched_instead() -> None:
    kept: list[Any] = []
    model = nn.Linear(2, 2)

    class Steps:
        train_loader, makes_batches, saves, optimizers = None, True, True, ()

        def batches(self) -> Iterator[Any]:
            yield None

        def step(self, batch: Any) -> None:
            if self.saves:
                kept.append(model.state_dict())
            with torch.no_grad():
                model.weight.add_(1.0)

    loop = Steps()
    audit = cast(Audit, SimpleNamespace(loop=loop, clock=SimpleNamespace(check=lambda: None)))
    states = KeptStates().measure(audit)
    assert states
    assert {state.changed for state in states} == {1}
    loop.saves = False
    assert KeptStates().measure(audit) is None


LOOP = """
for epoch in range(3):
    train()
    if score > top:
        BODY
AFTER
"""


FUNCTIONS = """
def build(self): self.net = Net()
def renew(): global net; net = Net()
"""


@pytest.mark.parametrize(
    ("body", "after", "found"),
    [
        ("best = net.state_dict()", "net.load_state_dict(best)", Assignment("best", 6)),
        ("best = {'net': net.state_dict()}", "torch.save(best, 'x')", Assignment("best", 6)),
        ("self.best = net.state_dict()", "save(that.best)", Assignment("self.best", 6)),
        ("best = net.state_dict()", "", Assignment("best", 0)),
        ("top, best = score, net.state_dict()", "net.load_state_dict(best)", Assignment("best", 6)),
        ("best = net.state_dict(); torch.save(best, 'x')", "", None),
        ("best = dict(net.state_dict())", "net.load_state_dict(best)", Assignment("best", 6)),
        ("best = {k: v for k, v in net.state_dict().items()}", "", Assignment("best", 0)),
        ("best = {k: v.clone() for k, v in net.state_dict().items()}", "", None),
        ("best = copy.deepcopy(net.state_dict())", "torch.save(best)", None),
        ("torch.save(net.state_dict(), 'x')", "", None),
    ],
)
def test_what_a_line_keeps_under_a_condition(
    tmp_path: Path, body: str, after: str, found: Assignment | None
) -> None:
    file = tmp_path / "train.py"
    file.write_text(LOOP.replace("BODY", body).replace("AFTER", after))
    assert assignment(Location(file=str(file), line=5)) == found


@pytest.mark.parametrize(
    ("before", "body", "after", "used"),
    [
        ("", "best_net = net", "best_net.eval()", 8),
        ("", "top, best_net = score, net", "", 0),
        ("", "self.best = self.net", "test(self.best)", 8),
        ("", "best_net = copy.deepcopy(net)", "best_net.eval()", None),
        ("", "best_net = net; break", "best_net.eval()", None),
        ("net = build(epoch)", "best_net = net", "best_net.eval()", None),  # one for each fold
        ("self.build()", "self.best = self.net", "test(self.best)", None),
        ("renew()", "best_net = net", "best_net.eval()", None),
        ("", "best_score = score", "print(best_score)", None),
    ],
)
def test_what_keeps_the_network_itself(
    tmp_path: Path, before: str, body: str, after: str, used: int | None
) -> None:
    file = tmp_path / "train.py"
    text = LOOP.replace("train()", f"{before or 'pass'}\n    net.train(); self.net.train()")
    file.write_text(text.replace("BODY", body).replace("AFTER", f"done()\n{after}\n{FUNCTIONS}"))
    found = kept_networks(source_of(file))
    assert [kept.used for kept in found] == ([] if used is None else [used])


def test_a_copy_of_the_dict_alone_is_watched_too() -> None:
    model = nn.Linear(2, 2)
    kept: list[Any] = []

    class Steps:
        train_loader, makes_batches, optimizers = None, True, ()

        def batches(self) -> Iterator[Any]:
            yield None

        def step(self, batch: Any) -> None:
            kept.append(dict(model.state_dict()))
            with torch.no_grad():
                model.weight.add_(1.0)

    audit = cast(Audit, SimpleNamespace(loop=Steps(), clock=SimpleNamespace(check=lambda: None)))
    states = KeptStates().measure(audit)
    assert states
    assert {state.changed for state in states} == {1}


def test_what_is_kept_whatever_comes_is_not_judged(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("for e in range(3):\n    last = net.state_dict()\ntorch.save(last, 'x')\n")
    assert assignment(Location(file=str(file), line=2)) is None
    file.write_text("best = net.state_dict() if s > t else best\ntorch.save(best, 'x')\n")
    assert assignment(Location(file=str(file), line=1)) == Assignment("best", 2)


SAVED = """
top, best = 0.0, None
for e in range(3):
    if score > top:
        best = net.state_dict()
        torch.save(best, "x")
AFTER
"""


@pytest.mark.parametrize(
    ("after", "used"),
    [
        ("net.load_state_dict(best)", 7),
        ("print(best)", None),
        ("best = torch.load('x'); net.load_state_dict(best)", None),
        ("(best, other) = read(); net.load_state_dict(best)", None),
    ],
)
def test_what_is_saved_at_once_may_be_used_later_too(
    tmp_path: Path, after: str, used: int | None
) -> None:
    file = tmp_path / "train.py"
    file.write_text(SAVED.replace("AFTER", after))
    found = assignment(Location(file=str(file), line=5))
    assert found == (None if used is None else Assignment("best", used))


SCRIPT = """
import copy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
held_out = DataLoader(TensorDataset(x[:32], x[:32, :3].argmax(1)), batch_size=16)
model = nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
lowest = float("inf")
for epoch in range(4):
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    with torch.no_grad():
        score = sum(nn.functional.cross_entropy(model(a), b).item() for a, b in held_out)
    if score < lowest:
        lowest = score
        best = KEEP
model.load_state_dict(best)
"""


def test_a_script_that_keeps_its_best_weights(ask_script: Any) -> None:
    result = ask_script(KeptStateDict, SCRIPT.replace("KEEP", "model.state_dict()"))
    assert result.status is Status.FAIL, result.message
    assert "2 of its 2 tensors" in result.message
    kept = "copy.deepcopy(model.state_dict())"
    assert ask_script(KeptStateDict, SCRIPT.replace("KEEP", kept)).status is Status.PASS
    kept = "{k: v.clone() for k, v in model.state_dict().items()}"
    assert ask_script(KeptStateDict, SCRIPT.replace("KEEP", kept)).status is Status.PASS
