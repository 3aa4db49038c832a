"""MODE108: averages of a network whose statistics are left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnaudit.checks.base import Check
from nnaudit.checks.mode.averaged_copy import AveragedCopyStatistics
from nnaudit.checks.mode.eval_purity import EvalPurity
from nnaudit.measure.synced_network import (
    Cause,
    UnsyncedNetwork,
    idle_updates,
    periodic_networks,
    second_names,
    unsynced_networks,
    unused_averages,
)
from nnaudit.probes.averaged_copies import (
    AveragedCopies,
    AveragedCopy,
    Pair,
    alignment_of,
    both_of,
    headings,
    recomputes,
    values_of,
)
from nnaudit.probes.self_updates import SelfUpdate, SelfUpdates
from nnaudit.probes.validated_weights import ValidatedAverage, ValidatedWeights
from nnaudit.report import Location, Result, Status
from nnaudit.targets.source import source_of
from support.verdicts import verdict

STALE = AveragedCopy("Net", "", 8, 0.99, 4, 4, evaluated=True, recomputed=False)


LOADED = ValidatedWeights("dict", 8, 0.99, 0, 0.98, 500, remained=False, statistics=4, stale=0)


def judged(
    *copies: AveragedCopy,
    loaded: ValidatedWeights | None = None,
    itself: SelfUpdate | None = None,
) -> Result:
    measured = {AveragedCopies: copies, ValidatedAverage: loaded, SelfUpdates: itself}
    return verdict(AveragedCopyStatistics, measured)


def test_the_verdict() -> None:
    result = judged(STALE)
    assert result.status is Status.FAIL
    assert "4 running statistics changed" in result.message
    assert judged(replace(STALE, evaluated=False)).status is Status.WARN
    assert judged(replace(STALE, evaluated=None)).status is Status.WARN
    assert judged(replace(STALE, recomputed=True)).status is Status.NOTE
    assert judged(replace(STALE, stale=0)).status is Status.PASS
    assert judged(replace(STALE, statistics=0, stale=0)).status is Status.PASS
    assert judged(replace(STALE, alignment=0.1)).status is Status.SKIP
    assert judged().status is Status.SKIP


def test_an_average_that_is_the_last_weights_fails() -> None:
    average = replace(STALE, stale=0, decay=0.01)
    assert "takes 0.99 from the trained weights" in judged(average).message
    assert judged(average).status is Status.FAIL
    assert judged(replace(average, decay=0.95)).status is Status.PASS
    assert judged(replace(average, decay=0.0)).status is Status.PASS  # a copy, by design
    assert judged(replace(average, decay=None)).status is Status.PASS  # a warm-up


def test_an_average_that_is_the_network_fails() -> None:
    at = Location(file="dqn.py", line=12)
    result = judged(itself=SelfUpdate(8, at))
    assert result.status is Status.FAIL
    assert "8 trained weight tensors toward themselves" in result.message
    assert result.location == at


def test_a_copy_that_moves_away_fails() -> None:
    result = judged(replace(STALE, alignment=-1.0, stale=0, away=True))
    assert result.status is Status.FAIL
    assert "straight away from the trained weights" in result.message
    assert judged(replace(STALE, alignment=-1.0, stale=0)).status is Status.SKIP


def test_an_average_of_some_of_the_weights_fails() -> None:
    average = replace(STALE, stale=0, decay=0.95)
    result = judged(replace(average, behind=("encoder.weight", "encoder.bias")))
    assert result.status is Status.FAIL
    assert "follows it in 6 of 8 tensors" in result.message
    assert result.module == "encoder"
    still = replace(average, alignment=0.0, behind=("encoder.weight",))
    assert judged(still).status is Status.SKIP  # no average


def test_an_average_that_the_run_is_too_short_for_warns() -> None:
    average = replace(STALE, stale=0, decay=0.9999, updates=500)
    result = judged(average)
    assert result.status is Status.WARN
    assert "95% of it are still the weights that it began with" in result.message
    assert judged(replace(average, updates=7_000)).status is Status.PASS
    assert judged(replace(average, updates=0)).status is Status.PASS  # of unknown length
    assert judged(replace(average, evaluated=False)).status is Status.PASS


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({}, Status.PASS, "follows it"),
        ({"alignment": 0.1}, Status.SKIP, "No moving average"),  # weights of the best epoch
        ({"alignment": 0.0, "stood": 60}, Status.FAIL, "not one of them changed in 60 steps"),
        ({"decay": 0.02}, Status.FAIL, "takes 0.98 from the trained weights"),
        ({"decay": None}, Status.PASS, ""),
        ({"decay": 0.9999}, Status.WARN, "still the weights that it began with"),
        ({"stale": 4}, Status.FAIL, "the same in two validations"),
        ({"stale": 1}, Status.PASS, ""),
    ],
)
def test_an_average_that_is_loaded_for_validation(
    change: dict[str, Any], status: Status, message: str
) -> None:
    result = judged(loaded=replace(LOADED, **change))
    assert result.status is status
    assert message in result.message


def test_a_copy_that_is_validated_and_stands_still_fails() -> None:
    result = judged(replace(STALE, alignment=0.0, stale=0, alone=True, stood=150))
    assert result.status is Status.FAIL
    assert "never the network that is trained" in result.message


def test_a_target_network_that_is_never_updated_warns() -> None:
    at = Location(file="dqn.py", line=7)
    copy = replace(STALE, alignment=0.0, moved=False, unsynced=UnsyncedNetwork("target_net", at))
    result = judged(copy)
    assert result.status is Status.WARN
    assert "target_net is copied from the trained network once" in result.message
    assert result.location == at
    late = replace(copy, unsynced=UnsyncedNetwork("target_net", at, 50, Cause.PERIOD))
    assert "every 50 optimizer steps" in judged(late).message
    for cause, said in ((Cause.REBOUND, "binds its variable"), (Cause.UNCALLED, "never called")):
        idle = replace(copy, unsynced=UnsyncedNetwork("key", at, cause=cause))
        assert said in judged(idle).message


DQN = """
class Agent:
    def __init__(self, q):
        self.q, self.opt = q, Adam(q.parameters())
        self.target_q = copy.deepcopy(q)
        for p in self.target_q.parameters():
            p.requires_grad = False

    def learn(self, s, r):
        with torch.no_grad():
            y = r + self.target_q(s).max(1).values
        UPDATE
