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
    """Does a moving average of the network keep the statistics of its normalisation up to date?

    Why: An average of the weights (EMA, SWA, a mean teacher) that is made by going through
        parameters() leaves the buffers as they were when the copy was made: means and variances of
        batch normalisation, of random features. In eval mode the averaged network normalises by
        statistics of another network, and its score is far below the one that it could have.
    How: Exact. Networks in memory with the same parameters and buffers as the trained one, by name
        and shape, in no optimizer, are looked for. Three steps are taken. A copy whose weights
        move, at a cosine of at least 0.9 to the way toward the trained weights, is an average of
        them. Then the epoch is ended, validation included. It fails when statistics changed in the
        trained network and not one bit of the same ones did in the copy, and validation called
        the copy in eval mode. Where validation did not call it, or no end of an epoch can be
        reached, it is a warning. Copies whose statistics follow, by copying or by a forward pass
        of their own in train mode, pass. A program that recomputes them before use (update_bn) is
        a note, and copies that stand still are not judged.
    Fix: for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)
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
