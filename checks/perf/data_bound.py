"""PERF101: whether training waits for its data."""

from __future__ import annotations

import math
import os
from typing import ClassVar

from torch.utils.data import TensorDataset

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.probes.data_wait import DataWait, Waiting
from nnaudit.report import Kind, Numbers, Result


class DataBound(Check):
    """Does the training compute, and not wait for its data?

    Why: A device that waits is paid for in full. Loading and transforming in the training
        process adds up with every step; in workers it happens meanwhile.
    How: Some batches are read and stepped on as in training, with a clock on both; medians of an
        epoch's, after the first two batches and what workers have in store. A warning where
        waiting takes more than half of the time and more than 10 seconds of an epoch: shorter
        waits are not worth a change, whatever their share. The number of workers is the wait over
        the step, rounded up, within the machine's cores.
    Fix: DataLoader(..., num_workers=4, pin_memory=True, persistent_workers=True)
    References: PyTorch documentation, "Performance Tuning Guide", asynchronous data loading.
    """

    code, name, kind = "PERF101", "data-bound", Kind.JUDGEMENT
    needs = (Needs.STEPS,)
    probes = (DataWait,)
    options: ClassVar[dict[str, float]] = {"share": 0.5, "seconds": 10.0}

    def run(self, audit: Audit) -> Result:
        """Compare the two times."""
        seen = audit.probe(DataWait)
        if seen.batches < 3:
            return self.inconclusive(
                f"Three batches must be timed, and there were {seen.batches} for that."
            )
        told = (
            f"A batch takes {_time(seen.wait)} to come and {_time(seen.step)} to train on: "
            f"{100 * seen.share:.0f} % of the time is spent waiting"
        )
        epoch = seen.wait * (seen.length or 0)
        evidence = (
            Numbers(
                title="Time per batch, in seconds",
                values={"wait": seen.wait, "step": seen.step, "wait per epoch": epoch},
                noise={"wait": seen.wait_noise, "step": seen.step_noise},
            ),
        )
        if seen.share <= self.option(audit, "share") or epoch <= self.option(audit, "seconds"):
            return self.passed(f"{told}.", evidence=evidence)
        return self.warned(
            f"{told}, {_time(epoch)} in an epoch.",
            measured=f"{100 * seen.share:.0f} % waiting",
            threshold=f"{100 * self.option(audit, 'share'):.0f} %",
            evidence=evidence,
            location=audit.loop.locate("train_loader"),
            fix=_advice(audit.loop, seen),
        )


def _advice(loop: Loop, seen: Waiting) -> str:
    loader = loop.train_loader
    present = int(getattr(loader, "num_workers", 0) or 0)
    if isinstance(getattr(loader, "dataset", None), TensorDataset):
        return (
            "The data lie in memory: index whole batches, x[indices], instead of collating them "
            "row by row."
        )
    cores = os.cpu_count() or 1
    wanted = min(cores, max(present, 1) * math.ceil(seen.wait / max(seen.step, 1e-6)))
    if wanted <= present or cores == 1:
        return (
            "Do the costly part of __getitem__ once, beforehand: smaller files, resized pictures, "
            "a cache in memory."
        )
    pinned = "" if loop.device.type == "cpu" else ", pin_memory=True"
    return f"DataLoader(..., num_workers={wanted}{pinned}, persistent_workers=True)"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
