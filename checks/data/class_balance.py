"""DATA110: classes that are missing among the training rows, or rare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from nnaudit import stats
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.losses import LossCall
from nnaudit.loop.total_loss import MainLoss
from nnaudit.measure.random_access import RandomAccess
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.row_weights import WeightsByRow
from nnaudit.probes.rows import Rows, TrainRows, ValRows
from nnaudit.probes.sampled_classes import SampledByClass, SampledClasses
from nnaudit.probes.token_targets import TokenTargeting
from nnaudit.report import Evidence, Kind, Result, Status, Table
from nnaudit.targets import batch as batches

CLASSES = frozenset({"cross_entropy", "nll", "multi_margin"})
BINARY = frozenset({"bce", "bce_with_logits"})

_UNIFORM = (RandomSampler, SequentialSampler, SubsetRandomSampler, DistributedSampler)
_LISTED = 20
_FEW_CLASSES = 64
"""Dense targets of more classes than this are a vocabulary, which is never balanced."""

_LINE = 0.99
"""Correlation of log weights and log rows from which one is a power of the other."""

_CLOSE = 0.03
"""How far, as a logarithm, the ratio of two weights may be from that of the rows or its root."""

_LEVELS = 256
"""What a byte can hold: fractions with more levels are quantities."""

_CONSTANT = 64
"""So many labels that are all the same are no small sample."""

_FEW_ROWS = 5
"""Classes with fewer rows say little about what their weight was computed from."""

_FEWEST_WEIGHTS = 3
_AGREES = 0.01
"""How far, as logarithms, weights may be from the inverse of the rows: the rounding of an author;
a tenth of that where three weights alone agree."""

_UNEVEN = 1.5
"""Classes less uneven than this have weights that could be anything."""


_TWICE = 3.0
"""How much more a rare class counts where it is balanced twice; less may be meant."""


@dataclass(frozen=True)
class Counts:
    """How often each class occurs.

    Attributes:
        train: rows of each class (classes,).
        val: the same of the validation rows that were read; None where there are none.
        dense: the rows counted are pixels or words, of a few batches.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64] | None = None
    dense: bool = False

    @property
    def unit(self) -> str:
        """What was counted."""
        return "pixels or tokens" if self.dense else "training rows"

    @property
    def commonest(self) -> int:
        """The class with most rows."""
        return int(self.train.argmax())

    @property
    def rarest(self) -> int:
        """The class with fewest rows, of those that have any."""
        present = np.flatnonzero(self.train)
        return int(present[self.train[present].argmin()])

    @property
    def ratio(self) -> float:
        """Rows of the commonest class to rows of the rarest."""
        return float(self.train[self.commonest] / self.train[self.rarest])

    @property
    def p_so_few(self) -> float:
        """The probability of no more classes than these if all were equally common.

        At most the number of choices of k of C classes times (k / C) ** n, for n rows.
        """
        total, classes = int(self.train.sum()), len(self.train)
        k = len(np.flatnonzero(self.train))
        choices = math.lgamma(classes + 1) - math.lgamma(k + 1) - math.lgamma(classes - k + 1)
        return math.exp(min(0.0, choices + total * math.log(k / classes)))

    @property
    def exhausted(self) -> bool:
        """Whether no class was read once only: then hardly any is left to be read.

        The share of rows of classes that were not read is about the number of classes with one row
        over the number of rows (Good, "The Population Frequencies of Species", 1953).
        """
        return not (self.train == 1).any()

    def weighed(self, weights: NDArray[np.float64]) -> Weighed | None:
        """Return the most uneven pair of rows times ``weights``; None where there is none."""
        counted = np.flatnonzero((self.train > 0) & (weights > 0))
        if self.dense or len(counted) < 2:
            return None
        total = self.train[counted] * weights[counted]
        heavy, light = int(counted[total.argmax()]), int(counted[total.argmin()])
        rows = int(self.train[heavy]), int(self.train[light])
        return Weighed(heavy, light, rows, float(total.max() / total.min()))

    def rises_with(self, weights: NDArray[np.float64]) -> bool:
        """Whether ``weights`` are a rising power of the number of rows."""
        counted = np.flatnonzero((self.train >= _FEW_ROWS) & (weights > 0))
        rows = np.log(self.train[counted].astype(np.float64))
        if len(counted) < 2 or np.ptp(rows) < math.log(_UNEVEN):
            return False
        given = np.log(weights[counted])
        # Any two are on a line: only the shares and their roots are no chance.
        if len(counted) == 2:
            more, heavier = rows[0] - rows[1], given[0] - given[1]
            return bool(min(abs(heavier - more), abs(heavier - more / 2)) < _CLOSE)
        slope = float(np.polyfit(rows, given, 1)[0])
        return slope > 0.25 and float(np.corrcoef(rows, given)[0, 1]) > _LINE

    def misplaced(self, weights: NDArray[np.float64]) -> tuple[int, int] | None:
        """Return a class and the one whose rows its weight was made of; None where all fit.

        Sorted, the weights are the inverse of the sorted rows, or its root, times a constant; class
        by class they are not. Numbers that were chosen otherwise do not agree so closely.
        """
        counted = np.flatnonzero((self.train > 0) & (weights > 0))
        rows, given = np.log(self.train[counted].astype(np.float64)), np.log(weights[counted])
        if self.dense or len(counted) < _FEWEST_WEIGHTS or np.ptp(rows) < math.log(_UNEVEN):
            return None
        close = _AGREES if len(counted) > _FEWEST_WEIGHTS else _AGREES / 10
        for power in (1.0, 0.5):
            order, by_weight = np.argsort(rows), np.argsort(-given)
            fitted = given[by_weight] + power * rows[order]
            paired = given + power * rows
            if np.ptp(fitted) < close and np.ptp(paired) > math.log(_UNEVEN):
                worst = int(np.abs(paired - np.median(fitted)).argmax())
                place = int(np.flatnonzero(by_weight == worst)[0])
                return int(counted[worst]), int(counted[order[place]])
        return None

    def p_within(self, ratio: float) -> float:
        """The probability of so uneven a pair if no class were ``ratio`` times rarer than another.

        The rows of two classes in the ratio 1 : r split like a binomial with probability
        1 / (1 + r); Bonferroni for the choice of the pair.
        """
        few, many = int(self.train[self.rarest]), int(self.train[self.commonest])
        at_most = 1.0 - stats.binomial_sf(few + 1, few + many, 1 / (1 + ratio))
        return min(1.0, at_most * max(len(np.flatnonzero(self.train)) - 1, 1))


