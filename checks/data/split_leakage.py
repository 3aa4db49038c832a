"""DATA108: rows that training and validation share."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.early_fits import EarlyFit, early_fits
from nnaudit.measure.folds import SharedByFolds, shared_by_folds
from nnaudit.probes.encoded_targets import EncodedTarget, EncodedTargets
from nnaudit.probes.shared_groups import GroupsInBoth, SharedGroups
from nnaudit.probes.shared_rows import MOSTLY, Overlap, Shared, SharedRows
from nnaudit.probes.split_by_epoch import SplitByEpoch
from nnaudit.report import Evidence, Kind, Location, Numbers, Result, Status
from nnaudit.targets.source import source_of

FEWEST = 8
"""Validation rows below which nothing is said: a graph with masks, the four rows of XOR."""
DEMONSTRATION = 256
"""A set of no more rows that is trained on and validated on as a whole is taken for a toy."""
RICH = 0.25
"""Where rows are equal by chance they are the shortest; a copied set has long ones as well."""
POWER = 5.0
"""Matches that a leak of a tenth of the validation set must be expected to show."""

_FIX = "train, val = random_split(dataset, [0.8, 0.2], generator=torch.Generator().manual_seed(0))"


class SplitLeakage(Check):
    """Are training and validation rows separate?

    Why: A network remembers what it was trained on. Where validation holds the same rows it
        measures memory: overfitting does not show, and the model chosen by it is the one that
        memorises best. Typical causes: two independent random splits, overlapping slices, copies
        made before the split (to balance classes, to augment), or the training part read twice.
    How: Compares the rows of both loaders by the first of these that applies: the row numbers of an
        epoch, when both read one data set (they must have none in common, whatever augmentation
        does); the stored rows, when they read two data sets of one class; the items, inputs and
        targets together, when they do not change between accesses.
        - Fails when at least `share` of the validation rows are training rows by number; fewer
          warn.
        - Contents can be equal by nature, so shared contents fail only when at least `share` of the
          validation rows are shared beyond the rate of duplicates within training, and dealing
          equal rows to both sides at random explains it with p < 1e-4.
        - Warns on rows of few discrete values (fewer than a quarter of the shared ones differ from
          all others in eight elements), and on rows of which the two sets may make different
          items.
        - Warns when as many rows are shared as random dealing explains, but these are copies of
          rich rows and at least `copies` of validation: rows were copied before the split.
        - Warns on overlapping windows of one series: at least `windows` of the validation rows have
          a middle half that lies in a training row, bit by bit. A split by time leaves at most half
          of them, at the seam. Of windows of one text any half counts, of 12 tokens or more, unless
          backward ones are found as well.
        - Warns on near copies: at least `near` of the validation pictures, or signals of several
          steps and channels, have one of training, as it is or mirrored, at a quarter of the
          distance of the twentieth nearest. Unrelated ones are hardly nearer than that: distances
          concentrate in many dimensions.
        - Fails when the program makes new loaders in every epoch, goes on training the same
          network, and at least `resplit` of the second epoch's validation rows were trained on, and
          not validated on, in the first.
        - Warns when a network that the source makes before a loop over the folds of scikit-learn's
          KFold and the like is trained in that loop, and nothing there gives it other weights.
        - Fails when the source fits a selection of features, or another of scikit-learn's classes
          that look at the targets, to rows that it splits afterwards, or chooses columns by their
          scores or correlations with the targets of all rows; notes it of scalers and the like,
          which see inputs alone.
        - Fails when a column of the inputs is the mean target of the rows with the same value,
          smoothed or not, over the rows of both sets: as a linear equation of the groups' numbers
          it holds to 1e-4, and without validation's targets it is off by 1e-2 or more.
        - Warns when at least `groups` of the validation rows are of a patient, a speaker, a
          document or another group that training has rows of, as a column of the data set, its
          table or its items says (`patient_id`), or the names of its files (`patient_012/3.png`):
          at least 10 such groups, of 1.5 rows each or more.
          It does not fail, for a network can be meant for the people that it was trained on; where
          an input or the target is the group itself, as in recommending, nothing is said.
        - Warns when a toy set of a few rows serves for both training and validation.
    Fix: Split once, and give the parts to both loaders; split first, then oversample or augment the
        training part; keep all rows of one patient, document, or recording on one side.
    References: Kaufman et al., Leakage in Data Mining (2012). Roberts et al., Cross-validation
        Strategies for Data with Temporal, Spatial, Hierarchical, or Phylogenetic Structure (2017).
        Kapoor and Narayanan, Leakage and the Reproducibility Crisis in Machine-Learning-Based
        Science (2023). Beyer et al., When Is Nearest Neighbor Meaningful? (1999). Hoeffding, On the
        Distribution of the Number of Successes in Independent Trials (1956).
    """

    code = "DATA108"
    name = "split-leakage"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER, Needs.VAL_LOADER)
    probes = (SharedRows, GroupsInBoth, SplitByEpoch, EncodedTargets)
    options: ClassVar[dict[str, float]] = {
        "share": 0.01, "copies": 0.05, "windows": 0.8, "near": 0.3, "groups": 0.05, "resplit": 0.1,
    }  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Judge how the split is made, then the rows, then what they are parts of."""
        if audit.loop.val_loader is audit.loop.train_loader:
            return self._no_held_out_rows(audit, "The validation loader is the training loader")
        found = audit.probe(SharedRows)
        result = self._split_again(audit) or self._of_rows(audit, found)
        encoded = audit.probe(EncodedTargets)
        if encoded is not None and result.status is not Status.FAIL:
            return self._encoded(audit, encoded)
        fits = _early_fits(audit)
        by_target = [(file, fit) for file, fit in fits if fit.by_target]
        if by_target and result.status is not Status.FAIL:
            return self._selected(*by_target[0])
        quiet = result.status in (Status.PASS, Status.INCONCLUSIVE, Status.SKIP)
        for file in _files(audit) if quiet else ():
            for network in shared_by_folds(source_of(file)):
                return self._from_fold_to_fold(file, network)
        if fits and result.status is Status.PASS:
            return self._scaled(*fits[0], result)
        return result

    def _of_rows(self, audit: Audit, found: Shared) -> Result:
        """Judge by row numbers, then by what is stored, then by content."""
        overlaps = [
            overlap for overlap in (found.by_number, found.by_store, found.by_content) if overlap
        ]
        if not overlaps:
            return self._groups(audit) or self._unknown(found)
        if max(overlap.val for overlap in overlaps) < FEWEST:
            return self.inconclusive(
                f"Validation has only {overlaps[0].val} rows, too few to judge."
            )
        for overlap in overlaps:
            result = self._judged(audit, found, overlap)
            if result is not None:
                return result
        if found.windows >= self.option(audit, "windows"):
            return self._windows(audit, found)
        if found.near >= self.option(audit, "near"):
            return self._near_copies(audit, found)
        return self._groups(audit) or self._nothing_found(found, overlaps)

    def _judged(self, audit: Audit, found: Shared, overlap: Overlap) -> Result | None:
        """Say what is wrong with ``overlap``; None when nothing is."""
        if not overlap.shared:
            return None
        if _is_toy(overlap):
            return self._no_held_out_rows(
                audit, f"All {overlap.val} validation rows are also the training rows"
            )
        if overlap.significant and overlap.excess >= self.option(audit, "share"):
            return self._leak(audit, found, overlap)
        if overlap.by_number:
            return self._leak(audit, found, overlap, slight=True)
        copies = found.rich >= MOSTLY and not found.train.random
        if copies and overlap.share >= self.option(audit, "copies"):
            return self._copies(audit, overlap)
        return None

    def _leak(
        self, audit: Audit, found: Shared, overlap: Overlap, *, slight: bool = False
    ) -> Result:
        may_fail = overlap.certain and not slight and (overlap.by_number or found.rich >= RICH)
        message = (
            f"{overlap.shared:,} of {_rows(overlap.val)} validation rows are also training rows"
        )
        if not overlap.by_number:
            message += (
                f"; among the {_rows(overlap.train)} training rows compared only "
                f"{overlap.twins:.1%} have a duplicate (p = {overlap.p:.1g})"
            )
        answer = self.failed if may_fail else self.warned
        return answer(
            f"{message}{'' if may_fail or slight else _doubt(overlap)}.",
            measured=f"{overlap.share:.1%} of validation rows shared",
            threshold=f"{self.option(audit, 'share'):.0%} beyond the rate of duplicates",
            evidence=_evidence(overlap),
            location=audit.loop.locate("val_loader"),
            fix=f"{_FIX}  # once, for both loaders",
        )

    def _split_again(self, audit: Audit) -> Result | None:
        again = audit.probe(SplitByEpoch)
        if again is None or again.trained < self.option(audit, "resplit") * again.val:
            return None
        return self.failed(
            f"The data are split anew in every epoch: {again.trained:,} of {_rows(again.val)} "
            "validation rows of the second epoch were trained on in the first.",
            measured=f"{again.trained / again.val:.0%} of the second epoch's validation rows",
            threshold="0 rows",
            location=again.location,
            fix="Split once, before the loop over epochs, and keep both loaders.",
        )

    def _encoded(self, audit: Audit, seen: EncodedTarget) -> Result:
        return self.failed(
            f"Column {seen.column} of batch{seen.path} is the mean target of the rows that share "
            f"its value, over training and validation together ({seen.groups:,} values, exact to "
            f"{seen.residual:.0e}): validation rows are told their own targets.",
            measured=f"a residual of {seen.residual:.1g} with validation's targets, "
            f"{seen.training:.2g} without",
            threshold="means of training targets alone",
            location=audit.loop.locate("val_loader"),
            fix="split first, then take the means of the training part: mean = "
            'train.groupby("area")["price"].mean(); val["area"].map(mean)',
        )

    def _from_fold_to_fold(self, file: str, network: SharedByFolds) -> Result:
        return self.warned(
            f"{network.network} is made once, in line {network.made}, and trained in every fold of "
            f"the loop in line {network.loop}: from the second fold on it has been trained on the "
            "rows that it is validated on.",
            measured="one network for all folds",
            threshold="a new network for each fold",
            location=Location(file=file, line=network.loop),
            fix="make the network and its optimizer at the start of the loop's body",
        )

    def _selected(self, file: str, fit: EarlyFit) -> Result:
        return self.failed(
            f"{fit.kind} is given the targets of all rows in line {fit.line}, and line "
            f"{fit.split} splits them afterwards: the features were chosen by the validation "
            "targets, too, so the score is too good.",
            measured=f"all rows in line {fit.line}, split in line {fit.split}",
            threshold="training rows alone",
            location=Location(file=file, line=fit.line),
            fix="split first, then choose the columns by the training part: "
            f"{fit.kind} of x_train and y_train, and the same columns of both parts",
        )

    def _scaled(self, file: str, fit: EarlyFit, rows: Result) -> Result:
        return self.noted(
            f"{rows.message} But {fit.kind} was fitted to all of them in line {fit.line}, before "
            f"the split in line {fit.split}: mostly a small leak.",
            evidence=rows.evidence,
            location=Location(file=file, line=fit.line),
            fix=f"split first, then {fit.kind}().fit(x_train), and transform both parts",
        )

    def _copies(self, audit: Audit, overlap: Overlap) -> Result:
        return self.warned(
            f"{overlap.shared:,} of {_rows(overlap.val)} validation rows are copies of training "
            f"rows, and {overlap.twins:.0%} of the training rows have a duplicate too: rows were "
            "copied before the split.",
            measured=f"{overlap.share:.1%} of validation rows are copies",
            threshold=f"{self.option(audit, 'copies'):.0%}",
            evidence=_evidence(overlap),
            location=audit.loop.locate("val_loader"),
            fix="split first, then copy or oversample rows of the training part only",
        )

    def _windows(self, audit: Audit, found: Shared) -> Result:
        return self.warned(
            f"{found.windows:.0%} of the validation windows overlap training windows of the same "
            "series: the values to predict have been trained on.",
            measured=f"{found.windows:.0%} of validation windows overlap training windows",
            threshold=f"{self.option(audit, 'windows'):.0%}",
            location=audit.loop.locate("val_loader"),
            fix="train, val = series[:n], series[n:]  # split by time first, then cut windows",
        )

    def _groups(self, audit: Audit) -> Result | None:
        seen = audit.probe(GroupsInBoth)
        if seen is None or seen.share < self.option(audit, "groups"):
            return None
        kind = seen.kind
        return self.warned(
            f"{seen.of_shared:,} of {_rows(seen.rows)} validation rows are of a {kind} that "
            f"training has rows of, too ({seen.shared:,} of {seen.groups:,} by {seen.column}): "
            f"the score does not show how the network does on a {kind} that it has not seen.",
            measured=f"{seen.share:.0%} of validation rows are of a {kind} in training",
            threshold=f"{self.option(audit, 'groups'):.0%}",
            evidence=(_group_numbers(seen),),
            location=audit.loop.locate("val_loader"),
            fix="train, val = next(GroupShuffleSplit(test_size=0.2).split(x, groups="
            f"{kind}_of_each_row))  # all rows of a {kind} on one side",
        )

    def _near_copies(self, audit: Audit, found: Shared) -> Result:
        return self.warned(
            f"{found.near:.0%} of the validation rows are near copies of a training row, four "
            "times nearer than the twentieth nearest: they were augmented, or cut from one "
            "recording, before the split.",
            measured=f"{found.near:.0%} of validation rows have a near copy in training",
            threshold=f"{self.option(audit, 'near'):.0%}",
            location=audit.loop.locate("val_loader"),
            fix="split first, then augment the training part; keep all rows of one source on one "
            "side: GroupShuffleSplit",
        )

    def _no_held_out_rows(self, audit: Audit, what: str) -> Result:
        return self.warned(
            f"{what}: fine for watching a network overfit, but it measures nothing about new data.",
            location=audit.loop.locate("val_loader"),
            fix=_FIX,
        )

    def _unknown(self, found: Shared) -> Result:
        if found.val is None:
            return self.inconclusive(
                "Not compared: validation batches have a different structure from training batches."
            )
        if found.train.random or found.val.random:
            return self.inconclusive(
                "Not compared: rows are drawn or augmented at random at each access, and neither "
                "their indices nor their stored sources could be read."
            )
        return self.inconclusive("Not compared: the batches cannot be split into rows.")

    def _nothing_found(self, found: Shared, overlaps: list[Overlap]) -> Result:
        overlap = overlaps[0]
        if overlap.by_number:
            return self.passed(
                f"None of the {_rows(overlap.val)} validation rows is among the {overlap.train:,} "
                "training rows.",
                evidence=_evidence(overlap),
            )
        if not overlap.shared and not _has_power(found, overlap):
            return self.inconclusive(
                f"None of {_rows(overlap.val)} validation rows is among the {overlap.train:,} "
                "training rows read, which are too few to rule out a leak.",
                evidence=_evidence(overlap),
            )
        if not overlap.shared:
            return self.passed(
                f"None of {_rows(overlap.val)} validation rows is among the {overlap.train:,} "
                "training rows read.",
                evidence=_evidence(overlap),
            )
        if overlap.significant:
            return self.noted(
                f"{overlap.shared:,} of {_rows(overlap.val)} validation rows equal a training row: "
                "few, but more than a random split explains.",
                evidence=_evidence(overlap),
            )
        return self.passed(
            f"{overlap.shared:,} of {_rows(overlap.val)} validation rows equal a training row: no "
            f"more than chance explains, as {overlap.twins:.1%} of the training rows have a "
            "duplicate.",
            evidence=_evidence(overlap),
        )


