"""MODE108: whether a moving average follows the network, statistics included."""

from __future__ import annotations

from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.synced_network import UnsyncedNetwork
from nnaudit.probes.averaged_copies import AveragedCopies, AveragedCopy
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_TOWARD = 0.9


class AveragedCopyStatistics(Check):
    """Does a moving average follow the network that is trained, statistics included?

    Why: An average of the weights (EMA, SWA, a mean teacher) over `parameters()` leaves the buffers
        as they were when the copy was made: means and variances of batch normalisation. In eval
        mode the averaged network normalises by the statistics of another network, and scores far
        below what it could. With `value = value * decay + ...` a name is bound anew and the average
        stays what it was at first; with decay and 1 - decay exchanged it is the last weights.
    How: Looks for networks in memory with the same parameters and buffers as the trained one (names
        and shapes) that no optimizer holds, and takes three steps. A copy whose weights move toward
        the trained ones (cosine of at least 0.9) is an average. Then ends the epoch, validation
        included.
        - Fails when the statistics changed in the trained network but not one bit of them in the
          average, and validation called the average in eval mode.
        - Warns when validation did not call it, or the end of an epoch cannot be reached; and of
          torch's AveragedModel without `use_buffers` before its first update.
        - Notes a program that recomputes the statistics before use (`update_bn`).
        - Fails when every step leaves the same share of the distance between average and network,
          above 0 and below `forgets` (0.1: an average over one step). A decay that grows, as in a
          warm-up, and a copy of the weights as they are, pass.
        - Fails when validation calls a copy of the network and never the network itself, and not
          one bit of the copy's weights changes in some 150 steps and between two epochs.
        - Warns of a target network that the steps call and that stands still, where the source
          copies it once and no statement can update it. A reference may be meant to stay. So it
          does of one that is to be updated every so many steps and is not in twice as many.
        - A copy whose statistics follow, by copying or by its own forward pass in train mode,
          passes. One that stands still beside a network that is validated too (a teacher, a
          reference) is not judged.
    Fix: `for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)`.
    References: PyTorch documentation of torch.optim.swa_utils.AveragedModel (use_buffers) and
        update_bn; Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
        Generalization" (2018), section 3.2.
    """

    code, name, kind = "MODE108", "averaged-copy", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (AveragedCopies,)
    options: ClassVar[dict[str, float]] = {"forgets": 0.1}

    def run(self, audit: Audit) -> Result:
        """Judge the copies that follow the trained network, and those that should."""
        copies = audit.probe(AveragedCopies)
        for copy in copies:
            if copy.stood:
                return self._stands_still(audit, copy)
            if copy.unsynced is not None:
                return self._unsynced(copy.unsynced)
        averages = [each for each in copies if each.alignment >= _TOWARD or each.by_torch]
        if not averages:
            return self.skipped("No moving average of the network was found.")
        for copy in averages:
            if copy.decay is not None and 0.0 < copy.decay < self.option(audit, "forgets"):
                return self._forgets(audit, copy, copy.decay)
        for copy in averages:
            if copy.stale and copy.stale == copy.statistics:
                return self._stale(audit, copy)
        return self.passed(
            "The average of the network follows it"
            + (
                ", running statistics included."
                if any(copy.statistics for copy in averages)
                else "."
            )
        )

    def _stands_still(self, audit: Audit, copy: AveragedCopy) -> Result:
        return self.failed(
            f"Validation calls a copy of the network ({copy.type}), never the network that is "
            f"trained, and not one of the copy's weights changed in {copy.stood} steps and between "
            "two epochs: it scores the weights as they were when the copy was made.",
            measured=f"0 of {count(copy.weights, 'tensor')} changed",
            threshold="an average that moves toward the trained weights",
            module=copy.source,
            location=audit.loop.locate("model"),
            fix="update the copy in place after every step, under torch.no_grad(): "
            "average.mul_(decay).add_(weight, alpha=1 - decay)",
        )

    def _unsynced(self, network: UnsyncedNetwork) -> Result:
        name, period = network.name, network.period
        return self.warned(
            f"{name} is to be updated every {period} optimizer steps, and was not in more than "
            f"twice as many: the counter begins anew before it gets there."
            if period
            else f"{name} is copied from the trained network once, and no statement updates it: "
            "the steps are taken toward what the untrained network says.",
            measured="0 updates",
            threshold="a copy of the weights now and then, or a moving average of them",
            location=network.location,
            fix="count the updates of the whole run, not of an episode"
            if period
            else f"{name}.load_state_dict(network.state_dict())  # every few hundred steps",
        )

    def _forgets(self, audit: Audit, copy: AveragedCopy, decay: float) -> Result:
        return self.failed(
            f"The average of the network ({copy.type}) keeps only {decay:.2g} of itself in every "
            f"step and takes {1 - decay:.4g} from the trained weights: it is the last step's "
            "weights, and no average.",
            measured=f"decay {decay:.2g}",
            threshold=f"at least {self.option(audit, 'forgets'):g}",
            module=copy.source,
            location=audit.loop.locate("model"),
            fix="exchange the two factors: "
            f"average.mul_({1 - decay:.4g}).add_(weight, alpha={decay:.2g})",
        )

    def _stale(self, audit: Audit, copy: AveragedCopy) -> Result:
        follows = "follows" if copy.moved else "is made to follow"
        what = (
            f"The average of the network ({copy.type}) {follows} its weights, but not its buffers: "
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
        if copy.by_torch:
            details["fix"] = (
                "torch.optim.swa_utils.update_bn(train_loader, averaged) before it is used, or "
                "AveragedModel(model, use_buffers=True)"
            )
        if copy.evaluated and copy.moved:
            return self.failed(f"{what}. Validation uses the average with them.", **details)
        return self.warned(f"{what}.", **details)