@dataclass(frozen=True)
class Weighed:
    """The two classes that the weights of the loss make most uneven.

    Attributes:
        heavy, light: the classes that count most and least.
        rows: how many rows each has.
        ratio: rows times weight of the first to those of the second.
    """

    heavy: int
    light: int
    rows: tuple[int, int]
    ratio: float

    def p_within(self, ratio: float) -> float:
        """The probability of so uneven a pair if in truth it were ``ratio`` to 1 with weights."""
        many, few = self.rows
        odds = ratio * many / (few * self.ratio)  # of the rows, at that ratio
        return stats.binomial_sf(many, many + few, odds / (1 + odds))


class ClassBalance(Check):
    """Does every class occur in training, and often enough?

    Why: A class without training rows is never predicted, and a rare one hardly ever: at 1 in 100,
        a network that ignores its input is right in 99% of cases, and the accuracy looks excellent.
    How: Counts the classes among the training rows when the loss is a classification loss: all rows
        of a data set in memory, else 4,096 drawn at random.
        - Missing class: fails when validation has a class that training lacks, although at least
          `expected` training rows of it are expected from its share of validation (with 20
          expected, chance gives none with probability 2e-9), and a random split explains it with
          p < 1e-4. Only classes that the network has an output for count: the new faces on which a
          recogniser is validated have none.
        - Unused output: without validation, `expected` is compared with equal classes; a gap in the
          class numbers warns, unused outputs at either end are noted. With fewer rows per output
          they are noted if so few classes have p < 1e-4 were all equally common, and every class
          was read more than once: 10 classes into the 1,000 outputs of a pretrained head.
        - One label: warns when all rows (at least 64) have the same, unless the step makes others.
          It never fails, for the right one of several candidates may be the first by construction.
        - Left out: warns when the loss's `ignore_index` is a class of the network, and more than
          `expected` rows with one label each have it, or tokens of a batch that are no padding and
          not their own labels. It does not fail, for that number may mean
          rows without a label.
        - Lost by a cast: fails when the loader's targets are fractions from 0 to 1, of no more than
          256 levels, and fewer classes than the network has outputs are left when they are made
          integers: a mask divided by 255.
        - Rare class: warns when a class is more than `imbalance` times rarer than another
          (p < 1e-4), unless the program handles it: class weights, a sampler of its own, a loss
          such as the focal loss.
        - Class weights: those given to torch's function, else those that show in the pull of each
          row on an output that is undecided, as of a loss that is written by hand. Fails when they
          rise with the number of rows as a power of it, the shares themselves or their roots: log
          weight against log rows is a line (r > 0.99) with a slope above a quarter, or, of two
          classes, their ratio is the rows' or its root to 3%.
        - Misplaced weights: fails when, all rows read, the sorted weights are the inverse of the
          sorted numbers of rows, or its root, to 1% (of three classes 0.1%), and class by class
          they are not: counted in one order and given in another.
        - Uneven weights: warns when rows times class weights are more uneven than `imbalance`
          (p < 1e-4), and more uneven than the rows or reversed: the weights are the shares instead
          of their inverse, in another order, or applied twice.
        - Sampler: fails when the weights of a WeightedRandomSampler rise with the number of rows
          of their classes in the same sense. Warns when it draws all classes about equally often
          (1.5 to 1) and the weights of the loss are for the rows as they are: the rarest class
          then counts more than 3 times as much as the commonest.
        - Rare pixels, tokens and labels of several per row are so by nature: noted. Weights of
          theirs that rise with their number fail.
    Fix: Look at how the rows were chosen; `train_test_split(..., stratify=y)`. Report
        `f1_score(..., average="macro")`, balanced accuracy, or IoU for masks, beside accuracy;
        weigh the loss, `nn.CrossEntropyLoss(weight=...)`, or draw with `WeightedRandomSampler`.
    References: He and Garcia, Learning from Imbalanced Data (2009). Buda et al., A Systematic
        Study of the Class Imbalance Problem in Convolutional Neural Networks (2018).
    """

    code = "DATA110"
    name = "class-balance"
    kind = Kind.STATISTICAL
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (FirstSteps, TrainRows, ValRows, WeightsByRow, TokenTargeting, SampledByClass)
    options: ClassVar[dict[str, float]] = {"imbalance": 10.0, "expected": 20.0}

    def run(self, audit: Audit) -> Result:
        """Count, and see whether a class is missing, then whether one is rare."""
        first = audit.probe(FirstSteps)
        main = _of_classes(first)
        if main is None:
            return self._written_by_hand(audit, first)
        if (levels := _truncated(first, main)) is not None:
            return self._cut_off(audit, main, *levels)
        train, val = audit.probe(TrainRows).rows, audit.probe(ValRows)
        left_out = rows_left_out(main.calls[0], train.targets, batches.size(first.batches[0]))
        if (ignored := self._ignored(audit, main, left_out, len(train))) is not None:
            return ignored
        counts = _counted(first, main, train, val)
        if counts is None or counts.train.sum() == 0:
            return self.skipped(_why_uncounted(first, main))
        missing = self._missing(audit, counts)
        if (one := self._one_class(audit, first, counts)) is not None:
            return missing if missing and missing.status is Status.FAIL else one
        weights = _weights(main.calls[0], len(counts.train))
        if weights is None:
            weights = _measured_weights(audit, counts)
        return (
            missing
            or self._sampled(audit, counts, weights)
            or self._inverted(audit, counts, weights)
            or (self._misplaced(audit, counts, weights) if train.coverage == 1.0 else None)
            or self._overdone(audit, counts, weights)
            or self._rare(audit, counts, _declared(audit, main, weights))
        )

    def _written_by_hand(self, audit: Audit, first: First) -> Result:
        """Judge the weights of a loss that is no function of torch: nothing else is known of it."""
        measured = audit.probe(WeightsByRow)
        if measured is not None:
            loss = MainLoss((measured.call,))
            counts = _counted(first, loss, audit.probe(TrainRows).rows, None)
            weights = None if counts is None else _measured_weights(audit, counts)
            # Of an embedding most columns are no class.
            if counts is not None and 2 * np.count_nonzero(counts.train) > len(counts.train):
                wrong = self._inverted(audit, counts, weights)
                if wrong := wrong or self._overdone(audit, counts, weights):
                    return wrong
        return self.skipped("No classification loss compares the output with the targets.")

    def _cut_off(self, audit: Audit, main: MainLoss, levels: int, kept: int) -> Result:
        outputs = _number_of_classes(main.calls[0])
        return self.failed(
            f"The loader's targets are fractions from 0 to 1 with {levels} levels, and become "
            f"{kept} of {outputs} classes when they are made integers: the others are lost.",
            measured=f"{kept} classes of {levels} levels",
            threshold="as many classes as levels",
            location=main.calls[0].location or audit.loop.locate("train_loader"),
            fix="do not scale the targets: no ToTensor() and no / 255 for masks; "
            "torch.from_numpy(mask).long()",
        )

    def _ignored(self, audit: Audit, main: MainLoss, rows: int, total: int) -> Result | None:
        """Warn where the loss ignores a class that ``rows`` or tokens have."""
        expected, tokens = self.option(audit, "expected"), audit.probe(TokenTargeting)
        if rows > expected:
            return self._left_out(audit, main, rows, f"{total:,} training rows")
        if tokens is None or tokens.own or tokens.placed.left_out <= expected:
            return None
        of = f"{tokens.placed.content:,} tokens of a batch, padding not counted,"
        return self._left_out(audit, main, tokens.placed.left_out, of)

    def _left_out(self, audit: Audit, main: MainLoss, number: int, total: str) -> Result:
        ignored = main.calls[0].arguments["ignore_index"]
        return self.warned(
            f"{number:,} of {total} have label {ignored}, which is the loss's "
            "ignore_index: they are left out of the loss, and the network never learns this class.",
            measured=f"{number:,} labels of class {ignored} ignored",
            threshold="an ignore_index that is no class",
            location=main.calls[0].location or audit.loop.locate("loss"),
            fix="nn.CrossEntropyLoss()  # without ignore_index, if this is a class like the others",
        )

    def _one_class(self, audit: Audit, first: First, counts: Counts) -> Result | None:
        """Warn where every row has one label, and the loss is given no other either."""
        present = np.flatnonzero(counts.train)
        rows = int(counts.train.sum())
        if len(present) != 1 or len(counts.train) < 2 or rows < _CONSTANT:
            return None
        calls = [call for seen in first.observations for call in seen.loss_calls if call.compares]
        values = {value for call in calls for value in torch.unique(call.target).tolist()}
        if len(values) != 1:
            return None  # the step makes the others itself: negatives, fakes
        return self.warned(
            f"All {rows:,} {counts.unit} that were "
            f"read have the label {present[0]}: there is nothing to tell apart, and a network that "
            "ignores its input is always right.",
            measured="1 class",
            threshold="2 classes",
            evidence=_table(counts),
            location=audit.loop.locate("train_loader"),
            fix="print(numpy.unique(labels, return_counts=True))  # find where the others are lost",
        )

    def _missing(self, audit: Audit, counts: Counts) -> Result | None:
        if counts.dense:
            return None
        expected = self.option(audit, "expected")
        unseen = _unseen(counts, expected)
        val = counts.val
        if len(unseen) and val is not None:
            told = _named(unseen).capitalize()
            message = (
                f"{told} {'has' if len(unseen) == 1 else 'have'} {int(val[unseen].sum()):,} of "
                f"{int(val.sum()):,} validation rows but none of {int(counts.train.sum()):,} "
                "training rows"
            )
            return self.failed(
                f"{message}: the network cannot learn {'it' if len(unseen) == 1 else 'them'}.",
                measured="0 training rows",
                threshold=f"{expected:g} rows expected from the share of validation",
                evidence=_table(counts),
                location=audit.loop.locate("train_loader"),
                fix="train, val = train_test_split(rows, stratify=y)",
            )
        return self._unused_outputs(audit, counts, expected)

    def _unused_outputs(self, audit: Audit, counts: Counts, expected: float) -> Result | None:
        total, classes = int(counts.train.sum()), len(counts.train)
        present = np.flatnonzero(counts.train)
        absent = np.flatnonzero(counts.train == 0)
        if not len(absent) or not len(present):
            return None
        many = total / classes >= expected
        if counts.val is not None and counts.val[absent].sum():
            return None  # rare, not missing
        inner = absent[(absent > present[0]) & (absent < present[-1])]
        if not many and (len(inner) or not counts.exhausted or counts.p_so_few >= stats.ALPHA):
            return None  # a long tail of rare classes, of which some have not been read
        message = (
            f"The network has an output for {_named(absent)}, but none of the {total:,} training "
            f"rows read is of {'this class' if len(absent) == 1 else 'these classes'}"
        )
        if len(inner) and len(inner) <= len(present):
            return self.warned(
                f"{message} (about {total / classes:.0f} expected if classes were equally common).",
                measured="0 rows",
                threshold=f"{expected:g} rows expected",
                evidence=_table(counts),
                location=audit.loop.locate("train_loader"),
                fix="print(numpy.bincount(labels))  # find out where these rows are lost",
            )
        if counts.ratio > self.option(audit, "imbalance"):
            return None  # that matters more
        return self.noted(f"{message}.", evidence=_table(counts))

    def _inverted(
        self, audit: Audit, counts: Counts, weights: NDArray[np.float64] | None
    ) -> Result | None:
        """Fail where the weights of the loss are the classes' shares, not their inverse."""
        if weights is None or _samples(audit) or not counts.rises_with(weights):
            return None
        weighed = np.flatnonzero((counts.train > 0) & (weights > 0))
        common, rare = (
            int(weighed[place(counts.train[weighed])]) for place in (np.argmax, np.argmin)
        )
        return self.failed(
            "The class weights of the loss rise with the number of rows: class "
            f"{common} ({int(counts.train[common]):,} {counts.unit}) weighs "
            f"{weights[common]:.3g}, class {rare} ({int(counts.train[rare]):,}) "
            f"{weights[rare]:.3g}. They make the imbalance worse.",
            measured="weights that rise with the number of rows",
            threshold="weights that fall with it",
            evidence=_table(counts),
            location=audit.loop.locate("loss"),
            fix="weight = len(y) / (classes * torch.bincount(y))  # for BCE pos_weight = "
            "negatives / positives",
        )

    def _sampled(
        self, audit: Audit, counts: Counts, weights: NDArray[np.float64] | None
    ) -> Result | None:
        """Judge a sampler that draws rows by weights of their classes."""
        seen = audit.probe(SampledByClass)
        if seen is None:
            return None
        of_set = Counts(seen.rows)
        common, rare = of_set.commonest, of_set.rarest
        if of_set.rises_with(seen.weights):
            return self.failed(
                "The sampler's weights rise with the number of rows: of the rows that it draws "
                f"{seen.drawn[common]:.0%} are of class {common} and {seen.drawn[rare]:.1%} of "
                f"class {rare}, of the data set's {seen.rows[common] / seen.rows.sum():.0%} and "
                f"{seen.rows[rare] / seen.rows.sum():.1%}. They make the imbalance worse.",
                measured="weights that rise with the number of rows",
                threshold="weights that fall with it",
                location=audit.loop.locate("train_loader"),
                fix="weights = 1 / torch.bincount(y)[y]  # the rarer the class, the heavier",
            )
        twice = balanced_twice(seen, weights)
        if twice is None:
            return None
        return self.warned(
            "The sampler draws all classes about equally often, and the loss weighs them as if it "
            f"did not: class {rare} ({seen.rows[rare] / seen.rows.sum():.1%} of the rows) counts "
            f"{twice:.1f} times as much as class {common}.",
            measured=f"{twice:.1f} to 1 in favour of the rare class",
            threshold=f"{_TWICE:g} to 1",
            location=audit.loop.locate("loss"),
            fix="balance once: leave out the weights of the loss, or the sampler",
        )

    def _misplaced(
        self, audit: Audit, counts: Counts, weights: NDArray[np.float64] | None
    ) -> Result | None:
        """Fail where the weights of the loss are the right ones in another order."""
        found = None if weights is None else counts.misplaced(weights)
        if found is None or weights is None:
            return None
        mine, other = found
        return self.failed(
            "The class weights of the loss are the inverse of the classes' rows, or its root, in "
            f"another order than the classes: class {mine} ({int(counts.train[mine]):,} "
            f"{counts.unit}) has the weight of class {other} ({int(counts.train[other]):,}), "
            f"{weights[mine]:.3g}.",
            measured=f"class {mine} weighs what class {other} should",
            threshold="weights in the order of the class numbers",
            evidence=_table(counts),
            location=audit.loop.locate("loss"),
            fix="weight = len(y) / (classes * torch.bincount(y))  # by class number, not by "
            "frequency or by name",
        )

    def _overdone(
        self, audit: Audit, counts: Counts, weights: NDArray[np.float64] | None
    ) -> Result | None:
        """Warn where the weights of the loss make classes more uneven than they are."""
        found = None if weights is None else counts.weighed(weights)
        most = self.option(audit, "imbalance")
        if found is None or found.ratio <= most or found.p_within(most) >= stats.ALPHA:
            return None
        if _samples(audit):
            return None  # how often a class comes is not how many rows it has
        rows, heavy, light = counts.train, found.heavy, found.light
        if rows[heavy] > rows[light] and found.ratio <= counts.ratio:
            return None  # it helps a little: the square root of the inverse shares, say
        return self.warned(
            f"With the class weights of the loss, class {heavy} ({int(rows[heavy]):,} training "
            f"rows) counts {found.ratio:.1f} times as much as class {light} ({int(rows[light]):,} "
            "rows): the weights do not balance the classes.",
            measured=f"{found.ratio:.0f} to 1 with weights",
            threshold=f"{most:g} to 1",
            evidence=_table(counts),
            location=audit.loop.locate("loss"),
            fix="weight = len(y) / (classes * torch.bincount(y))  # for BCE pos_weight = "
            "negatives / positives",
        )

    def _rare(self, audit: Audit, counts: Counts, declared: str) -> Result:
        most = self.option(audit, "imbalance")
        present = np.flatnonzero(counts.train)
        if len(present) < 2:
            return self.skipped(
                f"All {int(counts.train.sum()):,} {counts.unit} belong to one class."
            )
        message = (
            f"The rarest class ({counts.rarest}) has {int(counts.train[counts.rarest]):,} "
            f"{counts.unit}, the commonest ({counts.commonest}) "
            f"{int(counts.train[counts.commonest]):,}: a ratio of {counts.ratio:.1f} to 1"
        )
        if counts.ratio <= most or counts.p_within(most) >= stats.ALPHA:
            return self.passed(f"{message}.", evidence=_table(counts))
        if declared:
            return self.passed(f"{message}, and the program {declared}.", evidence=_table(counts))
        if counts.dense:
            return self.noted(
                f"{message}. Report IoU or F1 per class besides accuracy.", evidence=_table(counts)
            )
        return self.warned(
            f"{message}. Accuracy says little about the rare class: report macro F1 or balanced "
            "accuracy.",
            measured=f"{counts.ratio:.0f} to 1",
            threshold=f"{most:g} to 1",
            evidence=_table(counts),
            location=audit.loop.locate("train_loader"),
            fix='f1_score(labels, predictions, average="macro")  # instead of accuracy',
        )


