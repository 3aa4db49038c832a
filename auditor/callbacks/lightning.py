"""A Lightning callback that audits the script before its first epoch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nnaudit.callbacks.before_training import OnFindings, audit_script
from nnaudit.display import AuditReport

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif "lightning" not in sys.modules and "pytorch_lightning" in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback


class AuditCallback(Callback):
    """Audits the running script before ``Trainer.fit`` trains, once, in a process of its own.

    ``Trainer(callbacks=[AuditCallback(preset="quick", on_findings="stop")])``. The report is kept
    like that of ``nnaudit FILE``, and handed to W&B, MLflow and TensorBoard, whose loggers the
    trainer has opened by then.

    Attributes:
        report: what the audit said; None before it, and where it could not be done.
    """

    def __init__(self, on_findings: OnFindings = "stop", **settings: Any) -> None:
        """``on_findings`` is ``stop`` or ``warn``; ``settings`` are the keys of [tool.nnaudit]."""
        self.report: AuditReport | None = None
        self._on_findings: OnFindings = on_findings
        self._settings = settings

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Audit on the first process before the model is on its device; the others wait.

        Raises:
            FindingsError: there are findings, and the training is to stop for them.
        """
        if stage != "fit" or self.report is not None:
            return
        if trainer.is_global_zero:
            self.report = audit_script(self._on_findings, **self._settings)
        trainer.strategy.barrier("nnaudit")