def _early_fits(audit: Audit) -> list[tuple[str, EarlyFit]]:
    """The fits to rows that are split afterwards, in the files that make the loaders."""
    return [(file, fit) for file in _files(audit) for fit in early_fits(source_of(file))]


def _files(audit: Audit) -> list[str]:
    """The files that make the loaders."""
    places = (audit.loop.locate("train_loader"), audit.loop.locate("val_loader"))
    return list(dict.fromkeys(place.file for place in places if place is not None))


def _is_toy(overlap: Overlap) -> bool:
    """Whether all rows there are serve for both."""
    return overlap.shared == overlap.val == overlap.train and overlap.train <= DEMONSTRATION


def _doubt(overlap: Overlap) -> str:
    if not overlap.certain:
        return "; the two data sets may make different items of the same row"
    return "; rows with few possible values can be equal by chance"


def _has_power(found: Shared, overlap: Overlap) -> bool:
    if overlap is not found.by_content or overlap.coverage >= 1:
        return True
    return 0.1 * overlap.val * overlap.coverage >= POWER


def _group_numbers(seen: SharedGroups) -> Numbers:
    return Numbers(
        title=f"Rows by {seen.column}",
        values={
            "validation rows": float(seen.rows),
            f"of a {seen.kind} with training rows": float(seen.of_shared),
            f"{seen.column}: different values in validation": float(seen.groups),
            "of these in training too": float(seen.shared),
        },
    )


def _rows(count: int) -> str:
    return f"{count:,}"


def _evidence(overlap: Overlap) -> tuple[Evidence, ...]:
    values: dict[str, float | str] = {
        "training rows compared": float(overlap.train),
        "validation rows compared": float(overlap.val),
        "validation rows among the training rows": float(overlap.shared),
    }
    if not overlap.by_number:
        values["share of training rows with a duplicate"] = overlap.twins
        values["p value of a random split"] = overlap.p
    return (Numbers(title="Rows in both sets", values=values),)