def balanced_twice(seen: SampledClasses, weights: NDArray[np.float64] | None) -> float | None:
    """Return how much more the rarest class counts than the commonest, sampler and loss together.

    None where ``weights`` of the loss are not known, the sampler does not draw all classes about
    equally often, or the two classes count about the same.
    """
    of_set, present = Counts(seen.rows), np.flatnonzero(seen.rows)
    if weights is None or len(present) < 2 or len(weights) != len(seen.rows):
        return None
    drawn = seen.drawn[present]
    if of_set.ratio < _TWICE or drawn.max() > _UNEVEN * drawn.min():
        return None
    effect = float(weights[of_set.rarest] / max(weights[of_set.commonest], 1e-12))
    return effect if effect > _TWICE else None


def _truncated(first: First, main: MainLoss) -> tuple[int, int] | None:
    """Return how many levels the loader's fractions have, and how many are left as integers.

    None where the classes that the loss gets are no fractions from 0 to 1 cut off, or all are kept.
    """
    levels: set[float] = set()
    kept: set[float] = set()
    for batch, call in zip(first.batches, main.calls, strict=False):
        if call.kind not in CLASSES or call.target.is_floating_point():
            return None
        given = call.target.detach().cpu().reshape(-1)
        source = next((t for _, t in batches.tensors(batch) if _cut_to(t, given)), None)
        if source is None:
            return None
        levels |= set(torch.unique(source.detach().cpu().double()).tolist())
        kept |= set(torch.unique(given).tolist())
    classes = _number_of_classes(main.calls[0])
    lost = len(kept) < min(len(levels), classes) and len(levels) <= _LEVELS and max(levels) <= 1.0
    return (len(levels), len(kept)) if lost else None


