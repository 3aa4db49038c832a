"""DIST106: ranks that call different collectives."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Collective, Mismatch, Ranks
from nnaudit.report import Kind, Result, Table

_BEFORE = 3
"""Collectives before the first different one that the evidence shows."""


class CollectiveOrder(Check):
    """Do all ranks call the same collectives in the same order?

    Why: A collective that one rank does not call hangs the others, or is taken for another one of
        the same size and mixes numbers that have nothing to do with each other. Mostly it stands
        under `if rank == 0`, or behind a `break` or an exception of one rank.
    How: Every collective that Python calls is written down on each rank with its group, and the
        data type and shape where these must agree; so are the reductions and broadcasts of
        DistributedDataParallel. The sequences of every two ranks are compared: for the groups that
        hold both. Fails at the first difference; a rank that waits in a collective while the other
        has gone on to the end without it counts. Point-to-point messages are not compared.
    Fix: call the collective on all ranks, and do only what follows on one.
    References: PyTorch documentation, torch.distributed, "Collective functions".
    """

    code, name, kind = "DIST106", "collective-order", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Look for the first difference."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process has nobody to wait for.")
        if (found := seen.mismatch) is not None:
            return self._differ(seen, found)
        if seen.hung:
            stood = "; ".join(f"rank {rank.rank} {rank.standing}" for rank in seen.ranks)
            return self.inconclusive(f"The ranks {seen.hung}: {stood}.")
        calls = len(seen.ranks[0].collectives)
        if not calls:
            return self.skipped("No collective was called.")
        return self.passed(f"All ranks call the same {calls:,} collectives in the same order.")

    def _differ(self, seen: Ranks, found: Mismatch) -> Result:
        told = [(found.rank, found.call), (found.other_rank, found.other)]
        parts = [_calls(seen, rank, call) for rank, call in told]
        alone = found.call or found.other
        if found.call is not None and found.other is not None:
            # Who is in the training step is where the others should be.
            late = [c for c in (found.call, found.other) if not c.doing.startswith("training")]
            alone = late[0] if late else found.call
        return self.failed(
            f"{parts[0][0].upper()}{parts[0][1:]}, while {parts[1]}.",
            measured=f"collective {found.number + 1} differs",
            threshold="the same sequence on all ranks",
            evidence=(_table(seen, found),),
            location=alone.at if alone else None,
            fix="call it on every rank, outside of `if rank == 0:`",
        )


def _calls(seen: Ranks, rank: int, call: Collective | None) -> str:
    if call is not None:
        return f"rank {rank} calls {call.place}"
    known = next(r for r in seen.ranks if r.rank == rank)
    return f"rank {rank} {known.standing}"


def _table(seen: Ranks, found: Mismatch) -> Table:
    pair = [next(r for r in seen.ranks if r.rank == n) for n in (found.rank, found.other_rank)]
    both = {rank.rank for rank in pair}
    calls = [[c for c in rank.collectives if both <= set(c.group)] for rank in pair]
    rows = []
    for number in range(max(found.number - _BEFORE, 0), found.number + 2):
        cells = [each[number].place if number < len(each) else "" for each in calls]
        rows.append((str(number + 1), *cells))
    return Table(
        title="Where the sequences part",
        columns=("", *(f"rank {rank.rank}" for rank in pair)),
        rows=tuple(rows),
    )
