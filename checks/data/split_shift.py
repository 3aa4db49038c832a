"""DATA109: validation inputs that are scaled unlike the training's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnaudit import stats
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.numbered_names import Renamed, renamed
from nnaudit.measure.random_access import innermost
from nnaudit.measure.refits import CATEGORICAL, Refit, refits
from nnaudit.measure.token_shares import TokenShare, training_only
from nnaudit.probes.channels import Channels, Pair
from nnaudit.probes.compared_units import UnitsInValidation
from nnaudit.probes.rows import TrainRows, ValRows
from nnaudit.probes.unmodified_inputs import UnmodifiedInputs
from nnaudit.report import Evidence, Kind, Location, Result, Status, Table
from nnaudit.targets.source import source_of

FEWEST = 20
"""Rows of each set below which a difference of means says little."""
Z = 4.0

_DIGITS, _FLAGS, _COLUMNS, _MOST_COLUMNS = 1e-4, 10, 3, 0.9
"""What counts as 0 and as 1; columns of no more values are flags; how many columns show it."""

_UNITS = 16.0
"""A ratio of scales in every channel that no shift of the data makes; 255 is far beyond it."""
_COLUMNS_OFF = 0.5
_FAR = 3.0
_UNLIKE = 30.0
"""The widest column has so many times the deviation of the narrowest: they have units."""
_BEYOND = 10.0
"""A mean so many standard deviations away is no drift, whatever the units."""
_WITNESSES = 2.0
"""So many independent columns must be off: series that move together do so by nature."""
_SWAPPED = 0.1

Signature = Callable[[Pair], str]


class SplitShift(Check):
    """Do validation inputs and targets have the same scale as those of training?

    Why: A transform forgotten or applied twice in one of the two pipelines (a normalisation, a
        division by 255, the order of the colour channels) leaves training untouched and makes
        validation meaningless: the loss is high from the first epoch and looks like overfitting.
    How: Compares the mean and standard deviation of each channel (colour, feature, column) over up
        to 1,024 rows of each set: z > 4 (p < 6.4e-5), and the even and the odd rows must agree.
        Data differ between two sets for many good reasons, such as a split by time, so a difference
        alone does not fail.
        - Notes a mean more than `shift` training standard deviations away, or a ratio of standard
          deviations beyond `ratio`; warns at twice the shift or 1.5 times the ratio.
        - Fails when scales differ more than sixteenfold in every channel.
        - Fails when the images of one set lie in [0, 1] and those of the other are normalised.
        - Fails when the columns of one set are standardised and those of the other are in units:
          standard deviations that differ thirtyfold among columns, half of which, at least two
          independent ones, are more than 3 standard deviations or a factor of 3 away. Half of
          the columns with means more than 10 standard deviations away show units, too.
        - Fails when validation is standardised by statistics of its own: over all its rows (20 to
          1,024) nine in ten columns, of at least three that are no flags, have mean 0 and standard
          deviation 1 to four digits. Scaled with the training set's, they miss it by about one over
          the root of the number of rows.
        - Warns when the source fits an encoder or a scaler of scikit-learn's to rows named as
          training rows are and again to rows named as held-out ones are (`x_val`, `test_df`), or
          takes the codes of pandas' categories of both, each by the values that occur in it.
        - Warns when the two data sets, of one class, hold a vocabulary or a list of classes, by the
          attribute's name, that gives the same names other numbers; or when a function that makes
          one by its name is called with the rows of each.
        - Warns when a token (5% of them or more) is in at least half of the training texts and in
          5% of validation's at most (50 texts of each, p < 1e-4): unknown words of a vocabulary
          that was made of validation texts. Padding and texts that are augmented do not count.
        - Fails when colour means match only in reverse order.
        - Fails when the numbers that are to be predicted differ in the same way: a standard
          deviation beyond sixteen times, or one beyond 3 times with a mean more than 10 standard
          deviations away. Not where validation is seen to scale predictions back before it compares
          them; a note where no comparison is seen (in module form, with NumPy).
        - Windows of a series are noted at most. Inputs that the training step changes before the
          network sees them warn at most: what it does to validation is not seen.
    Fix: Give both loaders the same deterministic transforms; standardise validation with the mean
        and deviation of the training set.
    References: Rabanser et al., Failing Loudly: An Empirical Study of Methods for Detecting
        Dataset Shift (2019). Welch, The Generalization of Student's Problem (1947).
    """

    code = "DATA109"
    name = "split-shift"
    kind = Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.VAL_LOADER)
    probes = (Channels, UnmodifiedInputs, TrainRows, ValRows, UnitsInValidation)
    options: ClassVar[dict[str, float]] = {"shift": 0.5, "ratio": 2.0}

    def run(self, audit: Audit) -> Result:
        """Look for what the numbers show, then for what the source says."""
        result = self._of_targets(audit) or self._of_numbers(audit)
        if result.status in (Status.FAIL, Status.WARN):
            return result
        sets = [
            getattr(innermost(loader), "dataset", None)
            for loader in (audit.loop.train_loader, audit.loop.val_loader)
        ]
        other = renamed(*sets)
        if other is not None:
            return self._renamed(audit, other, result)
        if (lost := _lost_words(audit)) is not None:
            return self._lost_words(audit, lost, result)
        again = _refitted(audit)
        if again is None:
            return result
        file, refit = again
        return self.warned(
            f"{refit.kind} is given training rows in line {refit.first} and again "
            f"{refit.rows} in line {refit.line}: the same value gets another number in validation.",
            measured=f"fitted to {refit.rows}",
            threshold="fitted to training rows",
            evidence=result.evidence,
            location=Location(file=file, line=refit.line),
            fix=_fitted_once(refit),
        )

    def _of_targets(self, audit: Audit) -> Result | None:
        """Fail where the numbers to be predicted are in other units in validation."""
        val = audit.probe(ValRows)
        mine = _numbers(audit.probe(TrainRows).rows.targets)
        theirs = _numbers(val.targets) if val is not None else None
        if mine is None or theirs is None:
            return None
        if not all(_in_other_units(mine[i::2], theirs[i::2]) for i in (0, 1)):
            return None
        compared = audit.probe(UnitsInValidation)
        if compared and all(each.apart < _UNITS for each in compared):
            return None  # predictions are scaled back, and compared with targets as they were
        # Where it is not seen what they are compared with, the metric may scale predictions back.
        answer = self.failed if compared else self.noted
        return answer(
            f"The targets of validation have mean {theirs.mean():.3g} and standard deviation "
            f"{theirs.std():.3g}, those of training {mine.mean():.3g} and {mine.std():.3g}: one of "
            "the two is not scaled, and the loss of validation means nothing.",
            measured=f"mean {theirs.mean():.3g}, standard deviation {theirs.std():.3g}",
            threshold="mean and standard deviation of training",
            location=audit.loop.locate("val_loader"),
            fix="y_val = (y_val - y_train.mean()) / y_train.std()  # as the targets of training",
        )

    def _lost_words(self, audit: Audit, seen: TokenShare, result: Result) -> Result:
        return self.warned(
            f"Token {seen.token} makes up {seen.often:.0%} of the training texts and is in "
            f"{seen.train:.0%} of them, but in {seen.val:.0%} of validation's: if it stands for "
            "unknown words, the vocabulary was made of the validation texts.",
            measured=f"in {seen.train:.0%} of training texts, {seen.val:.0%} of validation's",
            threshold="as often in both",
            evidence=result.evidence,
            location=audit.loop.locate("train_loader"),
            fix="vocabulary = build_vocabulary(train_texts)  # of training texts alone",
        )

    def _renamed(self, audit: Audit, seen: Renamed, result: Result) -> Result:
        return self.warned(
            f"{seen.attribute} of the validation set numbers {seen.differing} of {seen.common} "
            f"names differently from the training set's: {seen.name!r} is {seen.train} in training "
            f"and {seen.val} in validation.",
            measured=f"{seen.differing} of {seen.common} names",
            threshold="0",
            evidence=result.evidence,
            location=audit.loop.locate(getattr(audit.loop.val_loader, "dataset", None))
            or audit.loop.locate("val_loader"),
            fix=f"make {seen.attribute} once, from training, and give it to both data sets",
        )

    def _of_numbers(self, audit: Audit) -> Result:
        """Look for what only a pipeline does, then for any difference."""
        pairs = audit.probe(Channels)
        if pairs is None:
            return self.inconclusive(
                "Not compared: validation batches have a different structure from training batches."
            )
        if not pairs:
            return self.skipped("The inputs hold no quantities that could be scaled.")
        enough = [pair for pair in pairs if min(pair.train.rows, pair.val.rows) >= FEWEST]
        if not enough:
            few = min(min(pair.train.rows, pair.val.rows) for pair in pairs)
            return self.inconclusive(
                f"One set has only {few} rows, too few to compare scales ({FEWEST} needed)."
            )
        if (own := self._own_statistics(audit)) is not None:
            return own
        for pair in enough:
            told = _replicated(pair)
            if told:
                return self._pipeline(audit, pair, told)
        return self._difference(audit, max(enough, key=_worst))

    def _own_statistics(self, audit: Audit) -> Result | None:
        """Fail where a scaler was fitted again, to validation."""
        val = audit.probe(ValRows)
        if val is None or val.random or len(val) != val.total:
            return None
        if {*val.items} <= {*audit.probe(TrainRows).rows.items}:
            return None  # one set for both, and so its own statistics
        for values in val.sample.values():
            if len(values) != len(val) or {value.ndim for value in values} != {1}:
                continue
            if len({value.shape for value in values}) == 1 and is_standardised(values):
                return self.failed(
                    "Validation is standardised with statistics of its own: over its "
                    f"{len(val):,} rows the columns have mean 0 and standard deviation 1 to four "
                    "digits. The network gets other numbers for the same measurement than in "
                    "training.",
                    measured="mean 0 and standard deviation 1 over validation",
                    threshold="the mean and standard deviation of training",
                    location=audit.loop.locate("val_loader"),
                    fix="scaler.fit(x_train); x_val = scaler.transform(x_val)  # not fit_transform",
                )
        return None

    def _pipeline(self, audit: Audit, pair: Pair, told: str) -> Result:
        seen = pair.path in audit.probe(UnmodifiedInputs)
        doubt = (
            ""
            if seen
            else "; the training step changes its inputs, and may change those of validation too"
        )
        answer = self.failed if seen else self.warned
        return answer(
            f"{told}{doubt}.",
            measured=_measured(pair),
            threshold="mean and standard deviation of training",
            evidence=_table(pair),
            location=audit.loop.locate("val_loader"),
            fix="x_val = (x_val - x_train.mean(0)) / x_train.std(0)  # the same transform for both",
        )

    def _difference(self, audit: Audit, pair: Pair) -> Result:
        shift, ratio = self.option(audit, "shift"), self.option(audit, "ratio")
        # Augmentation shifts inputs, and time a series: both are meant to.
        meant = pair.sequence or audit.probe(TrainRows).rows.random
        grave = _off(pair, 2 * shift, 1.5 * ratio)
        which = [c for c in (grave if meant else _off(pair, shift, ratio)) if _agreed(pair, c)]
        if not which:
            return self.passed(
                f"Validation inputs have the scale of training inputs: {_measured(pair)}.",
                evidence=_table(pair),
            )
        c = max(which, key=lambda each: _effect(pair, each))
        status = Status.WARN if c in grave and not meant else Status.NOTE
        more = (
            f" ({len(which)} of {len(pair.shift)} channels differ)" if len(pair.shift) > 1 else ""
        )
        return self.answer(
            status,
            f"Channel {c} of batch{pair.path} has mean {pair.val.mean[c]:.3g} and standard "
            f"deviation {pair.val.deviation[c]:.3g} in validation, but {pair.train.mean[c]:.3g} "
            f"and {pair.train.deviation[c]:.3g} in training{more}: expected of a split by time or "
            "place, else the transforms differ.",
            measured=_measured(pair),
            threshold=f"{shift:g} standard deviations, a ratio of {ratio:g}",
            evidence=_table(pair),
            location=audit.loop.locate("val_loader"),
            fix="x_val = (x_val - x_train.mean(0)) / x_train.std(0)",
        )


def is_standardised(rows: Sequence[Tensor]) -> bool:
    """Whether the columns of ``rows`` have mean 0 and standard deviation 1, to :data:`_DIGITS`."""
    if len(rows) < FEWEST or not rows[0].is_floating_point():
        return False
    table = torch.stack(list(rows)).double()
    measured = torch.tensor([len(torch.unique(column)) > _FLAGS for column in table.T])
    if int(measured.sum()) < _COLUMNS:
        return False
    table = table[:, measured]
    centred = table.mean(0).abs() < _DIGITS
    unit = [(table.std(0, correction=c) - 1).abs() < _DIGITS for c in (0, 1)]
    return any(float((centred & one).double().mean()) >= _MOST_COLUMNS for one in unit)


# --- what only a pipeline does ------------------------------------------------------------------


def _replicated(pair: Pair) -> str:
    """Say what a pipeline did, where all rows and both halves of them show it."""
    for signature in (_other_units, _not_normalised, _not_standardised, _reversed_colours):
        if all(signature(half) for half in (pair.half(0), pair.half(1))):
            return signature(pair)
    return ""


def _other_units(pair: Pair) -> str:
    ratio = pair.ratio[pair.varying & ~pair.train.binary]
    mine, theirs = (max(abs(m.low), abs(m.high)) for m in (pair.train, pair.val))
    if len(ratio) == 0 or min(mine, theirs) == 0:
        return ""
    if (ratio > _UNITS).all() and theirs > _UNITS * mine:
        larger, smaller = "Validation", "training"
    elif (ratio < 1 / _UNITS).all() and mine > _UNITS * theirs:
        larger, smaller = "Training", "validation"
    else:
        return ""
    return (
        f"{larger} inputs reach {max(mine, theirs):.4g}, {smaller} inputs only "
        f"{min(mine, theirs):.3g}: one of the two sets is not scaled"
    )


def _not_normalised(pair: Pair) -> str:
    """Pictures as they were read, in [0, 1], against such as have mean 0 and deviation 1."""
    if not pair.pictures:
        return ""
    for raw, other, which in (
        (pair.val, pair.train, "Validation"),
        (pair.train, pair.val, "Training"),
    ):
        filled = raw.high > 0.9 and raw.low < 0.1
        moved = raw.high > 0.5 and bool((abs(other.mean - raw.mean) > raw.deviation).all())
        unit = raw.low >= 0 and raw.high <= 1 and (filled or moved)
        wide = other.low < -0.2 and bool((other.deviation > 1.5 * raw.deviation).all())
        if unit and wide:
            against = "training" if raw is pair.val else "validation"
            return (
                f"{which} images range from {raw.low:.2g} to {raw.high:.2g}, those of {against} "
                f"from {other.low:.2g} to {other.high:.2g}: {which.lower()} is not normalised"
            )
    return ""


def _not_standardised(pair: Pair) -> str:
    """Columns in their own units against such as have mean 0 and deviation 1."""
    columns = pair.varying & ~pair.train.binary & ~pair.val.binary
    if pair.pictures or columns.sum() < 3:
        return ""
    for standard, other, which, against in (
        (pair.train, pair.val, "validation", "training"),
        (pair.val, pair.train, "training", "validation"),
    ):
        deviation = np.maximum(standard.deviation, 1e-12)
        usual = (np.abs(standard.mean) < 0.3) & (deviation > 0.7) & (deviation < 1.4)
        ratio = np.maximum(other.deviation / deviation, 1e-12)
        far = np.abs(other.mean - standard.mean) > _FAR * deviation
        far = (far | (np.maximum(ratio, 1 / ratio) > _FAR)) & columns
        if usual[columns].mean() < 0.8 or far[columns].mean() < _COLUMNS_OFF:
            continue
        units = ratio[columns].max() / ratio[columns].min()
        beyond = np.abs(other.mean - standard.mean) > _BEYOND * deviation
        in_units = units > _UNLIKE or beyond[columns].mean() >= _COLUMNS_OFF
        if in_units and pair.witnesses(far) >= _WITNESSES:
            return (
                f"Columns of {against} have mean 0 and standard deviation 1, but {int(far.sum())} "
                f"of {int(columns.sum())} columns of {which} are far from that: {which} is not "
                "standardised in the same way"
            )
    return ""


def _reversed_colours(pair: Pair) -> str:
    """Means by colour that differ from the training's, and do not in reverse order."""
    if not pair.pictures or len(pair.train.mean) != 3:
        return ""
    mine, theirs = pair.train, pair.val
    error = np.sqrt(mine.means.var(0) / mine.rows + theirs.means.var(0) / theirs.rows)
    error = np.maximum(np.maximum(error, error[::-1]), 1e-12)
    apart = np.abs(mine.mean[0] - mine.mean[2]) / max(float(mine.deviation.mean()), 1e-12)
    straight = float((((theirs.mean - mine.mean) / error) ** 2).sum())
    turned = float((((theirs.mean - mine.mean[::-1]) / error) ** 2).sum())
    if apart < _SWAPPED or stats.chi2_sf(straight, 3) >= stats.ALPHA:
        return ""
    if stats.chi2_sf(turned, 3) < 0.01:
        return ""
    return "The colour means of validation are those of training in reverse order (BGR for RGB)"


