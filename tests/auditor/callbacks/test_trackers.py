"""The report where the real trackers keep it, without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnaudit.callbacks.trackers import publish
from nnaudit.display import AuditReport
from nnaudit.reports.load import load

REPORT = AuditReport.of(load(Path(__file__).parents[2] / "assets" / "failing-v1.json")[0])
TITLE = "<title>"


def test_tensorboard_shows_the_text_of_the_open_writer_only(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "closed")):
        pass
    files = list((tmp_path / "closed").iterdir())
    with SummaryWriter(str(tmp_path / "open")):
        publish(REPORT)
    events = EventAccumulator(str(tmp_path / "open")).Reload()
    (event,) = events.Tensors("nnaudit/text_summary")
    assert b"DATA104" in event.tensor_proto.string_val[0]
    assert list((tmp_path / "closed").iterdir()) == files


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow may write plain files, and sends nothing."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("default")  # of what it is about to give up
def test_mlflow_keeps_the_page_with_the_active_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    mlflow.set_experiment("digits")
    with mlflow.start_run():
        publish(REPORT)
    (page,) = tmp_path.rglob("nnaudit.html")
    assert TITLE in page.read_text()


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_the_page_with_lightnings_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    publish(REPORT)
    (page,) = tmp_path.rglob("nnaudit.html")
    assert page.parts[-3] == logger.run_id


@pytest.mark.filterwarnings("default")
def test_wandb_shows_the_page(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(console="off")):
        publish(REPORT)
    (page,) = tmp_path.rglob("nnaudit*.html")
    assert TITLE in page.read_text()


def test_a_tracker_that_fails_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def log_text(*_: object) -> None:
        raise ConnectionError("no route to host")

    mlflow = SimpleNamespace(active_run=object, log_text=log_text)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with pytest.warns(UserWarning, match="not logged: no route to host"):
        publish(REPORT)