def rows_left_out(call: LossCall, labels: NDArray[np.generic] | None, size: int) -> int:
    """Return how many ``labels``, one per row, are a class that the loss ignores.

    0 where a batch of ``size`` rows has more labels than rows, as texts and masks have.
    """
    ignored = call.arguments.get("ignore_index")
    if labels is None or labels.ndim != 1 or ignored is None or call.kind not in CLASSES:
        return 0
    if call.target.shape != (size,) or not 0 <= ignored < _number_of_classes(call):
        return 0
    return int((labels == ignored).sum())


def _cut_to(values: Tensor, classes: Tensor) -> bool:
    """Whether ``classes`` are ``values`` without their fractions."""
    if not values.is_floating_point() or values.numel() != classes.numel():
        return False
    return torch.equal(values.detach().cpu().reshape(-1).to(classes.dtype), classes)


def _of_classes(first: First) -> MainLoss | None:
    """Return the loss that compares with classes; None where none does."""
    for main in first.supervised:
        if main.calls[0].kind in CLASSES | BINARY:
            return main
    return None


def _counted(first: First, main: MainLoss, train: Rows, val: Rows | None) -> Counts | None:
    """Count rows by the loader's targets where these are what the loss takes, else by the loss's.

    None where there is nothing to count.
    """
    call = main.calls[0]
    classes = _number_of_classes(call)
    labels = _labels(train.targets, call, classes)
    if not _is_given(call, first.targets[0]):
        return None
    if labels is not None:
        theirs = _labels(val.targets, call, classes) if val is not None else None
        held_out = np.bincount(theirs, minlength=classes) if theirs is not None else None
        return Counts(np.bincount(labels, minlength=classes), held_out)
    if call.kind not in CLASSES or classes > _FEW_CLASSES or call.target.is_floating_point():
        return None
    if first.repeats_one_batch:  # a mask over all rows: what it leaves is the whole training set
        chosen = call.target.ndim == 1 and batches.size(first.batches[0]) > len(call.target)
        masked = _valid(call.target, call, classes) if chosen else ()
        return Counts(np.bincount(masked, minlength=classes)) if len(masked) else None
    found = [_valid(each.target, each, classes) for each in main.calls]
    # Flattened, they may be a language's next words: of those the weights alone are judged.
    flattened = call.target.ndim < 2 and not _is_dense(first.targets[0])
    unweighted = call.target.ndim < 2 and _weights(call, classes) is None
    if flattened or unweighted or not found:
        return None
    return Counts(np.bincount(np.concatenate(found), minlength=classes), dense=True)


