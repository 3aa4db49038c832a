"""DIST107: results of a validation that each rank keeps to itself."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Rank, Resumed, Validation
from nnaudit.report import Kind, Location, Result

_NO_RESULT = ("barrier", "monitored_barrier", "DDP buffer broadcast", "DDP gradient reduction")
"""Collectives by which no result gets from one rank to another."""


class RankLocalResults(Check):
    """Are the results of a validation that is divided among ranks put together?

    Why: A metric of its own rows differs from rank to rank: early stopping ends one rank and leaves
        the others waiting, each keeps another checkpoint as the best, and what is logged is the
        result of a fraction of the data.
    How: From the first batch of a validation (a pass without gradients) to the next training step,
        the collectives of each rank are counted. Warns when ranks validate on different rows and
        none is called by which a result could get to another rank. A validation of all rows on
        every rank, or on one rank, is judged right.
    Fix: dist.all_reduce(counts) before the metric is computed from them.
    References: PyTorch documentation, torch.distributed.all_reduce.
    """

    code, name, kind = "DIST107", "rank-local-results", Kind.JUDGEMENT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Look for what the ranks tell each other after a validation."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process has all results.")
        passes = [_passes(rank) for rank in seen.ranks]
        moments = sorted(set().union(*passes))
        if not moments:
            return self.skipped("No validation was seen.")
        divided = 0
        for moment in moments:
            here = [each[moment] for each in passes if moment in each]
            if len(here) < 2 or len({each.rows for each in here}) < 2:
                continue
            divided += 1
            if all(each.whole for each in here) and not any(each.told for each in here):
                return self._kept(moment, len(here), here[0].at)
        if not divided:
            return self.passed("Each rank that validates does so on the same rows.")
        return self.passed("The ranks validate on different rows and put their results together.")

    def _kept(self, moment: int, ranks: int, at: Location | None) -> Result:
        return self.warned(
            f"The validation after step {moment} reads different rows on {ranks} ranks, and no "
            "collective follows: each rank has a result of its own rows only.",
            measured="0 collectives",
            threshold="1 that puts the results together",
            location=at,
            fix="dist.all_reduce(counts)  # sums over ranks, before the metric is computed",
        )


class _Pass:
    """A validation of one rank."""

    def __init__(self, rank: Rank, began: list[Validation], resumed: Resumed | None) -> None:
        self.rows = tuple(v.digest for v in began)
        self.at = began[0].at
        self.whole = resumed is not None
        until = resumed.collectives if resumed is not None else None
        calls = rank.collectives[began[0].collectives : until]
        self.told = sum(call.op not in _NO_RESULT for call in calls)


def _passes(rank: Rank) -> dict[int, _Pass]:
    """Return the validations of a rank by the number of steps taken before."""
    began: dict[int, list[Validation]] = {}
    ended: dict[int, Resumed] = {}
    for entry in rank.entries:
        if isinstance(entry, Validation):
            began.setdefault(entry.after, []).append(entry)
        elif isinstance(entry, Resumed):
            ended[entry.after] = entry
    return {after: _Pass(rank, each, ended.get(after)) for after, each in began.items()}
