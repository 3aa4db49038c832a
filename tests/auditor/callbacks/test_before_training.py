"""An audit of the running script before it trains."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnaudit.callbacks import before_training
from nnaudit.callbacks.before_training import FindingsError, audit_script
from nnaudit.engine.job import Job
from nnaudit.engine.record import Record, RefusedError
from nnaudit.report import Report
from nnaudit.reports.load import load

(FAILING,) = load(Path(__file__).parents[2] / "assets" / "failing-v1.json")


class Supervisor:
    """Stands for the supervisor: remembers what it was asked, and answers with a report."""

    def __init__(self, report: Report | None = FAILING) -> None:
        self.report = report
        self.jobs: list[Job] = []
        self.environment: dict[str, str] = {}

    def audit(self, job: Job) -> tuple[Report, Record]:
        self.jobs.append(job)
        self.environment = dict(os.environ)
        if self.report is None:
            raise RefusedError("train.py: no such file", 2)
        return self.report, Record()


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We run as ``python train.py --epochs 3``."""
    main = ModuleType("__main__")
    main.__file__ = "train.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.delitem(sys.modules, "nnaudit.engine.worker", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    monkeypatch.setenv("NNAUDIT_CACHE", str(tmp_path / "cache"))


def supervised(monkeypatch: pytest.MonkeyPatch, report: Report | None = FAILING) -> Supervisor:
    supervisor = Supervisor(report)
    monkeypatch.setattr(before_training, "supervisor", supervisor)
    return supervisor


def test_the_script_is_audited_with_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = supervised(monkeypatch)
    with pytest.raises(FindingsError, match="FAIL DATA104 shuffling") as caught:
        audit_script(preset="quick")
    assert caught.value.report["DATA104"].status == "fail"
    (job,) = supervisor.jobs
    assert (job.path, job.arguments, job.form) == ("train.py", ("--epochs", "3"), "script")
    assert job.settings.preset == "quick"
    assert list(Path(os.environ["NNAUDIT_CACHE"]).glob("train-*/*/report.html"))


def test_findings_may_warn_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised(monkeypatch)
    with pytest.warns(UserWarning, match="3 of 39 checks fail"):
        assert audit_script("warn") is not None


def test_what_is_a_finding_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(result for result in FAILING.results if result.status != "fail")
    supervised(monkeypatch, FAILING.model_copy(update={"results": kept}))
    assert audit_script() is not None
    with pytest.raises(FindingsError):
        audit_script(fail_on="warn")


def test_the_child_does_not_take_itself_for_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = supervised(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(FindingsError):
        audit_script()
    assert not {"WORLD_SIZE", "RANK"} & supervisor.environment.keys()
    assert os.environ["WORLD_SIZE"] == "4"


def test_a_script_that_cannot_be_audited_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised(monkeypatch, None)
    with pytest.warns(UserWarning, match="not audited: train.py"):
        assert audit_script() is None


@pytest.mark.parametrize("where", ["audit", "notebook"])
def test_nothing_happens_within_an_audit_or_without_a_script(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    supervisor = supervised(monkeypatch)
    if where == "audit":
        monkeypatch.setitem(sys.modules, "nnaudit.engine.worker", ModuleType("worker"))
    else:
        del sys.modules["__main__"].__file__
    assert audit_script() is None
    assert supervisor.jobs == []


SCRIPTS: dict[str, str] = {
    "lightning": """
import lightning.pytorch as pl, torch
from torch.utils.data import DataLoader, TensorDataset
from nnaudit.callbacks.lightning import AuditCallback

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)
    def training_step(self, batch, i):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

x = torch.randn(256, 8)
data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)
audit = AuditCallback(select="DATA101,STEP101", sandbox="python")
trainer = pl.Trainer(max_epochs=1, callbacks=[audit], logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
trainer.fit(Net(), data)
print("audited:", repr(audit.report), "steps:", trainer.global_step)
""",
    "transformers": """
import torch
from transformers import Trainer, TrainingArguments
from nnaudit.callbacks.transformers import AuditCallback

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)
    def forward(self, x, labels=None):
        out = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(out, labels), "logits": out}

x = torch.randn(256, 8)
data = [{"x": row, "labels": row[:3].argmax()} for row in x]
audit = AuditCallback(select="DATA101,STEP101", sandbox="python")
arguments = TrainingArguments("out", num_train_epochs=1, per_device_train_batch_size=32,
                              report_to="none", save_strategy="no", use_cpu=True,
                              disable_tqdm=True)
trainer = Trainer(Net(), arguments, train_dataset=data, callbacks=[audit])
trainer.train()
print("audited:", repr(audit.report), "steps:", trainer.state.global_step)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", SCRIPTS)
def test_a_real_script_is_audited_and_then_trains(
    tmp_path: Path, framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    pytest.importorskip(framework)
    (tmp_path / "train.py").write_text(SCRIPTS[framework])
    done: Any = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "All 2 checks pass" in done.stdout, done.stdout + done.stderr
    assert "steps: 8" in done.stdout