def _why_uncounted(first: First, main: MainLoss) -> str:
    """Return why there are no classes of rows."""
    call = main.calls[0]
    if not _is_given(call, first.targets[0]):
        return "The loss compares with what the step makes, not with classes that rows come with."
    if call.target.is_floating_point() and bool(((call.target != 0) & (call.target != 1)).any()):
        return "The targets are shares between 0 and 1, not classes."
    return "The rows have no class each: their targets are tokens, or many of them."


def _is_dense(target: Any) -> bool:
    return isinstance(target, Tensor) and target.ndim > 1 and target[0].numel() > 1


def _is_given(call: LossCall, target: Any) -> bool:
    """Whether the loss takes the loader's target: not one made in the step, as in contrasting.

    Class probabilities may be mixed of it.
    """
    if call.kind in CLASSES and call.target.is_floating_point():
        return True
    return bool(batches.paths_of(target, call.target))


def _number_of_classes(call: LossCall) -> int:
    source = call.input
    if call.kind in BINARY:
        return 2
    return source.shape[1] if source.ndim > 1 else source.shape[0]


def _labels(
    values: NDArray[np.generic] | None, call: LossCall, classes: int
) -> NDArray[np.int64] | None:
    """The classes of rows that have one each; None where they have not."""
    if values is None or values.ndim != 1 or len(values) == 0:
        return None
    # A batch of one row may give its number alone, without a dimension.
    if call.kind in BINARY and call.input.ndim and call.input.numel() != call.input.shape[0]:
        return None  # several labels per row
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
        return None
    if call.kind in CLASSES and call.target.ndim > 1 and not call.target.is_floating_point():
        return None
    kept = _valid(torch.from_numpy(values.astype(np.int64)), call, classes)
    # What the loss does not take was something else, or is for DATA102 to say.
    return kept if len(kept) >= 0.5 * len(values) else None