def _numbers(targets: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """Return the targets of a regression; None where they are of another kind, or too few."""
    if targets is None or targets.ndim != 1 or targets.dtype.kind != "f":
        return None
    known = targets[np.isfinite(targets)].astype(np.float64)
    enough = len(known) >= 2 * FEWEST and len(np.unique(known)) > _FLAGS
    return known if enough else None


def _in_other_units(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """Whether no drift explains how ``theirs`` differ from ``mine``."""
    least = max(min(mine.std(), theirs.std()), 1e-12)
    ratio = max(mine.std(), theirs.std()) / least
    shift = abs(theirs.mean() - mine.mean()) / least
    return bool(ratio > _UNITS or (ratio > _FAR and shift > _BEYOND))


# --- any difference -----------------------------------------------------------------------------


def _off(pair: Pair, shift: float, ratio: float) -> list[int]:
    """The channels whose mean or deviation is off by more than that, beyond chance."""
    moved = (np.abs(pair.shift) > shift) & (np.abs(pair.z_shift) > Z)
    both = pair.train.binary & pair.val.binary
    # One-hot columns of rare things have small deviations: their share must change visibly.
    moved &= ~both | (np.abs(pair.val.mean - pair.train.mean) > 0.25)
    scaled = (np.maximum(pair.ratio, 1 / np.maximum(pair.ratio, 1e-12)) > ratio) & ~both
    scaled &= np.abs(pair.z_ratio) > Z
    sparse = pair.train.sparse & pair.val.sparse
    return [int(c) for c in np.flatnonzero((moved | scaled) & pair.varying & ~sparse)]


def _agreed(pair: Pair, channel: int) -> bool:
    """Whether both halves of the rows are off to the same side, by half as much at least."""
    shifts, logs = [], []
    for each in (pair, pair.half(0), pair.half(1)):
        shifts.append(float(each.shift[channel]))
        logs.append(float(np.log(max(float(each.ratio[channel]), 1e-12))))
    return any(
        all(value / whole > 0.5 for value in halves)
        for whole, *halves in (shifts, logs)
        if whole != 0.0
    )


def _effect(pair: Pair, channel: int) -> float:
    ratio = max(float(pair.ratio[channel]), 1e-12)
    return max(abs(float(pair.shift[channel])), abs(float(np.log2(ratio))) / 2)


def _worst(pair: Pair) -> float:
    return max(_effect(pair, c) for c in range(len(pair.shift)))


def _measured(pair: Pair) -> str:
    c = max(range(len(pair.shift)), key=lambda each: _effect(pair, each))
    return (
        f"means differ by at most {abs(pair.shift[c]):.2f} training standard deviations, with a "
        f"ratio of standard deviations of {pair.ratio[c]:.2f}"
    )


def _table(pair: Pair) -> tuple[Evidence, ...]:
    order = sorted(range(len(pair.shift)), key=lambda each: -_effect(pair, each))[:20]
    rows = tuple(
        (
            float(c),
            float(pair.train.mean[c]),
            float(pair.val.mean[c]),
            float(pair.train.deviation[c]),
            float(pair.val.deviation[c]),
        )
        for c in order
    )
    names = ("channel", "training mean", "validation mean", "training std", "validation std")
    return (Table(title=f"Scale of batch{pair.path}", columns=names, rows=rows),)


def _lost_words(audit: Audit) -> TokenShare | None:
    """Return a token that validation lacks; None for rows that are augmented, or no texts."""
    train, val = audit.probe(TrainRows).rows, audit.probe(ValRows)
    if val is None or train.random or val.random:
        return None
    for path in train.sample.keys() & val.sample.keys():
        mine, theirs = train.sample[path], val.sample[path]
        if all(map(_is_text, (*mine[:1], *theirs[:1]))):
            return training_only(mine, theirs)
    return None


def _is_text(values: Tensor) -> bool:
    return values.ndim == 1 and values.dtype in (torch.int32, torch.int64) and values.numel() > 1


def _fitted_once(refit: Refit) -> str:
    """Return the line that gives held-out rows what was fitted to training rows."""
    if refit.kind == CATEGORICAL:
        return f"pd.Categorical({refit.rows}, categories=those_of_training).codes"
    if refit.kind.endswith("()"):
        return f"{refit.kind[:-1]}{refit.rows}, mean, std)  # the mean and deviation of training"
    return f"transform({refit.rows})  # with what was fitted to training rows"


def _refitted(audit: Audit) -> tuple[str, Refit] | None:
    """Return the first fit to held-out rows in the files that make the loaders."""
    places = map(audit.loop.locate, ("train_loader", "val_loader"))
    for file in dict.fromkeys(place.file for place in places if place is not None):
        for refit in refits(source_of(file)):
            return file, refit
    return None
