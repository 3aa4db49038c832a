"""SEED102: whether another seed gives another run."""

from __future__ import annotations

from collections import Counter

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.seeding import Seeding
from nnaudit.probes.runs import Run, Runs, SeededRuns
from nnaudit.probes.second_epoch import SecondEpoch
from nnaudit.report import Kind, Result, Table


class SeedSensitivity(Check):
    """Does another seed give another run?

    Why: Five runs under five seeds show how much of a result is luck. If the program resets the
        seed, in `build_model()` or `__getitem__` for example, all five are the same run, their
        spread is zero, and every batch may be augmented with the same random numbers.
    How: The training is started under a second seed, and the weights that hold more than one value,
        as well as the first batches, are compared. Equality is exact; there is no threshold. It
        warns in two cases: all such weights are equal and a function of yours seeded a global
        generator while the model was built; or a global generator is seeded again and again with
        the same number, while batches are read, while steps are taken, or between any two of three
        epochs (where that code can be run), or that code sets the loader's own generator to one
        state, whatever it was before.
        - Noted only, because it may be by design: a program that seeds itself at the top, as
          scripts do; weights that are equal although nothing seeds (loaded, or not random); a
          loader with its own generator.
        - A script is restarted as if its author had written another seed at the top, so the
          question is whether everything else follows it.
    Fix: seed once, at the very start, with a number that can be chosen:
        `torch.manual_seed(args.seed)`. For numbers that must not change use a separate generator:
        `generator=torch.Generator().manual_seed(0)`.
    References: Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks (2021).
        PyTorch, "Reproducibility" (notes/randomness).
    """

    code = "SEED102"
    name = "seed-sensitivity"
    kind = Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES, Needs.FRESH_RUN)
    probes = (SeededRuns, SecondEpoch)

    def run(self, audit: Audit) -> Result:
        """Compare a run under another seed with the first."""
        runs = audit.probe(SeededRuns)
        other = runs.other
        if other is None:
            return self.skipped("Not judged: the training cannot be restarted under another seed.")
        repeated = _repeatedly_seeded(runs.first)
        if repeated is not None:
            return self._warned(
                repeated,
                f"{repeated.function}() is called while {_doing(repeated)}, {_where(repeated)}: "
                "everything drawn afterwards (order, dropout, noise) repeats, whatever the seed.",
            )
        return self._between_epochs(audit) or self._follows(runs, other)

    def _between_epochs(self, audit: Audit) -> Result | None:
        """Warn of what seeds between any two epochs."""
        second = audit.probe(SecondEpoch)
        if second.loader_reseeded:
            return self.warned(
                "The generator of the training loader is seeded with the same number between any "
                "two epochs: every epoch has the same order.",
                measured="the same state after each epoch's end",
                threshold="another state",
                location=audit.loop.locate("train_loader"),
                fix="seed it once, before the loop over epochs",
            )
        between = second.reseeded
        if between is not None:
            return self._warned(
                between,
                f"{between.function}() is called between any two epochs with the same number, "
                f"{_where(between)}: every epoch has the same order, dropout and noise.",
            )
        return None

    def _follows(self, runs: Runs, other: Run) -> Result:
        """Compare weights and batches under the two seeds."""
        drawn = runs.first.initial.varying
        changed = set(runs.first.initial.differing(other.initial)) & drawn
        if drawn and not changed:
            return self._same_weights(runs, other)
        if runs.first.batches == other.batches and len(set(other.batches)) > 1:
            return self.noted(
                f"Seeds {runs.seed} and {runs.seed + 1} give different weights but the same "
                "batches: the order of the data is fixed or has a seed of its own."
            )
        weights = f"{len(changed)} of {len(drawn)} weight tensors" if drawn else "the weights"
        return self.passed(
            f"Seeds {runs.seed} and {runs.seed + 1} give different runs: {weights} and the "
            "batches differ."
            if changed
            else f"Seeds {runs.seed} and {runs.seed + 1} give different batches; no weight is "
            "initialised at random."
        )

    def _same_weights(self, runs: Runs, other: Run) -> Result:
        while_building = [each for each in other.seedings if each.during == "building"]
        inner = [each for each in while_building if not each.is_the_run_s_own]
        start = f"Seeds {runs.seed} and {runs.seed + 1} give the same initial weights"
        if inner:
            return self._warned(
                inner[-1], f"{start}: {inner[-1].function}() resets the seed {_where(inner[-1])}."
            )
        if while_building:
            own = while_building[-1]
            return self.noted(
                f"{start}: they are loaded, or the program seeds itself ({own.function}() "
                f"{_where(own)}). In that case make the seed an argument to be able to vary it.",
                location=own.location,
            )
        return self.noted(
            f"{start}, although nothing seeds a generator: they are loaded or not random."
        )

    def _warned(self, seeding: Seeding, message: str) -> Result:
        rows = (
            (
                seeding.function,
                f"{seeding.location.file}:{seeding.location.line}",
                " < ".join(seeding.within[:4]),
            ),
        )
        return self.warned(
            message,
            evidence=(
                Table(title="Calls that seed", columns=("call", "line", "within"), rows=rows),
            ),
            location=seeding.location,
            fix="remove it, or use a separate generator: rng = torch.Generator().manual_seed(seed)",
        )


def _repeatedly_seeded(run: Run) -> Seeding | None:
    """Return the call that seeded most often during the training; None for a single one."""
    during = [each for each in run.seedings if each.during != "building"]
    often = Counter((each.function, each.location.file, each.location.line) for each in during)
    for each in during:
        if often[each.function, each.location.file, each.location.line] > 2:
            return each
    return None


def _doing(seeding: Seeding) -> str:
    return "a batch is read" if seeding.during == "reading" else "a step is taken"


def _where(seeding: Seeding) -> str:
    function = seeding.within[0] if seeding.within else "<module>"
    inside = "at the top level" if function == "<module>" else f"inside {function}()"
    return f"{inside} (line {seeding.location.line})"