def _valid(target: Tensor, call: LossCall, classes: int) -> NDArray[np.int64]:
    flat = target.detach().cpu().reshape(-1).long()
    ignored = call.arguments.get("ignore_index", -100)
    keep = (flat >= 0) & (flat < classes) & (flat != (-100 if ignored is None else ignored))
    return np.asarray(flat[keep])


def _declared(audit: Audit, main: MainLoss, weights: NDArray[np.float64] | None) -> str:
    """Say how the program shows that it knows of an imbalance; empty where it does not."""
    call = main.calls[0]
    given = any(isinstance(call.arguments.get(name), Tensor) for name in ("weight", "pos_weight"))
    if given or weights is not None:
        return "weights its loss by class"
    if call.reduction == "none" and (not main.whole or abs(main.factor - 1) > 0.02):
        return "weights its loss row by row"
    return "draws its rows with a sampler of its own" if _samples(audit) else ""


def _samples(audit: Audit) -> bool:
    """Whether a sampler of the program's decides how often a row comes."""
    access = RandomAccess.of(audit.loop.train_loader)
    return access is not None and type(access.sampler) not in _UNIFORM


def _weights(call: LossCall, classes: int) -> NDArray[np.float64] | None:
    """Return what the loss weighs each class with; None where it does not."""
    name = "pos_weight" if call.kind in BINARY else "weight"
    given = call.arguments.get(name)
    if not isinstance(given, Tensor):
        return None
    values = np.asarray(given.detach().double().cpu().reshape(-1))
    if call.kind in BINARY:
        return np.array([1.0, values[0]]) if len(values) == 1 else None
    return values if len(values) == classes else None


