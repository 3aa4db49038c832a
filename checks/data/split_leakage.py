"""DATA108: rows that training and validation share."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.shared_rows import Overlap, Shared, SharedRows
from nnaudit.report import Evidence, Kind, Numbers, Result

FEWEST = 8
"""Validation rows below which nothing is said: a graph with masks, the four rows of XOR."""
DEMONSTRATION = 256
"""A set of no more rows that is trained on and validated on as a whole is taken for a toy."""
POWER = 5.0
"""Matches that a leak of a tenth of the validation set must be expected to show."""

_FIX = "train, val = random_split(dataset, [0.8, 0.2], generator=torch.Generator().manual_seed(0))"


class SplitLeakage(Check):
    """Is no validation row among the training rows?

    Why: A network remembers what it was trained on. Where validation holds the same rows it
        measures memory: overfitting does not show, and the model chosen by it is the one that
        memorises best. Typical reasons are two random splits that do not know of each other,
        slices that overlap, copies made (to balance the classes, to augment) before the split, and
        the training part read twice.
    How: Where both loaders read one data set the row numbers of an epoch are compared: it is an
        invariant that they have none in common, whatever augmentation does to the items. Where
        they read two of one class, the rows as these hold them. Else the items themselves, inputs
        and targets together, if they do not change from one access to the next.
        Contents can be equal by nature, so these are compared with the null hypothesis that equal
        rows were dealt to both sides at random: the number of groups of equal rows with members on
        both sides against its exact bound, at p < 1e-4. It fails when besides at least one
        validation row in a hundred is shared beyond the rate of twins within the training set.
        Rows of few discrete values, and rows of which the two sets may make different items, warn
        at most. Where as many rows are shared as random dealing explains, but they are copies
        (rows of a rich domain, 5 % of validation or more), that warns too: they were copied before
        the split. So do windows of one series that overlap: four in
        five validation rows have a middle half that lies, to the bit, in a training row, where a
        split by time leaves half of them at most, at the seam. A toy that trains and validates on
        all of a few rows is only told so.
    Fix: Split once, and give the parts to both loaders; split first, then oversample or augment
        the training part; keep all rows of one patient, document, or recording on one side.
    References: Kaufman et al., Leakage in Data Mining (2012). Kapoor and Narayanan, Leakage and the
        Reproducibility Crisis in Machine-Learning-Based Science (2023). Hoeffding, On the
        Distribution of the Number of Successes in Independent Trials (1956).
    """

    code = "DATA108"
    name = "split-leakage"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER, Needs.VAL_LOADER)
    probes = (SharedRows,)
    options = {"share": 0.01, "copies": 0.05, "windows": 0.8}  # noqa: RUF012

    def run(self, audit: Audit) -> Result:
        """Judge by row numbers, then by what is stored, then by content."""
        if audit.loop.val_loader is audit.loop.train_loader:
            return self._no_held_out_rows(audit, "The validation loader is the training loader")
        found = audit.probe(SharedRows)
        ways = [way for way in (found.by_number, found.by_store, found.by_content) if way]
        if not ways:
            return self._unknown(found)
        if max(way.val for way in ways) < FEWEST:
            return self.inconclusive(
                f"Validation has {ways[0].val} rows, too few to tell a leak from a design."
            )
        for way in ways:
            result = self._judged(audit, found, way)
            if result is not None:
                return result
        if found.windows >= self.option(audit, "windows"):
            return self._windows(audit, found)
        return self._nothing_found(found, ways)

    def _judged(self, audit: Audit, found: Shared, way: Overlap) -> Result | None:
        """Say what is wrong with ``way``; None when nothing is."""
        if not way.shared:
            return None
        if _is_toy(way):
            return self._no_held_out_rows(
                audit, f"All {way.val} validation rows are the training rows"
            )
        if way.significant and way.excess >= self.option(audit, "share"):
            return self._leak(audit, found, way)
        if way.by_number:
            return self._leak(audit, found, way, slight=True)
        copies = found.rich and not found.train.random
        if copies and way.share >= self.option(audit, "copies"):
            return self._copies(audit, way)
        return None

    def _leak(self, audit: Audit, found: Shared, way: Overlap, *, slight: bool = False) -> Result:
        may_fail = way.certain and not slight and (way.by_number or found.rich)
        message = f"{way.shared:,} of {_rows(way.val)} validation rows are training rows too"
        if not way.by_number:
            message += (
                f"; within the {_rows(way.train)} training rows compared only {way.twins:.1%} "
                f"have a twin (p = {way.p:.1g})"
            )
        answer = self.failed if may_fail else self.warned
        return answer(
            f"{message}{'' if may_fail or slight else _doubt(way)}.",
            measured=f"{way.share:.1%} of validation rows shared",
            threshold=f"{self.option(audit, 'share'):.0%} beyond the rate of twins",
            evidence=_evidence(way),
            location=audit.loop.locate("val_loader"),
            fix=f"{_FIX}  # once, for both loaders",
        )

    def _copies(self, audit: Audit, way: Overlap) -> Result:
        return self.warned(
            f"{way.shared:,} of {_rows(way.val)} validation rows are copies of training rows, as "
            f"{way.twins:.0%} of the training rows are of each other: rows were copied before the "
            "split.",
            measured=f"{way.share:.1%} of validation rows are copies",
            threshold=f"{self.option(audit, 'copies'):.0%}",
            evidence=_evidence(way),
            location=audit.loop.locate("val_loader"),
            fix="split first, then copy or oversample rows of the training part only",
        )

    def _windows(self, audit: Audit, found: Shared) -> Result:
        return self.warned(
            f"Of the validation rows, {found.windows:.0%} are windows of a series that training "
            "windows overlap: what is to be predicted has been trained on.",
            measured=f"{found.windows:.0%} of validation windows overlap training's",
            threshold=f"{self.option(audit, 'windows'):.0%}",
            location=audit.loop.locate("val_loader"),
            fix="split the series by time first, then cut windows: series[:n], series[n:]",
        )

    def _no_held_out_rows(self, audit: Audit, what: str) -> Result:
        return self.warned(
            f"{what}: fine to watch a network overfit, but it says nothing about new data.",
            location=audit.loop.locate("val_loader"),
            fix=_FIX,
        )

    def _unknown(self, found: Shared) -> Result:
        if found.val is None:
            return self.inconclusive(
                "The validation loader's batches do not hold what the training's do, so rows "
                "cannot be compared."
            )
        if found.train.random or found.val.random:
            return self.inconclusive(
                "Rows are drawn or augmented anew at each access, and neither their numbers nor "
                "what they are made from could be compared."
            )
        return self.inconclusive("The rows of a batch cannot be taken apart, so not compared.")

    def _nothing_found(self, found: Shared, ways: list[Overlap]) -> Result:
        way = ways[0]
        if way.by_number:
            return self.passed(
                f"No validation row ({_rows(way.val)}) is among the {way.train:,} training rows.",
                evidence=_evidence(way),
            )
        if not way.shared and not _has_power(found, way):
            return self.inconclusive(
                f"None of {_rows(way.val)} validation rows is among the {way.train:,} training "
                "rows that there was time to read, which are too few to show a leak.",
                evidence=_evidence(way),
            )
        if not way.shared:
            return self.passed(
                f"None of {_rows(way.val)} validation rows is among the {way.train:,} training "
                "rows read.",
                evidence=_evidence(way),
            )
        if way.significant:
            return self.noted(
                f"{way.shared:,} of {_rows(way.val)} validation rows equal a training row: few, "
                "but more than a random split of these data explains.",
                evidence=_evidence(way),
            )
        return self.passed(
            f"{way.shared:,} of {_rows(way.val)} validation rows equal a training row: no more "
            f"than chance explains where {way.twins:.1%} of the training rows have a twin.",
            evidence=_evidence(way),
        )


def _is_toy(way: Overlap) -> bool:
    """Whether all rows there are serve for both."""
    return way.shared == way.val == way.train and way.train <= DEMONSTRATION


def _doubt(way: Overlap) -> str:
    if not way.certain:
        return "; the two sets may make different items of one row"
    return "; rows of few values can be equal by nature"


def _has_power(found: Shared, way: Overlap) -> bool:
    if way is not found.by_content or way.coverage >= 1:
        return True
    return 0.1 * way.val * way.coverage >= POWER


def _rows(count: int) -> str:
    return f"{count:,}"


def _evidence(way: Overlap) -> tuple[Evidence, ...]:
    values: dict[str, float | str] = {
        "training rows compared": float(way.train),
        "validation rows compared": float(way.val),
        "validation rows among the training rows": float(way.shared),
    }
    if not way.by_number:
        values["training rows with a twin"] = way.twins
        values["p of a random split"] = way.p
    return (Numbers(title="Rows in both sets", values=values),)
