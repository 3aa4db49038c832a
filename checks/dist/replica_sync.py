"""DIST102: replicas of one network whose weights part."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.several_ranks import SeveralRanks
from nnaudit.ranks.record import Rank, Ranks, Weights
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import count

_SHOWN = 12


class ReplicaSync(Check):
    """Do all ranks hold the same weights, bit for bit, after every step?

    Why: Replicas that drift apart are several networks of which one is saved; the gradients of the
        others pull it towards weights that it does not have.
    How: Hashes of every parameter and buffer are compared between ranks before the first step,
        after it, after more, after validation, and at the end.
        - Fails when a parameter that DistributedDataParallel holds differs; and, without it, when
          parameters that were equal before the first step part while others are trained and stay
          equal: the ranks are replicas, and these are not kept in step; and when some differ from
          the start whose gradient in the first step is the same on all ranks, bit for bit.
        - Warns when all of them part, or all_to_all is called (experts differ by design); and when
          buffers, such as the statistics of batch normalisation, differ and are not broadcast.
        - Sharded parameters, and others that differ from the start, are not compared.
    Fix: DistributedDataParallel(model), or average the gradients of all parameters.
    References: Li et al., PyTorch Distributed (VLDB 2020), section 3.
    """

    code, name, kind = "DIST102", "replica-sync", Kind.EXACT
    needs = (Needs.RANKS,)
    probes = (SeveralRanks,)
    consequence_of = ("DIST109",)

    def run(self, audit: Audit) -> Result:
        """Find the first moment at which two ranks differ."""
        seen = audit.probe(SeveralRanks)
        if len(seen.ranks) < 2:
            return self.skipped("One process holds the only weights.")
        moments = _moments(seen)
        if not moments:
            return self.inconclusive("Not compared: not every rank came to its first step.")
        start = moments[0]
        compared = set.intersection(*(set(w.parameters) for w in start))
        if not compared:
            return self.skipped(_why_none(seen))
        for weights in moments:
            replicated = set.intersection(*(set(w.replicated) for w in weights))
            if parted := _different(weights, replicated):
                return self._held(audit, weights, parted)
        apart = _different(start, compared)
        if averaged := [name for name in apart if _is_averaged(seen, name)]:
            return self._never_equal(audit, averaged)
        same = compared - set(apart)
        if not same:
            return self.inconclusive(
                "Not judged: the ranks hold different weights from the start, and nothing says "
                "that they are replicas."
            )
        for weights in moments[1:]:
            if parted := _different(weights, same):
                return self._by_hand(audit, seen, start, weights, parted, same)
        return self._buffers(moments) or self.passed(
            f"{count(len(same), 'parameter')} on {len(seen.ranks)} ranks are equal, bit for bit, "
            f"at {len(moments)} moments of {moments[-1][0].step} steps."
        )

    def _held(self, audit: Audit, weights: list[Weights], parted: list[str]) -> Result:
        step = weights[0].step
        return self.failed(
            f"{count(len(parted), 'parameter')} of DistributedDataParallel's "
            f"{_verb(parted)} between ranks at {weights[0].when} (first: {parted[0]}).",
            measured=f"{len(parted)} differ after {count(step, 'step')}",
            threshold="the same bits on all ranks",
            evidence=(_table(parted),),
            modules=tuple(parted),
            location=audit.loop.locate("training_step"),
            fix="output = model(x)  # the wrapper, not model.module; no step inside no_sync()",
        )

    def _never_equal(self, audit: Audit, apart: list[str]) -> Result:
        return self.failed(
            f"{count(len(apart), 'parameter')} {_verb(apart)} between ranks from the start (first: "
            f"{apart[0]}), though all ranks step with one gradient: they are replicas of no one "
            "network.",
            measured=f"{len(apart)} differ before the first step",
            threshold="the same bits on all ranks",
            evidence=(_table(apart),),
            modules=tuple(apart),
            location=audit.loop.locate("model"),
            fix="for p in model.parameters(): dist.broadcast(p.data, 0)  # before the first step",
        )

    def _by_hand(
        self,
        audit: Audit,
        seen: Ranks,
        start: list[Weights],
        now: list[Weights],
        parted: list[str],
        same: set[str],
    ) -> Result:
        kept = {
            name
            for name in same - set(parted)
            if now[0].parameters.get(name) != start[0].parameters[name]
        }
        experts = any("all_to_all" in c.op for rank in seen.ranks for c in rank.collectives)
        details = {
            "measured": f"{len(parted)} of {len(same)} differ after {count(now[0].step, 'step')}",
            "threshold": "the same bits on all ranks",
            "evidence": (_table(parted),),
            "location": audit.loop.locate("training_step"),
            "fix": f"average the gradient of {parted[0]}, too; or DistributedDataParallel(model)",
        }
        message = (
            f"{count(len(parted), 'parameter')} {_verb(parted)} between ranks at {now[0].when} "
            f"(first: {parted[0]})"
        )
        if kept and not experts:
            return self.failed(
                f"{message}, while {len(kept)} are trained and stay equal: their gradients are not "
                "averaged.",
                modules=tuple(parted),
                **details,
            )
        return self.warned(
            f"{message}: nothing keeps the ranks' weights together within the steps watched.",
            **details,
        )

    def _buffers(self, moments: list[list[Weights]]) -> Result | None:
        last = moments[-1]
        if last[0].broadcast or not last[0].buffers:
            return None
        names = set.intersection(*(set(w.buffers) for w in last))
        parted = sorted(n for n in names if len({w.buffers[n] for w in last}) > 1)
        if not parted:
            return None
        return self.warned(
            f"The parameters are equal, but {count(len(parted), 'buffer')} {_verb(parted)} between "
            f"ranks at {last[0].when} (first: {parted[0]}), and nothing broadcasts them: the ranks "
            "evaluate with statistics of their own.",
            measured=f"{len(parted)} differ",
            threshold="the same on all ranks",
            evidence=(_table(parted),),
            fix="nn.SyncBatchNorm.convert_sync_batchnorm(model)  # or broadcast_buffers=True",
        )


def _why_none(seen: Ranks) -> str:
    """Say why no parameter is compared."""
    if "FullyShardedDataParallel" in seen.ranks[0].summary.strategies:
        return (
            "FullyShardedDataParallel keeps parameters in flat ones of its own, which are not "
            "compared (those of fully_shard are, where ranks hold the same)."
        )
    return "Every parameter is sharded: no rank holds another's."


def _is_averaged(seen: Ranks, name: str) -> bool:
    """Whether all ranks first step a parameter with the same gradient, which is not zero."""
    found = {rank.gradients.get(name) for rank in seen.ranks}
    return len(found) == 1 and None not in found


def _moments(seen: Ranks) -> list[list[Weights]]:
    """Return the states that every rank was seen in, in order."""
    by_rank: list[dict[str, Weights]] = [_by_moment(rank) for rank in seen.ranks]
    return [
        [known[when] for known in by_rank]
        for when in by_rank[0]
        if all(when in known for known in by_rank)
        and len({known[when].step for known in by_rank}) == 1
    ]


def _by_moment(rank: Rank) -> dict[str, Weights]:
    return {weights.when: weights for weights in rank.weights}


def _different(weights: list[Weights], names: set[str]) -> list[str]:
    return [
        name
        for name in weights[0].parameters
        if name in names and len({w.parameters.get(name) for w in weights}) > 1
    ]


def _verb(parted: list[str]) -> str:
    return "differs" if len(parted) == 1 else "differ"


def _table(parted: list[str]) -> Table:
    rows = tuple((name,) for name in parted[:_SHOWN])
    return Table(title="Different between ranks", columns=("name",), rows=rows)
