"""Scripts whose batches nothing can take the place of are asked what their own steps tell."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnaudit.checks.registry import Registry
from nnaudit.context import Audit
from nnaudit.engine.runner import run_checks
from nnaudit.loop.base import Needs
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.report import Result
from nnaudit.state.snapshot import preserved

DQN = Path(__file__).parents[2] / "scripts" / "dqn.py"
STEPS = (
    "LOSS102", "GRAD101", "GRAD102", "GRAD106", "STEP101", "STEP102", "STEP107", "MODE101",
    "SEED101", "SEED102", "FIT104", "NORM101", "MODE109",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")

Drive = Callable[[Callable[[ScriptLoop], Any], dict[str, str]], Any]


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """Run the script, with words exchanged, and a function on its loop."""
    monkeypatch.chdir(tmp_path)

    def run(body: Callable[[ScriptLoop], Any], changes: dict[str, str]) -> Any:
        text = DQN.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "train.py"
        path.write_text(text)
        return run_script(path, [], "cpu", 0, body)

    return run


def answers(loop: ScriptLoop, codes: Sequence[str]) -> dict[str, Result]:
    battery = Registry.load().select(codes)
    return {result.code: result for result in run_checks(battery, Audit(loop))}


def test_a_healthy_one_passes_what_its_steps_tell(drive: Drive) -> None:
    found = drive(lambda loop: answers(loop, (*STEPS, "DATA104")), {})
    assert {code for code, result in found.items() if result.status == "pass"} == set(STEPS)
    assert found["DATA104"].status == "skip"
    assert "draws its batches itself" in found["DATA104"].message


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("optimizer.zero_grad()", "pass", "STEP102"),
        (".squeeze(1)", "", "LOSS102"),
        ("Adam(online.parameters()", "Adam(target.parameters()", "GRAD102"),
    ],
)
def test_faults_of_the_step_are_found(drive: Drive, old: str, new: str, code: str) -> None:
    found = drive(lambda loop: answers(loop, (code,)), {old: new})
    assert found[code].status == "fail"
    assert found[code].location is not None


def test_a_batch_stands_for_what_the_script_draws(drive: Drive) -> None:
    def body(loop: ScriptLoop) -> None:
        assert "draws its batches itself" in loop.lacks(Needs.STEPS)
        assert loop.lacks(Needs.OWN_STEPS) == ""
        batches = loop.batches()
        batch, other = next(batches), next(batches)
        assert batch != other
        with preserved(loop.subjects):
            step = loop.step(batch, observe=True)
        assert step.observation is not None
        assert step.loss == pytest.approx(step.observation.total_loss)
        assert loop.split_batch(batch).args[0].shape == (32, 8)
        assert loop.forward(batch).output.shape == (32, 2)

    drive(body, {})


BUILT_BY_CALLS = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = spectral_norm(nn.Linear(2, 8))
        width = self.first(torch.zeros(1, 2)).numel()
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        return self.last(self.first(x).relu())

torch.manual_seed(0)
critic = Critic()
critic(torch.zeros(1, 2))
optimizer = torch.optim.Adam(critic.parameters())
for step in range(500):
    loss = critic(torch.randn(8, 2) - 1).mean() - critic(torch.randn(8, 2) + 1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_network_that_is_called_while_it_is_built_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(BUILT_BY_CALLS)

    def body(loop: ScriptLoop) -> list[float]:
        assert set(dict(loop.model.named_children())) == {"first", "last"}
        assert not loop.optimizers[0].state, "its state is from before the first step"
        return [loop.step(batch).loss for batch, _ in zip(loop.batches(), range(3), strict=False)]

    assert len(run_script(path, [], "cpu", 0, body)) == 3


TWO_TRAININGS = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(64, 4)
y = x.sum(1)

def train(rows):
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for step in range(20):
        taken = torch.randperm(64)[:rows]
        loss = nn.functional.mse_loss(network(x[taken]).squeeze(1), y[taken].clone())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

train(8)
train(6)
"""


