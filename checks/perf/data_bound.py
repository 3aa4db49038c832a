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
    """Does the training compute rather than wait for data?

    Why: A device that waits costs as much as one that computes. Loading and transforming in the
        training process add to the time of every step; in workers they happen meanwhile.
    How: Some batches are read and trained on as in training, and both are timed. The medians are
        taken after the first two batches and after those that workers had prefetched. It warns
        where waiting takes more than the option `share` of the time and more than the option
        `seconds` in an epoch: shorter waits are not worth a change. Where the training process
        reads by itself, each row takes more than the option `row` (a thousandth of a second: one
        in memory takes a tenth of that, transforms included), and nine tenths of the time are
        spent so, a fifth of `seconds` is enough. Programs without a
        loader are skipped. The number of workers advised
        is the wait divided by the step, rounded up, at most the machine's cores.
    Fix: DataLoader(..., num_workers=4, pin_memory=True, persistent_workers=True)
    References: PyTorch documentation, "Performance Tuning Guide", asynchronous data loading.
    """

    code, name, kind = "PERF101", "data-bound", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (DataWait,)
    options: ClassVar[dict[str, float]] = {"share": 0.5, "seconds": 10.0, "row": 1e-3}

    def run(self, audit: Audit) -> Result:
        """Compare the two times."""
        if audit.loop.makes_batches:
            return self.skipped(
                "The script makes its batches itself, between two calls of the network: there is "
                "no loader to wait for."
            )
        seen = audit.probe(DataWait)
        if seen.batches < 3:
            return self.inconclusive(
                f"Only {seen.batches} batches could be timed, and three are needed."
            )
        told = (
            f"A batch takes {_time(seen.wait)} to load and {_time(seen.step)} to train on: "
            f"{100 * seen.share:.0f}% of the time is spent waiting for data"
        )
        epoch = seen.wait * (seen.length or 0)
        evidence = (
            Numbers(
                title="Time per batch, in seconds",
                values={"wait": seen.wait, "step": seen.step, "wait per epoch": epoch},
                noise={"wait": seen.wait_noise, "step": seen.step_noise},
            ),
        )
        loader = audit.loop.train_loader
        rows = getattr(loader, "batch_size", None) or 0
        slow = rows and not loader.num_workers and seen.wait > rows * self.option(audit, "row")
        seconds = self.option(audit, "seconds") / (5.0 if slow and seen.share > 0.9 else 1.0)
        if seen.share <= self.option(audit, "share") or epoch <= seconds:
            return self.passed(f"{told}.", evidence=evidence)
        return self.warned(
            f"{told}, {_time(epoch)} per epoch.",
            measured=f"{100 * seen.share:.0f}% waiting",
            threshold=f"{100 * self.option(audit, 'share'):.0f}%",
            evidence=evidence,
            location=audit.loop.locate("train_loader"),
            fix=_advice(audit.loop, seen),
        )


def _advice(loop: Loop, seen: Waiting) -> str:
    loader = loop.train_loader
    present = int(getattr(loader, "num_workers", 0) or 0)
    if isinstance(getattr(loader, "dataset", None), TensorDataset):
        return (
            "index whole batches, x[indices], instead of collating them row by row: the data are "
            "in memory"
        )
    cores = os.cpu_count() or 1
    wanted = min(cores, max(present, 1) * math.ceil(seen.wait / max(seen.step, 1e-6)))
    if wanted <= present or cores == 1:
        return (
            "do the costly part of __getitem__ once, beforehand: smaller files, resized images, "
            "a cache in memory"
        )
    pinned = "" if loop.device.type == "cpu" else ", pin_memory=True"
    return f"DataLoader(..., num_workers={wanted}{pinned}, persistent_workers=True)"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