"""


@pytest.mark.parametrize(
    ("update", "found"),
    [
        ("self.target_q.eval()", True),
        ("self.q.load_state_dict(best)", True),
        ("self.target_q.load_state_dict(self.q.state_dict())", False),
        ("soft_update(self.q, self.target_q)", False),
        ("self.target_q = copy.deepcopy(self.q)", False),
        ("for t, p in zip(self.target_q.parameters(), ps): t.data.lerp_(p.data, 0.1)", False),
        ("for t, p in zip(self.target_q.parameters(), self.q.parameters()): p.lerp_(t, 1)", True),
        ("for t, p in zip(self.target_q.parameters(), self.q.parameters()): mix(t, p)", False),
        ("for t, p in zip(self.target_q.parameters(), self.q.parameters()): t.data = p", False),
    ],
)
def test_what_updates_a_target_network(tmp_path: Path, update: str, *, found: bool) -> None:
    file = tmp_path / "dqn.py"
    file.write_text(DQN.replace("UPDATE", update))
    assert [each.name for each in unsynced_networks(source_of(file))] == ["target_q"] * found


COUNTED = """
target = copy.deepcopy(q)
EVERY = 50
for episode in range(9):
    while not done:
        if ready:
            opt.step()
            updates += 1
            if TEST:
                target.load_state_dict(q.state_dict())
"""


@pytest.mark.parametrize(
    ("test", "periods"),
    [
        ("updates % 50 == 0", [50]),
        ("updates % EVERY == 0", [50]),
        ("episode % 50 == 0", []),
        ("updates > 50", []),
    ],
)
def test_after_how_many_steps_a_target_is_updated(
    tmp_path: Path, test: str, periods: list[int]
) -> None:
    file = tmp_path / "dqn.py"
    file.write_text(COUNTED.replace("TEST", test))
    assert [each.period for each in periodic_networks(source_of(file))] == periods
    assert not unsynced_networks(source_of(file))


MOCO = """
class MoCo(nn.Module):
    @torch.no_grad()
    def update(self):
        for q, k in zip(self.query.parameters(), self.key.parameters()):
            UPDATE

    def forward(self, x):
        CALL
        return self.query(x), self.key(x)
