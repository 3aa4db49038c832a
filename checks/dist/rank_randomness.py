"""DIST105: ranks that draw the same random numbers, or start from different weights."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Batch, Rank, Ranks
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_LEAST = 2


class RankRandomness(Check):
    """Do the ranks start from the same weights, and draw different random numbers then?

    Why: One seed on all ranks makes their augmentations and dropout masks equal: the noise of N
        ranks is the noise of one, and does not average out. A seed per rank from the beginning
        makes their initial weights different, where no wrapper broadcasts them.
    How: The states of the global generators (torch, its GPU's, numpy, Python) are compared before
        every batch, from the second on, and before what the step draws.
        - Warns when all ranks read batches from the same states, and reading draws from them; or
          when their workers derive from the same seed, and an item differs from itself under
          another seed (which is tried once).
        - Notes when only the training step draws from equal states (dropout).
        - Warns when weights differ before the first step. Those of tensor or pipeline parallelism
          do by design; sharded ones are not compared.
    Fix: torch.manual_seed(seed) before the network is made, torch.manual_seed(seed + rank) after.
    References: PyTorch documentation, notes on randomness.
    """

    code, name, kind = "DIST105", "rank-randomness", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)

    def run(self, audit: Audit) -> Result:
        """Compare the weights, then the generators."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process draws all random numbers.")
        if parted := _unequal_start(seen):
            return self.warned(
                f"{count(len(parted), 'parameter')} of the ranks' networks differ before the first "
                f"step (first: {parted[0]}): the ranks were seeded differently, and nothing gives "
                "them the weights of one.",
                measured=f"{len(parted)} differ",
                threshold="the same bits on all ranks",
                location=audit.loop.locate("model"),
                fix="torch.manual_seed(seed)  # the same on all ranks, before the network is made",
            )
        if libraries := _shared_reading(seen):
            return self._shared(audit, f"augmentation ({libraries})", warns=True)
        if libraries := _shared([_drew(rank) for rank in seen.ranks]):
            return self._shared(audit, f"noise of the training step ({libraries})", warns=False)
        if not any(b.drew for rank in seen.ranks for b in _later(rank)) and not any(
            s.drew for rank in seen.ranks for s in rank.steps
        ):
            return self.passed("No step draws random numbers; the initial weights are equal.")
        return self.passed("The ranks draw different random numbers.")

    def _shared(self, audit: Audit, what: str, *, warns: bool) -> Result:
        message = (
            f"All ranks draw the same {what}: the generators have one state on all of them, at "
            "every step"
        )
        if not warns:
            return self.noted(f"{message}.")
        return self.warned(
            f"{message}.",
            measured="one state",
            threshold="a state of its own on each rank",
            location=audit.loop.locate("train_loader"),
            fix="torch.manual_seed(seed + rank)  # after the network is made and wrapped",
        )


def _unequal_start(seen: Ranks) -> list[str]:
    first = [rank.weights[0].parameters for rank in seen.ranks if rank.weights]
    if len(first) < len(seen.ranks):
        return []
    names = set.intersection(*(set(each) for each in first))
    return [n for n in first[0] if n in names and len({each[n] for each in first}) > 1]


def _later(rank: Rank) -> list[Batch]:
    """Return the batches but the first of each epoch, where a sampler draws its seed."""
    return [batch for batch in rank.batches if batch.index]


def _shared_reading(seen: Ranks) -> str:
    """Name the generators that all ranks read their batches with, in one state."""
    augments = any(rank.summary.augments for rank in seen.ranks)
    seeds = [[b.worker_seed for b in rank.batches if b.worker_seed is not None] for rank in seen.ranks]
    if augments and all(seeds) and all(each == seeds[0] for each in seeds):
        return "the seed of the loader's workers"
    drew = [{(b.epoch, b.index): b.drew for b in _later(rank)} for rank in seen.ranks]
    return _shared(drew)


def _drew(rank: Rank) -> dict[tuple[int, int], dict[str, str]]:
    return {(0, stepped.step): stepped.drew for stepped in rank.steps}


def _shared(drew: list[dict[tuple[int, int], dict[str, str]]]) -> str:
    """Name the generators that are drawn from in one state on all ranks, always."""
    both = set.intersection(*(set(each) for each in drew)) if drew else set()
    found = []
    for library in ("torch", "cuda", "numpy", "random"):
        states = [[each[key].get(library) for each in drew] for key in sorted(both)]
        used = [row for row in states if all(row)]
        if len(used) >= _LEAST and all(len(set(row)) == 1 for row in used):
            found.append(library)
    return " and ".join(found)
