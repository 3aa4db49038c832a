"""DIST108: files that several ranks write, or that one reads while another writes."""

from __future__ import annotations

from pathlib import Path

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Ranks, Read, Wrote
from nnaudit.report import Kind, Result, Table


class RankWrites(Check):
    """Is every file that is written during training written by one rank?

    Why: Two ranks that write a checkpoint to the same file at the same time leave one that is torn;
        at best, the last one wins. A rank that reads what another writes, and does not wait for it,
        reads half of it now and then.
    How: Every file that is opened to be written from its beginning, after the first optimizer step,
        is noted on each rank: by Python, and by `torch.save`. Fails when two ranks open the same
        one. Files that are appended to, that are made under a name of their own and renamed, and
        temporary ones are not counted; nor what compiled libraries write. Warns when one rank
        opens a file to read it that another writes, and they have come to as many collectives,
        process groups and wrappers by then: nothing makes the one wait for the other.
    Fix: if rank == 0: torch.save(...), and dist.barrier() before the others read.
    References: PyTorch tutorial "Getting started with distributed data parallel", "Save and load
        checkpoints".
    """

    code, name, kind = "DIST108", "rank-writes", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Look for a path that two ranks have in common."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process writes.")
        wrote: dict[str, dict[int, Wrote]] = {}
        for rank in seen.ranks:
            for entry in rank.writes:
                if entry.step:
                    wrote.setdefault(entry.path, {}).setdefault(rank.rank, entry)
        several = {path: by for path, by in wrote.items() if len(by) > 1}
        if not several:
            if (race := _race(seen)) is not None:
                return self._unfinished(*race)
            if not wrote:
                return self.skipped("No file was written in the steps watched.")
            return self.passed("Every file is written by one rank.")
        path, by = next(iter(several.items()))
        return self.failed(
            f"{Path(path).name} is written by {len(by)} ranks ({_listed(by)}).",
            measured=f"{len(by)} ranks",
            threshold="1 rank",
            evidence=(
                Table(
                    title="Files that several ranks write",
                    columns=("file", "ranks"),
                    rows=tuple((p, _listed(b)) for p, b in several.items()),
                ),
            ),
            location=next(iter(by.values())).at,
            fix="if rank == 0:  # before the file is written",
        )


    def _unfinished(self, writer: int, wrote: Wrote, reader: int, read: Read) -> Result:
        where = f" ({Path(wrote.at.file).name}:{wrote.at.line})" if wrote.at else ""
        return self.warned(
            f"Rank {reader} reads {Path(read.path).name}, which rank {writer} writes{where}, and "
            "no collective lies between: nothing makes it wait until all is written.",
            measured="0 collectives",
            threshold="1 between writing and reading",
            location=read.at,
            fix="dist.barrier()  # on all ranks, after the file is written",
        )


def _race(seen: Ranks) -> tuple[int, Wrote, int, Read] | None:
    """Return a file that one rank writes and another reads at the same place of their sequence."""
    everybody = range(len(seen.ranks))
    if any(len(c.group) != len(everybody) for rank in seen.ranks for c in rank.collectives):
        return None  # ranks meet in groups: who has waited for whom is not counted
    wrote = {(w.path, w.meetings): (rank.rank, w) for rank in seen.ranks for w in rank.writes}
    for rank in seen.ranks:
        own = {w.path for w in rank.writes}
        for read in rank.reads:
            found = wrote.get((read.path, read.meetings))
            if found is not None and read.path not in own:
                return *found, rank.rank, read
    return None


def _listed(by: dict[int, Wrote]) -> str:
    return ", ".join(str(rank) for rank in sorted(by))
