"""SEED101: two runs under one seed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.measure.seeding import Unseeded
from nnaudit.probes.runs import Run, Runs, SeededRuns
from nnaudit.report import Evidence, Kind, Result, Table, Text
from nnaudit.state.snapshot import preserved
from nnaudit.wording import count, verb

_FIX = {
    "initialisation": "torch.manual_seed(seed)  # and draw weights with torch's generator only",
    "order": "DataLoader(..., generator=torch.Generator().manual_seed(seed))",
    "augmentation": "rng = np.random.default_rng(torch.initial_seed() % 2**32)",
    "data set": "np.random.default_rng(seed)  # a split or noise must come from the seed",
    "data": "random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)",
    "step": "torch.randn_like(x)  # draw noise from torch's generator, which the seed sets",
}
"""The line to write, by where the runs differ."""


@dataclass(frozen=True)
class Difference:
    """Where two runs under one seed first differ."""

    where: str
    message: str
    measured: str = ""


class SeededRun(Check):
    """Are two runs under the same seed identical?

    Why: A run that cannot be repeated cannot be debugged, and a comparison of two variants measures
        their luck. The usual causes are a generator without a seed, `default_rng()`, a seed from
        the clock, and worker processes that seed themselves.
    How: The training is started twice under one seed in one process, from building the model to its
        first four steps. Weights and buffers, batches, losses and the weights at the end are
        compared bit by bit, and the first difference is named: the initialisation, the data set,
        the order, the augmentation or the step. Any difference fails.
        - If weights and batches agree and the losses differ by less than 1e-4 of their size (1e-2
          on a GPU), it is the rounding of parallel sums, and a note. On a GPU it names the
          operators that PyTorch knows to be nondeterministic.
        - The order of a set of strings follows PYTHONHASHSEED and differs in every process. Where
          the source makes sets and the two runs agree, the training is started once more with sets
          iterated in reverse; a difference then fails.
        - Where a script draws its batches itself and nothing can take their place, as in
          reinforcement learning, only the initial weights can fail: a later difference is
          inconclusive.
        - The order of a folder's files, which follows the file system, is not tested.
    Fix: call `random.seed(s); np.random.seed(s); torch.manual_seed(s)` first of all, and pass a
        seed to every generator: `np.random.default_rng(seed)`. In workers derive it from
        `torch.initial_seed()`. Against rounding: `torch.use_deterministic_algorithms(True)`.
    References: PyTorch, "Reproducibility" (notes/randomness). Pham et al., Problems and
        Opportunities in Training Deep Learning Software Systems: An Analysis of Variance (2020).
    """

    code = "SEED101"
    name = "seeded-run"
    kind = Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (SeededRuns,)
    consequence_of = ("GRAD106",)

    def run(self, audit: Audit) -> Result:
        """Compare the two runs from the start and name the first difference."""
        runs = audit.probe(SeededRuns)
        table = _table(runs)
        difference = difference_of(runs, on_gpu=audit.loop.device.type != "cpu")
        what = (
            "In two replays of the training"
            if runs.replayed
            else f"In two runs under seed {runs.seed}"
        )
        own = bool(audit.loop.lacks(Needs.TRAIN_LOADER))
        if difference is None:
            return (None if own else self._set_order(runs)) or self._same(runs, what, table)
        evidence: tuple[Evidence, ...] = (table,)
        if difference.where == "arithmetic":
            named = _nondeterministic_operators(audit)
            if named:
                evidence += (Text(title="Nondeterministic operators", text="\n".join(named)),)
            return self.noted(f"{what}, {difference.message}.", evidence=evidence)
        if own and difference.where != "initialisation":
            # The audit looks at such batches by steps; what these move in the world that the
            # script draws from (an environment, a replay buffer) cannot be put back.
            return self.inconclusive(
                f"{what}, {difference.message}. That proves nothing, because the script draws its "
                "batches itself, from something that the audit's own steps have changed.",
                evidence=evidence,
            )
        suspect = _suspect(runs, difference)
        if runs.unseeded:
            evidence += (_suspects(runs.unseeded),)
        part = "model" if difference.where in ("initialisation", "step") else "train_loader"
        return self.failed(
            f"{what}, {difference.message}.",
            measured=difference.measured,
            threshold="identical bit by bit",
            evidence=evidence,
            location=suspect.location if suspect is not None else audit.loop.locate(part),
            fix=_FIX[difference.where],
        )

    def _set_order(self, runs: Runs) -> Result | None:
        """Answer for a run that depends on the order of a set of strings; None for any other."""
        if runs.turned is None:
            return None
        difference = difference_of(replace(runs, again=runs.turned))
        if difference is None or difference.where == "arithmetic":
            return None
        return self.failed(
            f"Line {runs.by_sets[0].line} depends on the order of a set of strings, which differs "
            f"in every process: with it reversed, under the same seed, {difference.message}.",
            measured=difference.measured,
            threshold="identical bit by bit",
            location=runs.by_sets[0],
            fix="sorted(set(names))  # wherever the order of a set is used",
        )

    def _same(self, runs: Runs, what: str, table: Table) -> Result:
        first = runs.first
        said = "batches" if len(first.batches) > 1 else "batch"
        if first.losses:
            said += ", losses and final weights"
        if runs.replayed:
            return self.passed(
                f"{what} from the same random state: same {said}. Building the model again was not "
                "possible.",
                evidence=(table,),
            )
        return self.passed(f"{what}: same initial weights, {said}.", evidence=(table,))


def difference_of(runs: Runs, *, on_gpu: bool = False) -> Difference | None:
    """Return where the two runs under one seed first differ; None when they are the same."""
    first, again = runs.first, runs.again
    differing = first.initial.differing(again.initial)
    if differing:
        named = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        return Difference(
            "initialisation",
            f"the initial weights differ in {len(differing)} of {len(first.initial.digests)} "
            f"tensors ({named})",
            f"{count(len(differing), 'tensor')} {verb(len(differing), 'differ')}",
        )
    if first.batches != again.batches:
        return _difference_of_data(first, again)
    return _difference_of_steps(first, again, on_gpu=on_gpu)


def _difference_of_data(first: Run, again: Run) -> Difference:
    pairs = zip(first.batches, again.batches, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    measured = f"batch {place + 1} is the first to differ"
    nth = f"batch {place + 1} differs"
    a, b = first.items, again.items
    if a is not None and b is not None and a[0] == a[1] and b[0] == b[1] and a[0] != b[0]:
        return Difference("data set", f"the data set holds other values ({nth})", measured)
    same_indices = first.indices is not None and first.indices == again.indices
    if first.rows == again.rows or (first.indices is not None and not same_indices):
        return Difference("order", f"the samples come in another order ({nth})", measured)
    same_targets = first.targets == again.targets and len(set(first.targets)) > 1
    if same_indices or same_targets:
        return Difference(
            "augmentation",
            f"the same samples in the same order have other values ({nth})",
            measured,
        )
    return Difference("data", f"other batches are drawn ({nth})", measured)


def _difference_of_steps(first: Run, again: Run, *, on_gpu: bool) -> Difference | None:
    tolerance = 1e-2 if on_gpu else 1e-4
    for place, (a, b) in enumerate(zip(first.losses, again.losses, strict=False)):
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        apart = _relative(a, b, first.losses)
        # A difference by rounding at one step may grow in the next.
        if not apart < (tolerance if place == 0 else 10 * tolerance):
            return Difference(
                "step",
                f"the loss of step {place + 1} is {a:.6g} in one and {b:.6g} in the other, "
                "although weights and batches are the same: the step draws random numbers without "
                "a seed",
                f"{a:.6g} and {b:.6g}",
            )
        return Difference(
            "arithmetic",
            f"the losses differ from step {place + 1} on by {apart:.1e} of their size, which is "
            "the rounding of parallel sums",
        )
    differing = first.final.differing(again.final)
    if not differing or len(first.losses) != len(again.losses):
        return None
    apart = first.final.distance(again.final)
    if math.isnan(apart) and _holds_nan(first):
        return None
    return Difference(
        "arithmetic",
        f"the losses are the same, but {count(len(differing), 'tensor')} of the final weights "
        f"{verb(len(differing), 'differ')} by up to {apart:.1e} of their size, which is rounding",
    )


def _relative(a: float, b: float, losses: tuple[float, ...]) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    floor = 1e-3 * abs(losses[0]) if math.isfinite(losses[0]) else 0.0
    return abs(a - b) / max(abs(a), abs(b), floor, 1e-12)


def _holds_nan(run: Run) -> bool:
    return any(not bool(torch.isfinite(value).all()) for value in run.final.values.values())


def _nondeterministic_operators(audit: Audit) -> list[str]:
    """Return PyTorch's own warnings about the operators of one step; empty on a CPU."""
    loop = audit.loop
    if loop.device.type == "cpu" or loop.lacks(Needs.OWN_STEPS):
        return []
    with preserved(loop.subjects), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            for batch in loop.batches():
                loop.step(batch)
                break
        except UserCodeError:
            return []
    said = [str(each.message) for each in caught]
    return sorted({text.splitlines()[0] for text in said if "determinis" in text})


