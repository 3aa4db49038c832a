"""DIST101: ranks that read the same rows, or unequal numbers of batches."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Order, Ranks
from nnaudit.report import Kind, Result, Table

_LEAST = 2
"""Batches that two ranks have to share: one may be the first of data that everybody reads."""


class RankShards(Check):
    """Does every rank read its own share of the rows, in as many batches as the others?

    Why: Ranks that read the same rows compute the same gradient: N processes do the work of one.
        A rank with fewer batches leaves the loop while the others wait for it.
    How: The content of the first batches of each rank is compared, batch by batch, and the items
        of the first epoch, which the samplers give without loading them.
        - Fails when two ranks read the same batches, or their samplers give the same order; when
          ranks share more than `shared` of their items, beyond what fills up the last batch, while
          others are read by none.
        - Where one has more batches than another, of a stream too, and torch's `Join` is not in
          use, an epoch is run to its end: fails when a rank waits there for one that has left the
          loop. Warns where the epoch is too long for that (2,000 batches).
        - Warns when every rank reads the whole data set in an order of its own: an epoch is then
          several; and instead of failing where nothing is known to make the work data-parallel
          (ranks of tensor or pipeline parallelism read the same rows by design).
        - Samplers with replacement share items by design; so do those of data sets that differ
          between ranks (a few items are read to see that): only batches are compared then.
    Fix: DataLoader(data, batch_size, sampler=DistributedSampler(data, drop_last=True)). A stream takes
        every `world_size`-th row from the rank's own number on, and of these each worker its part.
    References: PyTorch documentation, torch.utils.data.distributed.DistributedSampler.
    """

    code, name, kind = "DIST101", "rank-shards", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)
    options: ClassVar[dict[str, float]] = {"shared": 0.05}

    def run(self, audit: Audit) -> Result:
        """Compare batches, then orders."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process reads everything.")
        found = self._same_batches(audit, seen)
        for orders in seen.shares:
            found = found or self._orders(audit, seen, orders)
        found = found or self._uneven(audit, seen)
        if found is not None:
            return found
        read = all(rank.batches or any(s.inputs for s in rank.steps) for rank in seen.ranks)
        if not read and not seen.shares:
            return self.inconclusive("Not compared: no batch was seen on every rank.")
        return self.passed(_told(seen))

    def _same_batches(self, audit: Audit, seen: Ranks) -> Result | None:
        indexed = {order.loader for rank in seen.ranks for order in rank.orders}
        for a, b in seen.pairs():
            mine = {(x.loader, x.epoch, x.index): x.digest for x in a.batches}
            others = {(x.loader, x.epoch, x.index): x.digest for x in b.batches}
            if not mine:  # a script without a loader
                mine = {(0, 0, s.step): s.inputs for s in a.steps if s.inputs}
                others = {(0, 0, s.step): s.inputs for s in b.steps if s.inputs}
            both = mine.keys() & others.keys()
            same = {key for key in both if mine[key] == others[key]}
            if len({mine[key] for key in same}) >= _LEAST and len(same) > len(both) / 2:
                return self._same(
                    seen,
                    f"Ranks {a.rank} and {b.rank} read the same rows ({len(same)} of {len(both)} "
                    "batches are equal)",
                    audit.loop.locate("train_loader"),
                    _FIX if any(loader in indexed for loader, _, _ in same) else _FIX_STREAM,
                )
        return None

    def _orders(self, audit: Audit, seen: Ranks, orders: dict[int, Order]) -> Result | None:
        numbers = sorted(orders)
        first = orders[numbers[0]]
        if not seen.number_alike(first.loader):
            return None
        at = first.at or audit.loop.locate("train_loader")
        for rank in numbers[1:]:
            other = orders[rank]
            n = min(len(first.indices), len(other.indices))
            if n >= _LEAST and first.indices[:n] == other.indices[:n]:
                return self._same(
                    seen,
                    f"Ranks {numbers[0]} and {rank} read the same rows in the same order ({n:,} of "
                    f"{n:,} items of the epoch)",
                    at,
                    _FIX,
                )
        whole = all(order.complete for order in orders.values())
        if not whole or first.replaces or seen.uneven:
            return None
        return self._overlap(audit, seen, orders, at)

    def _overlap(self, audit: Audit, seen: Ranks, orders: dict[int, Order], at: object) -> Result | None:
        """Judge items that several ranks read, and items that none reads."""
        first = next(iter(orders.values()))
        times = Counter(i for order in orders.values() for i in set(order.indices))
        shared = sum(1 for n in times.values() if n > 1)
        # What fills up the last batch of each rank is read twice by design.
        spare = sum(-(-len(order.indices) // max(order.batches, 1)) for order in orders.values())
        if shared <= max(self.option(audit, "shared") * first.length, spare):
            return None
        missing = first.length - len(times)
        whole = all(len(set(o.indices)) >= 0.95 * o.length for o in orders.values())
        message = f"{shared:,} of {first.length:,} items are read by several ranks"
        details = {
            "measured": f"{shared:,} shared, {missing:,} read by none",
            "threshold": "each item on one rank",
            "location": at,
            "fix": _FIX,
        }
        if whole:
            return self.warned(
                f"Each of {len(orders)} ranks reads all {first.length:,} items in an order of its "
                f"own: an epoch is {len(orders)} epochs.",
                **details,
            )
        if missing <= spare or not seen.data_parallel:
            return self.warned(f"{message}.", **details)
        return self.failed(f"{message}, and {missing:,} by none.", **details)

    def _same(self, seen: Ranks, message: str, at: object, fix: str) -> Result:
        details = {
            "measured": "the same rows", "threshold": "rows of its own on each rank",
            "location": at, "fix": fix,
        }  # fmt: skip
        if not seen.data_parallel:
            return self.warned(
                f"{message}: right for tensor or pipeline parallelism, and wasted work otherwise.",
                **details,
            )
        return self.failed(
            f"{message}: {len(seen.ranks)} processes do the work of one.", **details
        )

    def _uneven(self, audit: Audit, seen: Ranks) -> Result | None:
        """Judge unequal numbers of batches, by what comes of them."""
        batches = seen.uneven
        if not batches or seen.uncut == "ends":
            return None
        fewest, most = min(batches, key=batches.__getitem__), max(batches, key=batches.__getitem__)
        message = (
            f"Rank {fewest} has {batches[fewest]:,} batches in an epoch and rank "
            f"{most} has {batches[most]:,}"
        )
        at = next((o.at for orders in seen.shares for o in orders.values()), None)
        details = {
            "measured": ", ".join(f"rank {r}: {n}" for r, n in batches.items()),
            "threshold": "as many on each rank",
            "location": at or audit.loop.locate("train_loader"),
            "evidence": (
                Table(
                    title="Batches of an epoch",
                    columns=("rank", "batches"),
                    rows=tuple((str(r), str(n)) for r, n in batches.items()),
                ),
            ),
            "fix": "DistributedSampler(data, drop_last=True)  # and one batch size on all ranks",
        }
        if seen.uncut == "waits":
            return self.failed(
                f"{message}: rank {most} waits in its collective for one that has left the loop.",
                **details,
            )
        return self.warned(
            f"{message}: unless the loop ends before, rank {most} waits for one that has left it.",
            **details,
        )


_FIX = "DataLoader(data, batch_size, sampler=DistributedSampler(data, drop_last=True))"

_FIX_STREAM = "islice(rows, dist.get_rank(), None, dist.get_world_size())  # and of these by worker"


def _told(seen: Ranks) -> str:
    if seen.uncut == "ends":
        return "The ranks read different batches, and leave the loop together."
    for orders in seen.shares:
        first = next(iter(orders.values()))
        alike = seen.number_alike(first.loader)
        if first.length and alike and all(order.complete for order in orders.values()):
            read = len({i for order in orders.values() for i in order.indices})
            batches = len(orders) * first.batches
            return (
                f"The {len(orders)} ranks read {read:,} of {first.length:,} items in an epoch, "
                f"{batches:,} batches in equal shares."
            )
    return f"The {len(seen.ranks)} ranks read different batches."
