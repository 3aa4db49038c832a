"""GEN105: whether the metric ranks perfect predictions first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.checks.gen.metric_sample import FEWEST, Sample, exchanged, samples_of
from nnaudit.checks.gen.metric_units import (
    better_off_target,
    late_yes,
    moved_together,
    off_zero,
    unlabelled,
)
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.observation import Broadcast
from nnaudit.measure.metric_calls import Misgiven, misgiven
from nnaudit.measure.metric_code import (
    BatchMean,
    LastBatch,
    StaleBest,
    WrongChoice,
    batch_means,
    last_batches,
    stale_bests,
    unreset_metrics,
    wrong_choices,
)
from nnaudit.measure.metric_names import best_is_one
from nnaudit.probes.box_forms import BoxForm, BoxForms
from nnaudit.probes.broadcasts import EvalBroadcasts, broadcasts_of_rows
from nnaudit.probes.compared_units import ComparedUnits, UnitsInValidation
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.metric_functions import MetricFunction, MetricFunctions
from nnaudit.probes.metric_resets import Collected, MetricResets
from nnaudit.probes.training_run import TrainingRun
from nnaudit.report import Kind, Location, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import Metric, plain
from nnaudit.targets.source import Source, source_of

_PARTED = 3.0
"""How far the means of what is compared are apart, in deviations, or the deviations in times, where
something else was done to the targets than to the outputs."""

REPEATS = 20
"""Permutations: that a metric falls on the wrong side in all of them has a chance of 2 ** -20."""


class MetricMeaning(Check):
    """Does the metric rate perfect predictions as perfect, and random ones worse?

    Why: The metric decides which model is kept. One that compares the wrong axis, broadcasts, or
        swaps its arguments gives plausible numbers for years. And on imbalanced data accuracy is
        high for a network that always predicts the same class.
    How: Your metric (metric(output, target) by name, an object with update and compute, a function
        of scikit-learn) is given outputs that state the validation targets with certainty, the same
        with 10% of the rows exchanged at random, and with all rows exchanged. It fails in three
        cases. All 20 random exchanges of all rows get exactly the value of perfect predictions. All
        40 exchanges of 10% are judged better than perfect (by chance 2 ** -40). Or a metric named
        accuracy, F1, IoU, recall and the like (and not for their loss) is neither 1 nor 100 nor the
        number of rows on perfect predictions.
        - A function of two arguments that validation calls with predictions and a field of the
          batch, and whose name is accuracy, F1, IoU, recall or the like, is tried in the same way,
          in the form of the predictions that it is given. One that counts classes that do not occur
          as 0 is not judged where some do not.
        - It also fails when the training loop asks whether tensors of shapes (N, 1) and (N,) are
          equal, N being the rows of the batch, with a row less too, and not both are fields of
          the batch: all pairs are compared. So it does in validation, where one of the two comes
          from a decision (argmax, a threshold) and N is the rows that the network was given; and
          where a field of the batch is subtracted from the output there, as for a mean error.
        - It fails when validation asks which outputs are above 0.5, some of them being no
          probabilities, and the loss is binary_cross_entropy_with_logits.
        - It fails when validation takes the largest (argmax, max) along an axis of one output.
        - By the source, it fails when the highest loss or the lowest accuracy is kept for the best:
          where the two are compared, a network saved and a name with "best" set, or in a callback's
          `monitor` and `mode`; when a network is saved under a comparison with a name with "best"
          that holds nothing but its first value (0, 1, infinity); when hits are set anew with each
          of several batches, and read after the loop; and when hits are summed over batches and
          divided by the number of batches, or given to a meter that counts each of them for one
          value. It warns when F1, AUC, perplexity
          and the like are gathered batch by batch, or their values logged in Lightning's validation
          step: their mean over batches is not their value.
        - By the source, it fails when AUC or average precision of scikit-learn's is given decided
          classes (argmax, round, a threshold) for scores: of k thresholds it then sees one, and
          gives the balanced accuracy. It warns when precision, recall, R2 and others that are not
          symmetric are given predictions where they take labels.
        - It fails when validation compares boxes by a function of torchvision's that takes corners,
          and at least `inverted` of the data's have a right side left of the left one.
        - It fails when a function that compares quantities (of scikit-learn's, or one whose name
          says MAE, MSE and the like) is given the network's outputs, or a line of them, and
          targets of which the mean or the deviation is `units` deviations or times off that of the
          loss's targets in the same unit: only one of the two was scaled back. 3 are enough where
          targets, as the loader gives them, and outputs were multiplied by different numbers. It
          fails, too, when the targets of each row are compared in another order than by the loss.
        - In the form of the model's own output, and of the loss's: it fails when perfect
          predictions get exactly the share of targets that have a label, and warns when what is
          predicted for the others changes the value; fails when an error (MAE, MSE) of perfect
          predictions is not 0, or when predictions that are all off the target by one number are
          rated better, and such far off are not: two units; warns when a number added to the
          logits of all classes changes the value, or when logits are compared with 0.5.
        - It fails when a metric of torchmetrics' holds more updates after each of three ends of
          epochs: it is not reset. Where Lightning counts the epochs, the source shows it: a metric
          that is made once, is computed where an epoch ends, and is neither reset nor logged.
        - Of several values, those that no exchange changes and that have no such name, such as a
          number of rows or a mean prediction, are not judged as long as another value changes.
        - Metrics of libraries need not be 1: a label that does not occur may count as 0. So may it
          in your own, accuracy excepted, where not all classes occur.
        - It warns where the share of one class is at least the option `majority` and accuracy is
          all that is measured.
        - It notes where the mean over the loader's batches differs from the value on all
          predictions by more than the option `batches`.
        - Without a metric of your own the usual ones of a short run are shown, of the next tokens
          of a text perplexity; a note says where accuracy is 0.1 or more above balanced accuracy.
    Fix: compute the metric from all predictions at once, f1_score(all_targets, all_predictions).
        On imbalanced data report balanced accuracy or F1 beside accuracy, for pixels IoU, for
        next-token prediction perplexity.
    References: Opitz and Burst, Macro F1 and Macro F1 (2019); Brodersen et al., The balanced
        accuracy and its posterior distribution (ICPR 2010).
    """

    code, name, kind = "GEN105", "metric", Kind.STATISTICAL
    needs = (Needs.STEPS, Needs.TARGETS)
    probes = (
        FirstSteps, EvalBroadcasts, BoxForms, UnitsInValidation, MetricResets, MetricFunctions,
        TrainingRun,
    )  # fmt: skip
    trains = True
    options: ClassVar[dict[str, float]] = {
        "batches": 0.02,
        "majority": 0.9,
        "inverted": 0.25,
        "units": 10.0,
    }

    def run(self, audit: Audit) -> Result:
        """Try each metric, then look at what they say of the network."""
        wrong = (
            self._used_wrongly(audit)
            or self._never_emptied(audit)
            or self._written_wrongly(audit)
            or self._of_functions(audit)
        )
        if wrong is not None:
            return wrong
        samples = samples_of(audit.probe(TrainingRun), audit.loop)
        if not samples:
            return self.skipped(
                f"Not judged: {FEWEST} predictions with targets of a known kind could not be read "
                "off the loss of a short run."
            )
        metrics = audit.loop.metrics
        if not metrics:
            return self._without(samples[0])
        return self._of_metrics(audit, metrics, samples)

    def _of_metrics(
        self, audit: Audit, metrics: Sequence[Metric], samples: Sequence[Sample]
    ) -> Result:
        """Try each metric on predictions in the forms that it may take: one form must suit it."""
        suiting = samples[0]
        try:
            for metric in metrics:
                found = self._in_each_form(audit, metric, samples)
                if isinstance(found, Result):
                    return found
                suiting = found
            return self._right(audit, metrics, suiting)
        except UserCodeError as error:
            return self.inconclusive(
                "Not judged: the metric raised an error when called with the output and target "
                f"that the loss is given ({error.original}).",
                location=error.location,
            )

    def _in_each_form(
        self, audit: Audit, metric: Metric, samples: Sequence[Sample]
    ) -> Result | Sample:
        """Return the sample that ``metric`` rates well, else what is wrong with it.

        Raises:
            UserCodeError: it raised on all of them.
        """
        findings: list[Result] = []
        errors: list[UserCodeError] = []
        for sample in samples:
            try:
                found = self._askew(audit, metric, sample) or self._wrong(audit, metric, sample)
            except UserCodeError as error:
                errors.append(error)
                continue
            if found is None:
                return sample
            findings.append(found)
        if not findings:
            raise errors[0]
        return findings[0]

    def _of_functions(self, audit: Audit) -> Result | None:
        """Try the functions that validation calls, in the place of metrics that are handed over."""
        for function in audit.probe(MetricFunctions):
            if len(function.target) < FEWEST:
                continue
            with suppress(UserCodeError):
                found = [self._wrong(audit, each, each) for each in function.forms()]
                if all(finding is not None for finding in found):
                    return found[0]
        return None

    def _never_reset(self, audit: Audit, metric: Collected) -> Result:
        *_, before, after = metric.updates
        return self.failed(
            f"{metric.name} is not reset between epochs: it holds {before} updates after one "
            f"epoch's end and {after} after the next, so its value is of all epochs so far.",
            measured=f"{before}, then {after} updates",
            threshold="those of one epoch",
            location=audit.loop.locate("metric"),
            fix="metric.reset()  # after metric.compute(), at the end of every epoch",
        )

    def _used_wrongly(self, audit: Audit) -> Result | None:
        """Look at how the program computes its metrics, whatever they are."""
        first = audit.probe(FirstSteps)
        for each in broadcasts_of_rows(audit, first):
            given = [_is_field(first, values) for values in each.compared]
            if given and not all(given):  # labels of one batch with each other may be by design
                return self._compares_all_pairs(each)
        evaluated = audit.probe(EvalBroadcasts)
        for each in evaluated.pairs:
            return self._compares_all_pairs(each)
        for line in evaluated.of_one:
            return self._chooses_of_one(line)
        if evaluated.halved and _are_logits(first):
            return self._halves_logits(evaluated.halved[0])
        return self._of_two_kinds(audit)

    def _of_two_kinds(self, audit: Audit) -> Result | None:
        """Look at what validation compares, and whether its metrics begin anew."""
        for form in audit.probe(BoxForms):
            if not form.trains and form.inverted >= self.option(audit, "inverted"):
                return self._no_corners(form)
        for units in audit.probe(UnitsInValidation) or ():
            least = _PARTED if units.parted else self.option(audit, "units")
            if units.apart >= least:
                return self._two_units(units, least)
            if units.turned:
                return self._in_another_order(units)
        collected = audit.probe(MetricResets)
        return self._never_reset(audit, collected[0]) if collected else None

    def _no_corners(self, form: BoxForm) -> Result:
        return self.failed(
            f"{form.function} takes corners (left, top, right, bottom), and validation gives it "
            f"{form.boxes} boxes of which {form.inverted:.0%} have their right side left of the "
            "left one, or their bottom above the top: they are in another form.",
            measured=f"{form.inverted:.0%} of the boxes inside out",
            threshold="0%",
            location=form.location,
            fix=f'{form.function}(box_convert(predicted, "cxcywh", "xyxy"), '
            'box_convert(target, "cxcywh", "xyxy"))',
        )

    def _two_units(self, seen: ComparedUnits, least: float) -> Result:
        trained, compared = (
            f"{mean:.3g} with a standard deviation of {deviation:.3g}"
            for mean, deviation in (seen.trained, seen.compared)
        )
        return self.failed(
            f"{seen.function} compares predictions and targets in two units: the network is "
            f"trained on targets of mean {trained} in the unit of these predictions, and they are "
            f"compared with targets of mean {compared}.",
            measured=f"mean {compared}",
            threshold=f"mean {trained}, within a factor of {least:g}",
            location=seen.location,
            fix="undo the scaling of both: scaler.inverse_transform(output) against targets in "
            "their own unit, or both scaled",
        )

    def _in_another_order(self, seen: ComparedUnits) -> Result:
        return self.failed(
            f"{seen.function} compares the outputs with the targets of their rows in another order "
            "than the loss does in training: each number with that of another place.",
            measured="targets in another order",
            threshold="the order of the loss",
            location=seen.location,
            fix="compare output and target as the loss does: loss_fn(output, target)",
        )

    def _never_emptied(self, audit: Audit) -> Result | None:
        """Read which metrics Lightning does not reset."""
        for file in _files(audit):
            for metric, line in unreset_metrics(source_of(file)):
                return self._keeps_all(metric, Location(file=file, line=line))
        return None

    def _written_wrongly(self, audit: Audit) -> Result | None:
        """Read how the program computes its metrics, and what it keeps by them."""
        for file in _files(audit):
            source = source_of(file)
            if (kept := self._wrongly_kept(source, file)) is not None:
                return kept
            for given in misgiven(source):
                return self._misgiven(given, file)
            for last in last_batches(source):
                if _are_several(audit.loop.val_loader):
                    return self._is_of_the_last_batch(last, file)
            for mean in batch_means(source):
                if not mean.hits:
                    return self._averages(mean, file)
                if (size := _batch_size(audit)) > 1:
                    return self._divides_by_batches(mean, file, size)
        return None

    def _wrongly_kept(self, source: Source, file: str) -> Result | None:
        for choice in wrong_choices(source):
            return self._keeps_the_worst(choice, file)
        for stale in stale_bests(source):
            return self._keeps_the_last(stale, file)
        return None

    def _keeps_all(self, metric: str, where: Location) -> Result:
        return self.failed(
            f"{metric} is computed at the end of an epoch and never reset: Lightning resets a "
            "metric that it is given itself to log, not one whose value it is given, so from the "
            "second epoch on the value is of all epochs so far.",
            measured=f"no {metric}.reset()",
            threshold="a metric of one epoch",
            location=where,
            fix=f"{metric}.reset() after compute(), or self.log(name, {metric}) in the step",
        )

    def _keeps_the_worst(self, choice: WrongChoice, file: str) -> Result:
        kept, better = ("highest", "lower") if choice.highest else ("lowest", "higher")
        sign = "<" if choice.highest else ">"
        return self.failed(
            f"The network with the {kept} {choice.metric} is kept for the best, and {better} is "
            "better.",
            measured=f"the {kept} {choice.metric}",
            threshold=f"a {better} {choice.metric} is better",
            location=Location(file=file, line=choice.line),
            fix=f'compare with {sign}, or mode="{"min" if choice.highest else "max"}", and start '
            f"from {'infinity' if choice.highest else 'minus infinity'}",
        )

    def _keeps_the_last(self, stale: StaleBest, file: str) -> Result:
        return self.failed(
            f"{stale.best} is compared with {stale.metric} and never set to it: every epoch beats "
            "it, and what is kept for the best network is the last one.",
            measured=f"{stale.best} keeps its first value",
            threshold="the best value so far",
            location=Location(file=file, line=stale.line),
            fix=f"{stale.best} = {stale.metric}, where the network is saved",
        )

    def _misgiven(self, given: Misgiven, file: str) -> Result:
        where = Location(file=file, line=given.line)
        if given.swapped:
            return self.warned(
                f"{given.metric} is given the predictions ({given.given}) first, where it takes "
                "the labels: they have changed places, and its value is another one.",
                measured=f"{given.metric}({given.given}, ...)",
                threshold=f"{given.metric}(labels, predictions)",
                location=where,
                fix=f"{given.metric}(labels, {given.given})",
            )
        return self.failed(
            f"{given.metric} ranks rows by a score, and is given classes that were decided for "
            f"({given.given}): of all thresholds it sees one, and its value is too low.",
            measured="classes",
            threshold="scores or probabilities",
            location=where,
            fix=f"{given.metric}(labels, logits.softmax(1)[:, 1])  # not argmax",
        )

    def _averages(self, mean: BatchMean, file: str) -> Result:
        return self.warned(
            f"{mean.metric} is computed on each batch and averaged: its mean over batches is not "
            "its value on all rows, and depends on the batch size and on the order.",
            measured="a value for each batch",
            threshold="one value of all rows",
            location=Location(file=file, line=mean.line),
            fix="add up the losses, and take exp of their mean once, after the loop"
            if mean.exponential
            else f"collect outputs and targets, and call {mean.metric} once, after the loop; or "
            "log a metric object of torchmetrics itself, which gathers counts",
        )

    def _divides_by_batches(self, mean: BatchMean, file: str, size: int) -> Result:
        return self.failed(
            f"{mean.metric} counts the right rows, and is averaged over the batches of "
            f"{mean.loader}: perfect predictions would get {size}, the batch size.",
            measured="hits / batches",
            threshold="hits / rows",
            location=Location(file=file, line=mean.line),
            fix="divide the hits by the number of rows; in a meter: "
            "meter.update(hits / len(y), len(y))",
        )

    def _chooses_of_one(self, line: Location | None) -> Result:
        return self.failed(
            "Validation takes the largest of a single output for each row: its index is 0 whatever "
            "the network says, so every row is said to be of class 0.",
            measured="argmax over 1 output",
            threshold="two outputs or more, or a threshold",
            location=line,
            fix="decide by a threshold: predicted = (logits > 0).squeeze(1)",
        )

    def _halves_logits(self, line: Location | None) -> Result:
        return self.failed(
            "Validation says yes where a logit is above 0.5: that is a probability above 0.62, for "
            "the loss takes what the network returns as logits.",
            measured="a threshold of 0.5 on logits",
            threshold="0 on logits, or 0.5 on probabilities",
            location=line,
            fix="predicted = logits > 0  # or torch.sigmoid(logits) > 0.5",
        )

    def _is_of_the_last_batch(self, last: LastBatch, file: str) -> Result:
        return self.failed(
            f"{last.metric} is set anew with every batch of {last.loader}, and read when the loop "
            "is over: it is the metric of the last batch, not of all rows.",
            measured="the last batch",
            threshold="all batches",
            location=Location(file=file, line=last.line),
            fix=f"{last.metric} += ... in the loop, and divide by the number of rows after it",
        )

    def _compares_all_pairs(self, seen: Broadcast) -> Result:
        column, flat = sorted(seen.shapes, key=len, reverse=True)
        return self.failed(
            f"Tensors of shapes {column} and {flat} are compared: each prediction with each "
            f"target, {column[0]} x {flat[0]} comparisons in place of {column[0]}.",
            measured=f"{column} and {flat}",
            threshold="equal shapes",
            location=seen.location,
            fix="compare equal shapes: predictions.squeeze(1) == labels",
        )

    def _wrong(
        self, audit: Audit, metric: Metric | MetricFunction, sample: Sample | MetricFunction
    ) -> Result | None:
        """Return what is wrong with ``metric`` on predictions of known quality."""
        target = sample.target
        perfect = metric.value(sample.ideal(target), target)
        random = [metric.value(exchanged(sample, 1.0, i), target) for i in range(REPEATS)]
        tenths = [metric.value(exchanged(sample, 0.1, i), target) for i in range(2 * REPEATS)]
        varied = len(torch.unique(target)) > 1
        tells = {n for n, best in perfect.items() if any(values[n] != best for values in random)}
        for name, best in perfect.items():
            if tells and name not in tells and not best_is_one(name):
                continue
            chance = [values[name] for values in random]
            mean = sum(chance) / len(chance)
            evidence = _trial(name, best, [values[name] for values in tenths], mean)
            details: dict[str, Any] = {
                "evidence": (evidence,),
                "location": metric.location
                if isinstance(metric, MetricFunction)
                else audit.loop.locate("metric"),
                "measured": f"{best:.4g} on perfect predictions, {mean:.4g} on random ones",
            }
            if varied and all(value == best for value in chance):
                return self.failed(
                    f"{name} is {best:.4g} for perfect predictions and exactly the same for "
                    "random ones: it does not measure the predictions.",
                    threshold="a better value for perfect predictions",
                    fix="compare row by row, with equal shapes: (output.argmax(1) == target)",
                    **details,
                )
            up = mean > best
            if varied and all((values[name] > best) is not up and values[name] != best
                              for values in tenths):  # fmt: skip
                return self.failed(
                    f"{name} rates predictions of which 10% are wrong better than perfect ones "
                    f"({best:.4g}), in all of {len(tenths)} trials.",
                    threshold="the best value for perfect predictions",
                    fix="check the order of the arguments and the axis: metric(output, target)",
                    **details,
                )
            held_to_one = best_is_one(name) and (
                not isinstance(sample, Sample) or sample.whole or "acc" in name.lower()
            )
            if held_to_one and not metric.of_library and not _is_perfect(best, target):
                return self.failed(
                    f"{name} is {best:.4g} for perfect predictions, and should be 1.",
                    threshold="1, or 100%, or the number of rows",
                    fix="check axis and shapes: (output.argmax(1) == target).float().mean()",
                    **details,
                )
        return None

    def _askew(self, audit: Audit, metric: Metric, sample: Sample) -> Result | None:
        """Return what is wrong in how ``metric`` reads such outputs; a library's reads as it says.

        That is which targets it counts, in which unit it compares, and from where on it says yes.
        """
        if metric.of_library or len(torch.unique(sample.target)) < 2:
            return None
        for told in (unlabelled, moved_together, late_yes, off_zero, better_off_target):
            finding = told(metric, sample)
            if finding is not None:
                answer = self.failed if finding.certain else self.warned
                return answer(
                    finding.message,
                    measured=finding.measured,
                    threshold=finding.threshold,
                    location=audit.loop.locate("metric"),
                    fix=finding.fix,
                )
        return None

    def _right(self, audit: Audit, metrics: Sequence[Metric], sample: Sample) -> Result:
        values = {k: v for m in metrics for k, v in m.value(sample.output, sample.target).items()}
        usual = plain(sample.task, *sample.known)
        evidence = (_table(sample, usual, values),)
        only_accuracy = sample.task != "numbers" and all(
            abs(value - usual["accuracy"]) < 1e-6 for value in values.values()
        )
        if only_accuracy and sample.majority >= self.option(audit, "majority"):
            return self.warned(
                f"{100 * sample.majority:.0f}% of the targets are of one class, and accuracy is "
                "the only metric: a network that always predicts that class would score "
                f"{sample.majority:.2f}.",
                measured=f"balanced accuracy {usual['balanced accuracy']:.2f}, macro F1 "
                f"{usual['macro F1']:.2f}",
                threshold=f"{100 * self.option(audit, 'majority'):.0f}% of one class",
                evidence=evidence,
                location=audit.loop.locate("metric"),
                fix="add sklearn.metrics.balanced_accuracy_score(targets, predictions), or "
                'f1_score(..., average="macro")',
            )
        for metric in metrics:
            if (note := self._by_batch(audit, metric, sample, evidence)) is not None:
                return note
        told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        return self.passed(
            f"The metric is best on perfect predictions and worse on random ones. After "
            f"{sample.steps} steps: {told}.",
            evidence=evidence,
        )

    def _by_batch(
        self, audit: Audit, metric: Metric, sample: Sample, evidence: tuple[Table, ...]
    ) -> Result | None:
        if metric.stateful or len(sample.batches) < 2:
            return None
        whole = metric.value(sample.output, sample.target)
        each = [metric.value(output, target) for output, target in sample.batches]
        for name, value in whole.items():
            mean = sum(values[name] for values in each) / len(each)
            if abs(value) <= 1 and abs(mean - value) > self.option(audit, "batches"):
                return self.noted(
                    f"{name} is {value:.3f} on all {len(sample.target)} rows at once, but "
                    f"{mean:.3f} as the mean over {len(each)} batches: averaged over batches, it "
                    "depends on the batch size.",
                    evidence=evidence,
                    location=audit.loop.locate("metric"),
                    fix="collect all predictions and compute it once: "
                    "metric(torch.cat(outputs), torch.cat(targets))",
                )
        return None

    def _without(self, sample: Sample) -> Result:
        usual = plain(sample.task, *sample.known)
        evidence = (_table(sample, usual, {}),)
        told = ", ".join(f"{name} {value:.3g}" for name, value in usual.items())
        data = "validation" if sample.validation else "training"
        shown = f"on {data} data after {sample.steps} steps: {told}"
        if sample.words:
            perplexity = float(F.cross_entropy(*sample.known).exp())
            return self.skipped(
                f"No metric of your own was found; on {data} data after {sample.steps} steps: "
                f"perplexity {perplexity:.4g}, {100 * usual['accuracy']:.0f}% of the tokens right."
            )
        if sample.task != "numbers" and usual["accuracy"] - usual["balanced accuracy"] > 0.1:
            return self.noted(
                "Accuracy alone hides that frequent classes are predicted better than rare ones "
                f"(most frequent: {100 * sample.majority:.0f}% of the targets); {shown}.",
                evidence=evidence,
                fix="report balanced accuracy or macro F1 beside accuracy, for pixels mean IoU, "
                "for next-token prediction perplexity: loss.exp()",
            )
        return self.skipped(f"No metric of your own was found; {shown}.", evidence=evidence)


def _batch_size(audit: Audit) -> int:
    """Return the fewest rows that a batch of either loader has; 0 where that is not known."""
    loaders = [
        each for each in (audit.loop.val_loader, audit.loop.train_loader) if each is not None
    ]
    return min(int(getattr(loader, "batch_size", None) or 0) for loader in loaders)


def _are_logits(first: First) -> bool:
    """Whether the loss takes what the network returns as the logits of yes and no."""
    main = first.main_loss
    return main is not None and {call.kind for call in main.calls} == {"bce_with_logits"}


def _are_several(loader: Any) -> bool:
    """Whether ``loader`` is known to have more than one batch."""
    with suppress(TypeError, NotImplementedError, AttributeError):
        return len(loader) > 1
    return False


def _is_field(first: First, values: Tensor) -> bool:
    return any(batches.paths_of(batch, values) for batch in first.batches)


def _files(audit: Audit) -> dict[str, None]:
    """Return the user's files with the steps and the loaders."""
    places = map(audit.loop.locate, ("training_step", "train_loader", "val_loader"))
    return dict.fromkeys(place.file for place in places if place is not None)


def _is_perfect(value: float, target: Tensor) -> bool:
    return any(abs(value - best) <= 1e-3 * best for best in (1, 100, len(target), target.numel()))


def _trial(name: str, perfect: float, tenths: list[float], random: float) -> Table:
    return Table(
        title=f"{name} of predictions of known quality",
        columns=("predictions", name),
        rows=(
            ("perfect", perfect),
            ("10% of the rows exchanged, mean", sum(tenths) / len(tenths)),
            ("all rows exchanged, mean", random),
        ),
    )


def _table(sample: Sample, usual: dict[str, float], own: dict[str, float]) -> Table:
    data = "validation" if sample.validation else "training"
    rows = [*((f"{name} (yours)", value) for name, value in own.items()), *usual.items()]
    return Table(
        title=f"Metrics on {len(sample.target)} {data} rows after {sample.steps} steps",
        columns=("metric", "value"),
        rows=tuple(rows),
    )