@pytest.mark.filterwarnings("error:Using a target size")
def test_another_training_that_the_script_comes_to_has_its_own_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(TWO_TRAININGS)

    def body(loop: ScriptLoop) -> bool:
        batch = next(iter(loop.batches()))
        with preserved(loop.subjects):
            assert all(loop.step(batch).loss > 0 for _ in range(50))
        return loop.run.reruns > 0

    assert run_script(path, [], "cpu", 0, body), "it came to the other training"


NODES = """
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
n = 80
y = torch.randint(4, (n,))
x = F.one_hot(y, 4).float() + 0.5 * torch.randn(n, 4)
edges = ((y[:, None] == y) & (torch.rand(n, n) < 0.2)).float() + torch.eye(n)
edges = edges / edges.sum(1, keepdim=True)
mask = torch.rand(n) < 0.6

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 4)
        self.register_buffer("running_mean", torch.zeros(16))

    def forward(self, x, edges):
        h = torch.relu(edges @ self.first(x))
        if self.training:
            self.running_mean.lerp_(h.detach().mean(0), 0.1)
        h = F.dropout(h, 0.2, self.training)
        return edges @ self.last(h)

model = Network()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(300):
    model.train()
    optimizer.zero_grad()
    out = model(x, edges)
    loss = F.cross_entropy(out[mask], y[mask])
    loss.backward()
    optimizer.step()
"""

LOOKED_AT = (
    "DATA101", "DATA102", "DATA110", "INIT101", "INIT102", "INIT105", "LOSS103", "LOSS104",
    "LOSS107", "GRAD108", "MODE102", "MODE103", "FIT101", "FIT103", "FIT110",
)  # fmt: skip


def of_nodes(tmp_path: Path, codes: Sequence[str], old: str = "", new: str = "") -> Any:
    assert old in NODES
    path = tmp_path / "train.py"
    path.write_text(NODES.replace(old, new) if old else NODES)
    return run_script(path, [], "cpu", 0, lambda loop: answers(loop, codes))


def test_masks_over_fixed_tensors_are_asked_what_needs_no_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = of_nodes(tmp_path, (*LOOKED_AT, "DATA105", "GRAD103"))
    assert {code for code, each in found.items() if each.status == "pass"} == set(LOOKED_AT)
    assert "80 rows" in found["DATA101"].message
    assert "there is no loader" in found["DATA105"].message
    assert found["GRAD103"].status == "skip", "rows are nodes"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (", 0.2, self.training)", ", 0.2)", "MODE102"),
        ("        if self.training:\n    ", "", "MODE103"),
        ("        h = torch.relu", "        x, edges = x * 0, edges * 0\n        h = torch.relu",
         "GRAD108"),
        ("loss = F", "loss = -F", "LOSS104"),
        ("    loss.b", "    loss = loss + F.mse_loss(out.detach(), out.detach() + 1)\n    loss.b",
         "LOSS107"),
        ("optimizer = ", "model.last.weight.data.mul_(1000)\noptimizer = ", "INIT101"),
    ],
)  # fmt: skip
def test_faults_of_masked_training_are_found(
    old: str, new: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert of_nodes(tmp_path, (code,), old, new)[code].status == "fail"


DRAWN = """
import numpy as np
import torch
from torch import nn

generator = np.random.default_rng(0)
torch.manual_seed(0)
x = torch.randn(200, 6)
y = x.sum(1)
network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(network.parameters())
for step in range(1000):
    rows = torch.from_numpy(generator.integers(200, size=32))
    loss = (network(x[rows]).squeeze(1) - y[rows]).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_batch_of_the_scripts_own_generator_can_be_had_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(DRAWN)

    def body(loop: ScriptLoop) -> None:
        assert loop.lacks(Needs.SAME_BATCH) == ""
        batches = loop.batches()
        one, other = next(batches), next(batches)
        losses = []
        for batch in (one, other, one):
            with preserved(loop.subjects):
                losses.append(loop.step(batch).loss)
        assert losses[0] == losses[2] != losses[1]
        norm = loop.model[1]
        assert isinstance(norm, nn.BatchNorm1d)
        before = norm.running_mean.clone()
        loop.forward(one, train=True)
        assert not torch.equal(norm.running_mean, before), "as after any forward pass"

    run_script(path, [], "cpu", 0, body)
