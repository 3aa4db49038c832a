"""DIST109: a DistributedDataParallel that is not called."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.report import Kind, Result


class WrapperBypassed(Check):
    """Does the training call the DistributedDataParallel wrapper, and not the network in it?

    Why: The wrapper averages gradients when its own forward was called. `model.module(x)`, or the
        network under the name that it had before, trains without it: every rank on its own, and
        nothing says so.
    How: Calls with gradients of the wrapper, and of the network or of its parts from outside of the
        wrapper, are counted during the steps watched. Fails when the wrapper was never called and
        what is in it was.
    Fix: output = model(x), with model = DistributedDataParallel(network).
    References: PyTorch documentation, DistributedDataParallel.
    """

    code, name, kind = "DIST109", "wrapper-bypassed", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Count calls."""
        seen = audit.probe(SeveralRanks)
        # A rank that hangs has not come to tell.
        told = next((rank.wrapped for rank in seen.ranks if rank.wrapped), ())
        wrapped = [each for each in told if each.forwards or each.bypassed]
        if not wrapped:
            return self.skipped("No DistributedDataParallel is called.")
        for each in wrapped:
            if each.bypassed and not each.forwards:
                return self.failed(
                    f"The training calls {each.network} {each.bypassed} times and the "
                    "DistributedDataParallel around it never: gradients are not averaged.",
                    measured="0 calls of the wrapper",
                    threshold="1 per step",
                    location=each.bypassed_at,
                    fix="output = model(x)  # the wrapper",
                )
        calls = sum(each.forwards for each in wrapped)
        return self.passed(f"The training calls its wrapper ({calls} times).")
