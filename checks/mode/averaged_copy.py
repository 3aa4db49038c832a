"""MODE108: whether a moving average of the network brings its statistics along."""

from __future__ import annotations

from typing import Any

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.averaged_copies import AveragedCopies, AveragedCopy
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_TOWARD = 0.9


class AveragedCopyStatistics(Check):
    """Does a moving average of the network include its running statistics?

    Why: An average of the weights (EMA, SWA, a mean teacher) over `parameters()` leaves the buffers
        as they were when the copy was made: means and variances of batch normalisation. In eval
        mode the averaged network normalises by the statistics of another network, and scores far
        below what it could.
    How: Looks for networks in memory with the same parameters and buffers as the trained one (names
        and shapes) that no optimizer holds, and takes three steps. A copy whose weights move toward
        the trained ones (cosine of at least 0.9) is an average. Then ends the epoch, validation
        included.
        - Fails when the statistics changed in the trained network but not one bit of them in the
          average, and validation called the average in eval mode.
        - Warns when validation did not call it, or the end of an epoch cannot be reached.
        - Notes a program that recomputes the statistics before use (`update_bn`).
        - A copy whose statistics follow, by copying or by its own forward pass in train mode,
          passes. One that stands still is not judged.
    Fix: `for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)`.
    References: PyTorch documentation of torch.optim.swa_utils.AveragedModel (use_buffers) and
        update_bn; Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
        Generalization" (2018), section 3.2.
    """

    code, name, kind = "MODE108", "averaged-copy", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.TRAIN_LOADER)
    probes = (AveragedCopies,)

    def run(self, audit: Audit) -> Result:
        """Judge the copies that follow the trained network."""
        copies = [each for each in audit.probe(AveragedCopies) if each.alignment >= _TOWARD]
        if not copies:
            return self.skipped("No average of a network with running statistics was found.")
        for copy in copies:
            if copy.stale and copy.stale == copy.statistics:
                return self._stale(audit, copy)
        return self.passed("The average of the network keeps its running statistics up to date.")

    def _stale(self, audit: Audit, copy: AveragedCopy) -> Result:
        what = (
            f"The average of the network ({copy.type}) follows its weights, but not its buffers: "
            f"{count(copy.stale, 'running statistic')} changed in the trained network and "
            "stayed bit for bit the same in the average"
        )
        if copy.recomputed:
            return self.noted(f"{what}; the program recomputes them later (update_bn).")
        details: dict[str, Any] = {
            "measured": f"{copy.stale} of {copy.statistics} statistics unchanged",
            "threshold": "0",
            "module": copy.source,
            "location": audit.loop.locate("model"),
            "fix": "for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)",
        }
        if copy.evaluated:
            return self.failed(f"{what}. Validation uses the average with them.", **details)
        return self.warned(f"{what}.", **details)