def _measured_weights(audit: Audit, counts: Counts) -> NDArray[np.float64] | None:
    """Return what rows of each class pull with; None where that is not known, or all the same."""
    measured = audit.probe(WeightsByRow)
    if measured is None or counts.dense or len(measured.weights) != len(counts.train):
        return None
    seen = measured.weights[measured.weights > 0]
    return measured.weights if seen.max() > _UNEVEN * seen.min() else None


def _unseen(counts: Counts, expected: float) -> NDArray[np.intp]:
    """The classes that validation has and training should have, by chance, and has not."""
    if counts.val is None or counts.val.sum() == 0:
        return np.zeros(0, dtype=np.intp)
    mine, theirs = int(counts.train.sum()), int(counts.val.sum())
    absent = (counts.train == 0) & (counts.val / theirs * mine >= expected)
    dealt = (theirs / (mine + theirs)) ** counts.val.astype(np.float64)
    return np.flatnonzero(absent & (dealt * len(counts.train) < stats.ALPHA))


def _named(classes: NDArray[np.intp]) -> str:
    listed = ", ".join(str(each) for each in classes[:5].tolist())
    if len(classes) == 1:
        return f"class {listed}"
    return f"classes {listed}{f' and {len(classes) - 5} more' if len(classes) > 5 else ''}"


def _table(counts: Counts) -> tuple[Evidence, ...]:
    order = np.argsort(counts.train, kind="stable")[:_LISTED]
    val = counts.val
    columns = ("class", "training rows", *(("validation rows",) if val is not None else ()))
    rows = tuple(
        (float(c), float(counts.train[c]), *((float(val[c]),) if val is not None else ()))
        for c in order
    )
    return (Table(title="Rows of each class, rarest first", columns=columns, rows=rows),)
