"""DIST103: a distributed sampler that gives the same order in every epoch."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Order
from nnaudit.report import Kind, Result

_LEAST = 8
"""Items of an epoch, below which two random orders may well be equal (1 in 8! = 40,320)."""


class EpochReshuffle(Check):
    """Does the sampler of each rank give another order in the second epoch?

    Why: A DistributedSampler shuffles by its seed and the epoch's number. Nobody who forgets
        `set_epoch` is told: every epoch has the same batches on the same ranks, and no row ever
        meets those of another rank.
    How: The items of the first two epochs that the script itself began are compared on every rank.
        Fails when a sampler that has `set_epoch` shuffles, and both orders are equal. An order that
        only ascends is not shuffled: DATA104 judges that.
    Fix: sampler.set_epoch(epoch) at the start of every epoch.
    References: PyTorch documentation, torch.utils.data.distributed.DistributedSampler, "Warning".
    """

    code, name, kind = "DIST103", "epoch-reshuffle", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Compare the orders of two epochs."""
        seen = audit.probe(SeveralRanks)
        compared, sampler, waits = 0, "", False
        for rank in seen.ranks:
            for first, second in _epochs(rank.orders):
                waits = True
                if len(first.indices) < _LEAST or list(first.indices) == sorted(first.indices):
                    continue
                compared += 1
                sampler = first.sampler
                if first.indices == second.indices:
                    return self._repeats(audit, rank.rank, first)
            waits |= any(order.waits_for_epoch for order in rank.orders)
        if not waits:
            return self.skipped("No sampler waits for the number of the epoch.")
        if not compared:
            return self.inconclusive(
                "Not compared: no two epochs of a shuffling sampler were seen."
            )
        return self.passed(f"The {sampler} gives another order in the second epoch.")

    def _repeats(self, audit: Audit, rank: int, order: Order) -> Result:
        n = len(order.indices)
        return self.failed(
            f"The {order.sampler} gives the same order in both epochs ({n:,} of {n:,} items on "
            f"rank {rank}): set_epoch() does not reach it.",
            measured=f"{n:,} of {n:,} items in the same place",
            threshold="about 1 by chance",
            location=order.at or audit.loop.locate("train_loader"),
            fix="sampler.set_epoch(epoch)  # at the start of every epoch",
        )


def _epochs(orders: tuple[Order, ...]) -> list[tuple[Order, Order]]:
    """Return the first two epochs of every loader whose sampler waits for their number."""
    found: dict[int, list[Order]] = {}
    for order in orders:
        if order.waits_for_epoch and order.complete:
            found.setdefault(order.loader, []).append(order)
    return [(each[0], each[1]) for each in found.values() if len(each) > 1]
