"""DATA112: how much there is to learn from."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.rows import Rows, TrainRows
from nnaudit.report import Evidence, Kind, Numbers, Result


class DataSize(Check):
    """Are there enough training rows for the classes and the parameters?

    Why: A network with a hundred times more weights than there are values to learn can store them
        all. That works, and is usual, but only together with augmentation, weight decay, early
        stopping or pretrained weights. A class of a few rows is not learnt, it is memorised.
    How: Counts the training rows, the rows of the rarest class, and the trainable parameters. Notes
        fewer than `rows_per_class` rows of a class, or more than `parameters_per_row` parameters
        per row. Both are rules of thumb, which tell where to look and decide nothing.
    Fix: More rows, augmentation, pretrained weights, weight decay, or a smaller network.
    References: Zhang et al., Understanding Deep Learning Requires Rethinking Generalization (2017).
        Figueroa et al., Predicting Sample Size Required for Classification Performance (2012).
    """

    code = "DATA112"
    name = "data-size"
    kind = Kind.JUDGEMENT
    needs = (Needs.ITEMS,)
    probes = (TrainRows,)
    options: ClassVar[dict[str, float]] = {"rows_per_class": 50.0, "parameters_per_row": 100.0}

    def run(self, audit: Audit) -> Result:
        """Count."""
        rows = audit.probe(TrainRows).rows
        if rows.total is None:
            return self.skipped(
                "The number of training rows is unknown: no data set with a length was found."
            )
        parameters = sum(p.numel() for p in audit.loop.model.parameters() if p.requires_grad)
        rarest = _rarest(rows)
        each = parameters / max(rows.total, 1)
        message = f"{rows.total:,} training rows for {parameters:,} trainable parameters"
        if rarest is not None:
            message += f", {rarest:,.0f} rows in the rarest class"
        few = rarest is not None and rarest < self.option(audit, "rows_per_class")
        if few or each > self.option(audit, "parameters_per_row"):
            return self.noted(
                f"{message}: overfitting is likely without augmentation, weight decay or "
                "pretrained weights.",
                measured=f"{each:.3g} parameters per row",
                threshold=f"{self.option(audit, 'parameters_per_row'):g} parameters per row",
                evidence=_evidence(rows.total, parameters, rarest),
            )
        return self.passed(f"{message}.", evidence=_evidence(rows.total, parameters, rarest))


def _rarest(rows: Rows) -> float | None:
    """Rows of the rarest class, of those that were read, for all of an epoch; None without."""
    targets = rows.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return None
    _, counts = np.unique(targets, return_counts=True)
    return float(counts.min() / rows.coverage) if len(counts) > 1 else None


def _evidence(total: int, parameters: int, rarest: float | None) -> tuple[Evidence, ...]:
    values: dict[str, float | str] = {
        "training rows": float(total),
        "trainable parameters": float(parameters),
    }
    if rarest is not None:
        values["rows of the rarest class"] = rarest
    return (Numbers(title="Size", values=values),)
