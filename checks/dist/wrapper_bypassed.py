"""DIST109: a wrapper that is there, and does not do its work."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Held, Wrapped
from nnaudit.report import Kind, Result
from nnaudit.wording import count


class WrapperBypassed(Check):
    """Does what distributes the training see all of it: its calls, parameters and optimizer?

    Why: The wrapper averages gradients when its own forward was called. `model.module(x)`, or the
        network under the name that it had before, trains without it: every rank on its own, and
        nothing says so. It waits for the gradient of every parameter: one that the loss does not
        use stops the training in the second step. `fully_shard` makes new parameters: an optimizer
        that was made before it steps the old ones, and nothing is trained.
    How: Calls with gradients of the wrapper, and of the network or of its parts from outside of the
        wrapper, are counted during the steps watched. Fails when the wrapper was never called and
        what is in it was; when the script raises on all ranks, and parameters have no gradient at
        the first optimizer step, without `find_unused_parameters` or `static_graph`; when an optimizer holds parameters of no
        network, while sharded ones with a gradient are in none.
    Fix: output = model(x), with model = DistributedDataParallel(network); the optimizer after that.
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
        for each in wrapped:
            if each.bypassed and not each.forwards:
                return self._bypassed(each)
        if seen.unused is not None:
            return self._unused(seen.unused)
        for rank in seen.ranks:
            if rank.held.stale and rank.held.unstepped:
                return self._stale(audit, rank.held)
        if not wrapped:
            return self.skipped("No DistributedDataParallel is called.")
        calls = sum(each.forwards for each in wrapped)
        return self.passed(f"The training calls its wrapper ({calls} times).")

    def _bypassed(self, found: Wrapped) -> Result:
        return self.failed(
            f"The training calls {found.network} {found.bypassed} times and the "
            "DistributedDataParallel around it never: gradients are not averaged.",
            measured="0 calls of the wrapper",
            threshold="1 per step",
            location=found.bypassed_at,
            fix="output = model(x)  # the wrapper",
        )

    def _unused(self, found: Wrapped) -> Result:
        names, verb = found.unused, "has" if len(found.unused) == 1 else "have"
        return self.failed(
            f"{count(len(names), 'parameter')} of {found.network} {verb} no gradient in the first "
            f"step (first: {names[0]}), and DistributedDataParallel waits for every one.",
            measured=f"{len(names)} without a gradient",
            threshold="0, or find_unused_parameters=True",
            location=found.at,
            modules=tuple(names),
            fix="remove what the loss does not use, or "
            "DistributedDataParallel(model, find_unused_parameters=True)",
        )

    def _stale(self, audit: Audit, found: Held) -> Result:
        names = found.unstepped
        return self.failed(
            f"The optimizer steps {count(found.stale, 'parameter')} of no network, and "
            f"{len(names)} sharded ones have a gradient that none uses (first: {names[0]}): it was "
            "made before the network was sharded.",
            measured=f"{len(names)} parameters are not stepped",
            threshold="0",
            location=audit.loop.locate("optimizer"),
            modules=tuple(names),
            fix="fully_shard(model)  # first, then the optimizer of model.parameters()",
        )