def _suspect(runs: Runs, difference: Difference) -> Unseeded | None:
    """The line to point at, where only one is suspicious."""
    if difference.where == "order" or len(runs.unseeded) != 1:
        return None
    return runs.unseeded[0]


def _suspects(unseeded: tuple[Unseeded, ...]) -> Table:
    rows = tuple((f"{each.location.file}:{each.location.line}", each.text) for each in unseeded)
    return Table(
        title="Lines that draw random numbers without a seed", columns=("line", "source"), rows=rows
    )


def _table(runs: Runs) -> Table:
    first, again = runs.first, runs.again
    steps = [
        (f"loss of step {i + 1}", f"{a:.8g}", f"{b:.8g}", "yes" if repr(a) == repr(b) else "no")
        for i, (a, b) in enumerate(zip(first.losses, again.losses, strict=False))
    ]
    data = [
        (f"batch {i + 1}", a[:12], b[:12], "yes" if a == b else "no")
        for i, (a, b) in enumerate(zip(first.batches, again.batches, strict=False))
    ]
    starts = _compared("initial weights", len(first.initial.differing(again.initial)))
    ends = _compared("final weights", len(first.final.differing(again.final)))
    rows = (starts, *data, *steps, ends)
    return Table(title="Two runs under one seed", columns=("", "first", "again", "same"), rows=rows)


def _compared(what: str, differing: int) -> tuple[str, str, str, str]:
    return (
        what,
        "",
        f"{count(differing, 'tensor')} {verb(differing, 'differ')}" if differing else "",
        "no" if differing else "yes",
    )
