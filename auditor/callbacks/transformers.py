"""A callback of the transformers Trainer that audits the script before its first epoch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from nnaudit.callbacks.before_training import OnFindings, audit_script
from nnaudit.display import AuditReport


class AuditCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Audits the running script before ``Trainer.train`` trains, once, in a process of its own.

    ``Trainer(..., callbacks=[AuditCallback(preset="quick", on_findings="stop")])``. The report is
    kept like that of ``nnaudit FILE``, and handed to W&B, MLflow and TensorBoard, where
    ``report_to`` names them: the trainer opens them before it calls what it was given.

    Attributes:
        report: what the audit said; None before it, and where it could not be done.
    """

    def __init__(self, on_findings: OnFindings = "stop", **settings: Any) -> None:
        """``on_findings`` is ``stop`` or ``warn``; ``settings`` are the keys of [tool.nnaudit]."""
        self.report: AuditReport | None = None
        self._on_findings: OnFindings = on_findings
        self._settings = settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Audit on the first process; the others wait for it at their first common step.

        Raises:
            FindingsError: there are findings, and the training is to stop for them.
        """
        if self.report is None and state.is_world_process_zero:
            self.report = audit_script(self._on_findings, **self._settings)