"""


@pytest.mark.parametrize(
    ("update", "call", "causes"),
    [
        ("k.data = m * k.data + (1 - m) * q.data", "self.update()", []),
        ("k.lerp_(q, 0.1)", "self.update()", []),
        ("k = m * k + (1 - m) * q", "self.update()", [Cause.REBOUND]),
        ("k = k.data; k.mul_(m).add_(q, alpha=1 - m)", "self.update()", []),
        ("k.lerp_(q, 0.1)", "pass", [Cause.UNCALLED]),
        ("k.lerp_(q, 0.1)", "self.apply(getattr(self, 'update'))", []),
    ],
)
def test_updates_that_change_nothing(
    tmp_path: Path, update: str, call: str, causes: list[Cause]
) -> None:
    file = tmp_path / "moco.py"
    file.write_text(MOCO.replace("UPDATE", update).replace("CALL", call))
    assert [each.cause for each in idle_updates([source_of(file)])] == causes
    file = tmp_path / "lit.py"  # a framework calls methods by its own names for them
    file.write_text(MOCO.replace("nn.Module", "LightningModule").replace("UPDATE", "k.lerp_(q, 1)"))
    assert not list(idle_updates([source_of(file)]))


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("target = policy\ntarget.load_state_dict(policy.state_dict())", ["target"]),
        ("policy, target = Q(), Q()\ntarget.load_state_dict(policy.state_dict())", []),
        ("target = copy.deepcopy(policy)\ntarget.load_state_dict(policy.state_dict())", []),
        ("net = policy\nnet.train()", []),
        ("target = policy\ntarget = Q()\ntarget.load_state_dict(policy.state_dict())", []),
        (
            "self.teacher = self.student\n"
            "for t, s in zip(self.teacher.parameters(), self.student.parameters()):\n"
            "    t.lerp_(s, 0.1)",
            ["self.teacher"],
        ),
    ],
)
def test_a_follower_that_is_the_network_by_a_second_name(
    tmp_path: Path, lines: str, names: list[str]
) -> None:
    file = tmp_path / "dqn.py"
    file.write_text(lines)
    assert [each.name for each in second_names(source_of(file))] == names


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("update_bn(loader, swa)", ["swa"]),
        ("swa.update_parameters(model)", []),
        ("helpers.update(swa, model)", []),
        ("method = getattr(swa, 'update_parameters')", []),
    ],
)
def test_an_average_of_torchs_that_nothing_updates(
    tmp_path: Path, line: str, names: list[str]
) -> None:
    file = tmp_path / "swa.py"
    file.write_text(f"swa = AveragedModel(model)\n{line}")
    assert [each.name for each in unused_averages([source_of(file)])] == names


def test_an_average_heads_for_the_weights_in_each_step() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    pair = Pair(average, network, "", values_of(average), values_of(network))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # a network that turns round in every step
        old, trained = both_of(pair)
        with torch.no_grad():
            for mean, p in zip(average.parameters(), network.parameters(), strict=True):
                p.copy_(torch.randn(p.shape, generator=generator))
                mean.lerp_(p, 0.3)
        pair.headings += headings(pair, old, trained)
    assert alignment_of(pair) > 0.99


def test_an_import_alone_recomputes_nothing() -> None:
    line = "from torch.optim.swa_utils import AveragedModel, update_bn"
    assert not recomputes(f"{line}\nswa = AveragedModel(net)\n")
    assert recomputes(f"{line}\nswa = AveragedModel(net)\n    update_bn(loader, swa)\n")
    assert recomputes("from torch.optim.swa_utils import update_bn as settle\nsettle(loader, swa)")


def test_an_average_of_torchs_before_its_first_update_warns() -> None:
    swa = replace(STALE, alignment=0.0, by_torch=True, moved=False)
    result = judged(swa)
    assert result.status is Status.WARN
    assert "update_bn" in result.fix
    assert judged(replace(swa, recomputed=True)).status is Status.NOTE
    assert judged(replace(swa, stale=0)).status is Status.PASS
    assert judged(replace(swa, statistics=0, stale=0)).status is Status.PASS


SCRIPT = """
import copy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(x[:32], x[:32, :3].argmax(1)), batch_size=16)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
average = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    model.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters()):
                a.lerp_(p, 0.05)
            BUFFERS
    average.eval()
    with torch.no_grad():
        right = sum((average(a).argmax(1) == b).sum().item() for a, b in held_out)
