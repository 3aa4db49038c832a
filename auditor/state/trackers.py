"""Experiment trackers: silent, and without memory of an execution whose files are gone.

Must not import torch.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

SILENCED = {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "COMET_START_MODE": "create",
    "COMET_OFFLINE_ONLY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SWANLAB_MODE": "disabled",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables that silence experiment trackers."""


OF_A_RUN = ("WANDB_SERVICE", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
"""Environment variables that name what a run elsewhere has, and is not to be found in an audit."""


def environment(folder: str) -> dict[str, str | None]:
    """Return the environment in which trackers are silent; None is for what must be unset.

    MLflow, which has no silent mode, writes below ``folder``.
    """
    return {
        **SILENCED,
        **dict.fromkeys(OF_A_RUN),
        "MLFLOW_TRACKING_URI": f"file://{folder}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # else newer releases refuse to
    }


def forget_runs() -> None:
    """End the runs that MLflow has open, and let it look at its files anew.

    It keeps a store for each place that it wrote to: where a script is executed again, with the
    files as they were, that store would miss its folder.
    """
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is None:
        return
    while mlflow.active_run() is not None:
        with suppress(Exception):  # it is no longer active, whether or not that could be written
            mlflow.end_run()
    for part in ("tracking._tracking_service", "tracking._model_registry"):
        registry: Any = sys.modules.get(f"mlflow.{part}.registry")
        for kind in vars(registry).values() if registry is not None else ():
            cached = getattr(kind, "_get_store_with_resolved_uri", None)
            if cached is not None:
                cached.cache_clear()
