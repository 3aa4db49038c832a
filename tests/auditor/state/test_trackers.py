"""MLflow as a script that is executed twice uses it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnaudit.state.files import variables
from nnaudit.state.trackers import environment, forget_runs


@pytest.mark.filterwarnings("default")  # of what MLflow is about to give up
def test_a_second_execution_finds_mlflow_as_the_first_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-a-run-elsewhere")
    with variables(environment(str(tmp_path))):
        for _ in range(2):
            mlflow.set_experiment("digits")
            mlflow.start_run()  # never ended, which an execution after it would be refused for
            mlflow.log_metric("loss", 1.0)
            assert list((tmp_path / "mlruns").rglob("loss"))
            shutil.rmtree(tmp_path / "mlruns")
            forget_runs()
            assert mlflow.active_run() is None
