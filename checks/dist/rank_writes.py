"""DIST108: files that several ranks write."""

from __future__ import annotations

from pathlib import Path

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Wrote
from nnaudit.report import Kind, Result, Table


class RankWrites(Check):
    """Is every file that is written during training written by one rank?

    Why: Two ranks that write a checkpoint to the same file at the same time leave one that is torn;
        at best, the last one wins.
    How: Every file that is opened to be written from its beginning, after the first optimizer step,
        is noted on each rank: by Python, and by `torch.save`. Fails when two ranks open the same
        one. Files that are appended to, that are made under a name of their own and renamed, and
        temporary ones are not counted; nor what compiled libraries write.
    Fix: if rank == 0: torch.save(...).
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
        if not wrote:
            return self.skipped("No file was written in the steps watched.")
        several = {path: by for path, by in wrote.items() if len(by) > 1}
        if not several:
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


def _listed(by: dict[int, Wrote]) -> str:
    return ", ".join(str(rank) for rank in sorted(by))
