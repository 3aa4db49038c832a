"""The Python form."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from programs import blobs, mlp
from torch import nn
from torch.utils.data import DataLoader

import nnaudit
from nnaudit.engine import session as engine
from nnaudit.errors import NnauditError, TargetError, UsageError


def test_factories_are_audited() -> None:
    report = nnaudit.audit(
        mlp, blobs, nn.functional.cross_entropy, select=["DATA101", "GRAD102"], seed=3
    )
    assert [result.code for result in report.results] == ["DATA101", "GRAD102"]
    assert report.tool.seed == 3
    assert not report.failed


def test_pictures_that_cannot_be_taken_cost_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise IndexError("no such row")

    monkeypatch.setattr(engine, "overview_of", fails)
    report = nnaudit.audit(mlp, blobs, nn.functional.cross_entropy, select=["DATA101"])
    assert [result.code for result in report.results] == ["DATA101"]
    (section,) = report.overview.sections
    assert "IndexError: no such row" in section.text


def test_objects_are_left_as_they_were() -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    report = nnaudit.audit(
        model=model, train_loader=loader, loss=nn.CrossEntropyLoss(), optimizer=optimizer,
        select="LOSS,GRAD102,GRAD106,DATA101",
    )  # fmt: skip
    assert report.totals.steps > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_child_keeps_the_files(isolate: bool, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with log.open("a") as file:
            file.write("one more\n")
        return nn.functional.cross_entropy(output, target)

    report = nnaudit.audit(mlp(), blobs, loss, select="LOSS101", isolate=isolate)
    assert report.result("LOSS101").status == "pass"
    assert log.exists() is not isolate
    assert ("isolate=False" in report.environment.sandbox) is not isolate


def test_what_kills_the_process_costs_a_check() -> None:
    calls = itertools.count()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(output, target)

    report = nnaudit.audit(mlp(), blobs, loss, select="DATA101,LOSS101,GRAD102,STEP101")
    assert report.totals.error > 0
    assert "was killed by SIGKILL" in report.with_status("error")[0].message
    assert report.result("DATA101").status == "pass"
    assert next(calls) == 0  # the fork counted its own


def test_what_the_users_code_raises_in_a_child_is_said_with_its_line() -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        raise ValueError("no rate was given")

    with pytest.raises(NnauditError, match=r"test_api\.py:\d+: your code raised .* rate") as caught:
        nnaudit.audit(mlp, blobs, optimizer=optimizer, select="DATA101")
    assert caught.value.exit_code == 4


def test_workers_of_this_process_are_left_alone() -> None:
    loader = DataLoader(blobs().dataset, batch_size=8, num_workers=1, persistent_workers=True)
    next(iter(loader))
    report = nnaudit.audit(mlp(), loader, nn.CrossEntropyLoss(), select="LOSS101")
    assert "persistent workers" in report.environment.sandbox


def test_a_result_is_found_by_its_code() -> None:
    report = nnaudit.audit(mlp, blobs, nn.functional.cross_entropy, select="DATA101")
    assert report.result("DATA101").status == "pass"
    with pytest.raises(KeyError):
        report.result("DATA102")


def test_wrong_use_is_an_error_in_words() -> None:
    with pytest.raises(TargetError, match="model is a int"):
        nnaudit.audit(3, blobs)
    with pytest.raises(UsageError, match=r"audit\(\) has no parameter 'train_loder': did you mean"):
        nnaudit.audit(model=nn.Linear(1, 1), train_loder=())
    with pytest.raises(UsageError, match="did you mean select"):
        nnaudit.audit(mlp, blobs, selekt="DATA101")
    with pytest.raises(NnauditError, match="NOPE"):
        nnaudit.audit(mlp, blobs, select="NOPE")


class LightningModule(nn.Module):
    """By its name one of Lightning's."""


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_lightning_module_is_not_trained_by_another_loop_unasked() -> None:
    with pytest.raises(TargetError, match="Lit is a LightningModule, and its loop is Lightning's"):
        nnaudit.audit(Lit, blobs)
    report = nnaudit.audit(Lit(), blobs, nn.CrossEntropyLoss(), select="DATA101")
    assert report.result("DATA101").status == "pass"