"""


@pytest.mark.parametrize(
    ("buffers", "status"),
    [
        ("pass", Status.FAIL),
        ("[a.copy_(b) for a, b in zip(average.buffers(), model.buffers())]", Status.PASS),
        ("average.train()(inputs)", Status.PASS),
    ],
)
def test_a_script_that_averages_its_weights(buffers: str, status: Status, ask_script: Any) -> None:
    result = ask_script(AveragedCopyStatistics, SCRIPT.replace("BUFFERS", buffers))
    assert result.status is status, result.message


@pytest.mark.parametrize(
    ("update", "status"),
    [
        ("a.copy_(0.01 * a + 0.99 * p)", Status.FAIL),
        ("a.add_(0.05 * (a - p))", Status.FAIL),
        ("a = 0.99 * a + 0.01 * p", Status.FAIL),
        ("a.lerp_(p, 0.05)", Status.PASS),
        ("a.lerp_(p, 0.05) if a.ndim > 1 else None", Status.FAIL),  # no bias follows
    ],
)
def test_a_script_whose_average_is_none(update: str, status: Status, ask_script: Any) -> None:
    plain = SCRIPT.replace("nn.BatchNorm1d(8), ", "").replace("BUFFERS", "pass")
    result = ask_script(AveragedCopyStatistics, plain.replace("a.lerp_(p, 0.05)", update))
    assert result.status is status, result.message


def test_a_script_whose_average_is_the_network(ask_script: Any) -> None:
    text = SCRIPT.replace("BUFFERS", "pass")
    made = "copy.deepcopy(model).requires_grad_(False)"
    result = ask_script(AveragedCopyStatistics, text.replace(made, "model"))
    assert result.status is Status.FAIL, result.message
    assert "toward themselves" in result.message


@pytest.mark.parametrize(("kept", "status"), [("1 - d", Status.FAIL), ("d", Status.PASS)])
def test_an_average_whose_decay_is_warmed_up(kept: str, status: Status, ask_script: Any) -> None:
    text = SCRIPT.replace("nn.BatchNorm1d(8), ", "").replace("BUFFERS", "pass")
    text = text.replace("for epoch", "steps = []\nfor epoch")
    text = text.replace("optimizer.step()", "optimizer.step(); steps.append(0)")
    warmed = f"d = 1 - 1 / (len(steps) + 1); a.mul_({kept}).add_(p, alpha=1 - ({kept}))"
    result = ask_script(AveragedCopyStatistics, text.replace("a.lerp_(p, 0.05)", warmed))
    assert result.status is status, result.message


SWAPPED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(x[:32], x[:32, :3].argmax(1)), batch_size=16)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
shadow = {name: value.clone() for name, value in model.state_dict().items()}
for epoch in range(4):
    model.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    shadow[name] = 0.9 * shadow[name] + 0.1 * value
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(shadow)
    model.eval()
    with torch.no_grad():
        right = sum((model(a).argmax(1) == b).sum().item() for a, b in held_out)
    model.load_state_dict(own)
"""


@pytest.mark.parametrize(
    ("check", "line", "other", "status"),
    [
        (AveragedCopyStatistics, "", "", Status.PASS),
        (EvalPurity, "", "", Status.PASS),
        (EvalPurity, "    model.load_state_dict(own)\n", "", Status.WARN),
        (AveragedCopyStatistics, "shadow[name] = 0.9", "average = 0.9", Status.FAIL),
        (AveragedCopyStatistics, "value.is_floating_point()", "'running' not in name", Status.FAIL),
    ],
)
def test_a_script_that_loads_its_average_for_validation(
    check: type[Check], line: str, other: str, status: Status, ask_script: Any
) -> None:
    result = ask_script(check, SWAPPED.replace(line, other) if line else SWAPPED)
    assert result.status is status, result.message
