"""MODE108: averages of a network whose statistics are left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnaudit.checks.mode.averaged_copy import AveragedCopyStatistics
from nnaudit.measure.synced_network import UnsyncedNetwork, periodic_networks, unsynced_networks
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
from nnaudit.report import Location, Result, Status
from nnaudit.targets.source import source_of
from support.verdicts import verdict

STALE = AveragedCopy("Net", "", 8, 0.99, 4, 4, evaluated=True, recomputed=False)


def judged(*copies: AveragedCopy) -> Result:
    return verdict(AveragedCopyStatistics, {AveragedCopies: copies})


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
    late = replace(copy, unsynced=UnsyncedNetwork("target_net", at, period=50))
    assert "every 50 optimizer steps" in judged(late).message


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
        ("a = 0.99 * a + 0.01 * p", Status.FAIL),
        ("a.lerp_(p, 0.05)", Status.PASS),
    ],
)
def test_a_script_whose_average_is_none(update: str, status: Status, ask_script: Any) -> None:
    plain = SCRIPT.replace("nn.BatchNorm1d(8), ", "").replace("BUFFERS", "pass")
    result = ask_script(AveragedCopyStatistics, plain.replace("a.lerp_(p, 0.05)", update))
    assert result.status is status, result.message
