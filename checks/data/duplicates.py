"""DATA115: training rows that are the same, or the same but for their label."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.rows import Rows, TrainRows
from nnaudit.probes.shared_rows import is_rich
from nnaudit.report import Evidence, Kind, Result, Table

FEWEST = 8
"""Contradicting rows below this are not worth a warning."""

_LISTED = 20


class Duplicates(Check):
    """Are the training rows free of duplicates and of contradicting labels?

    Why: Two equal inputs with different labels cannot both be learnt: they put a lower bound on the
        loss, and no network can overfit them. Often they come from a wrong join, annotations merged
        twice, or labels shifted by a row. Copies with the same label count more than other rows,
        and leak when the data are split later.
    How: Hashes the inputs of the training rows (all in memory, else 4,096 drawn at random) and
        compares rows with equal inputs. The limits are judgement. Items that change at every access
        are not compared.
        - Warns when at least `contradictions` of the rows, and 8 of them, have the input of another
          row and a different class.
        - Notes when at least `copies` of the rows repeat another.
        - Inputs made of few discrete values repeat by nature, with varying outcomes: noted at most.
    Fix: `rows = rows.drop_duplicates()`; look at the pairs, and keep one label, or the share of
        each label as a soft target.
    References: Northcutt et al., Pervasive Label Errors in Test Sets Destabilize Machine Learning
        Benchmarks (2021). Barz and Denzler, Do We Train on Test Data? (2020).
    """

    code = "DATA115"
    name = "duplicates"
    kind = Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER,)
    probes = (TrainRows,)
    consequence_of = ("DATA103",)
    options: ClassVar[dict[str, float]] = {"contradictions": 0.01, "copies": 0.05}

    def run(self, audit: Audit) -> Result:
        """Group equal rows."""
        rows = audit.probe(TrainRows).rows
        if rows.random:
            return self.inconclusive(
                "Not compared: rows are drawn or augmented at random at each access."
            )
        if not rows.whole:
            return self.inconclusive("Not compared: the batches cannot be split into rows.")
        if len(rows) < FEWEST or len(set(rows.inputs)) < 2:
            return self.skipped(f"Too few different rows to compare ({len(rows):,} read).")
        groups = _groups(rows)
        contradicting = [group for group in groups if len(_labels(rows, group)) > 1]
        rich = is_rich(rows, [i for group in contradicting or groups for i in group])
        if contradicting:
            return self._contradictions(audit, rows, contradicting, rich)
        return self._copies(audit, rows, groups, rich)

    def _contradictions(
        self, audit: Audit, rows: Rows, contradicting: list[list[int]], rich: bool
    ) -> Result:
        count = sum(len(group) for group in contradicting)
        message = (
            f"{count:,} of {len(rows):,} training rows have the same input as another row but a "
            "different label"
        )
        if not rich:
            return self.noted(
                f"{message}: usual for inputs with few possible values.",
                evidence=_table(rows, contradicting),
            )
        if count < max(FEWEST, self.option(audit, "contradictions") * len(rows)):
            return self.noted(f"{message}.", evidence=_table(rows, contradicting))
        return self.warned(
            f"{message}: they cannot all be learnt.",
            measured=f"{count / len(rows):.1%} contradict another row",
            threshold=f"{self.option(audit, 'contradictions'):.0%}",
            evidence=_table(rows, contradicting),
            location=audit.loop.locate("train_loader"),
            fix="rows = rows.drop_duplicates(subset=inputs)  # after looking at them",
        )

    def _copies(self, audit: Audit, rows: Rows, groups: list[list[int]], rich: bool) -> Result:
        copies = sum(len(group) - 1 for group in groups)
        message = (
            f"{copies or 'None'} of {len(rows):,} training rows read "
            f"{'is a copy' if copies < 2 else 'are copies'} of another row"
        )
        many = rich and copies >= self.option(audit, "copies") * len(rows)
        if many and rows.total is None:
            return self.inconclusive(
                f"{message}, but the data has no known length, so it may have been read more than "
                "once."
            )
        if many:
            return self.noted(
                f"{message}: it counts several times in training.", evidence=_table(rows, groups)
            )
        return self.passed(f"{message}.")


def _groups(rows: Rows) -> list[list[int]]:
    """The places of rows whose inputs are equal, in groups of two and more, the largest first."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows.inputs):
        places[row].append(i)
    return sorted((group for group in places.values() if len(group) > 1), key=lambda g: -len(g))


def _labels(rows: Rows, group: list[int]) -> Counter[str]:
    """How often each class occurs in ``group``; of quantities, nothing."""
    targets = rows.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        whole = targets is not None and targets.ndim == 1 and bool((targets == targets // 1).all())
        if targets is None or not whole or len(set(targets.tolist())) > len(targets) / 4:
            return Counter()
    return Counter(f"{float(targets[i]):g}" for i in group)


def _table(rows: Rows, groups: list[list[int]]) -> tuple[Evidence, ...]:
    listed = tuple(
        (
            float(len(group)),
            ", ".join(f"{label} ({n})" for label, n in _labels(rows, group).most_common(8)),
        )
        for group in groups[:_LISTED]
    )
    columns = ("equal rows", "labels (count)")
    return (Table(title="Equal inputs", columns=columns, rows=listed),)
