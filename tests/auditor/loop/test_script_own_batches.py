"""Scripts whose batches nothing can take the place of are asked what their own steps tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnaudit.checks.registry import Registry
from nnaudit.context import Audit
from nnaudit.engine.runner import run_checks
from nnaudit.loop.base import Needs
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.report import Result
from nnaudit.state.snapshot import preserved

DQN = Path(__file__).parents[2] / "scripts" / "dqn.py"
STEPS = ("LOSS102", "GRAD101", "GRAD102", "GRAD106", "STEP101", "STEP102", "STEP107", "MODE101")

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


def answers(loop: ScriptLoop) -> dict[str, Result]:
    battery = Registry.load().select((*STEPS, "DATA104", "FIT101"))
    return {result.code: result for result in run_checks(battery, Audit(loop))}


def test_a_healthy_one_passes_what_its_steps_tell(drive: Drive) -> None:
    found = drive(answers, {})
    assert {code for code, result in found.items() if result.status == "pass"} == set(STEPS)
    for code in ("DATA104", "FIT101"):
        assert found[code].status == "skip"
        assert "draws its batches itself" in found[code].message


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("optimizer.zero_grad()", "pass", "STEP102"),
        (".squeeze(1)", "", "LOSS102"),
        ("Adam(online.parameters()", "Adam(target.parameters()", "GRAD102"),
    ],
)
def test_faults_of_the_step_are_found(drive: Drive, old: str, new: str, code: str) -> None:
    found = drive(answers, {old: new})
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
