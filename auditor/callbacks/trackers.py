"""Hands a report to the experiment trackers that are at work in this process.

Whatever of them the program has not imported is not at work. Must not import torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from nnaudit.app.pytest_warning import NnauditWarning
from nnaudit.display import AuditReport
from nnaudit.measure.living import living
from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options

NAME = "nnaudit"
"""Of the report among what a run has logged."""

_TENSORBOARD = ("torch.utils.tensorboard.writer", "tensorboardX.writer")
_LIGHTNING = ("lightning.pytorch.loggers.mlflow", "pytorch_lightning.loggers.mlflow")


def publish(report: AuditReport) -> None:
    """Log ``report`` with every run that is open here: W&B, MLflow, TensorBoard.

    W&B and MLflow get the page with its figures, TensorBoard the text that a pull request gets. A
    tracker that fails costs a warning: the training is worth more than its log.
    """
    for log in (_to_wandb, _to_mlflow, _to_tensorboard):
        try:
            log(report)
        except Exception as error:  # anything may go wrong between here and a server
            message = f"nnaudit: the report was not logged: {error}"
            warnings.warn(message, NnauditWarning, stacklevel=3)


def _to_wandb(report: AuditReport) -> None:
    wandb = sys.modules.get("wandb")
    if (run := getattr(wandb, "run", None)) is not None:
        page = wandb.Html(_rendered(report, "html"), inject=False)  # type: ignore[union-attr]
        run.log({NAME: page}, commit=False)  # with the first step, not as one of its own


def _to_mlflow(report: AuditReport) -> None:
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.log_text(_rendered(report, "html"), f"{NAME}.html")
    for logger in _living("MLFlowLogger", _LIGHTNING):  # which activates no run
        logger.experiment.log_text(logger.run_id, _rendered(report, "html"), f"{NAME}.html")


def _to_tensorboard(report: AuditReport) -> None:
    for writer in _living("SummaryWriter", _TENSORBOARD):
        if writer.file_writer is not None:  # else it is closed, and would open another file
            writer.add_text(NAME, _rendered(report, "markdown"))
            writer.flush()


def _living(kind: str, modules: Sequence[str]) -> list[Any]:
    """Return the objects of the class ``kind`` of those ``modules`` that are imported."""
    imported = [sys.modules[name] for name in modules if name in sys.modules]
    return [each for module in imported for each in living(getattr(module, kind))]


def _rendered(report: AuditReport, form: str) -> str:
    return FORMATS[form]([report], Options())
