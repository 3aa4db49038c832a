"""LOSS104: whether the loss falls when the output gets better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit import stats
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.control import output_replaced
from nnaudit.loop.losses import LossCall
from nnaudit.loop.total_loss import steady_ratio
from nnaudit.measure.term_gradients import output_gradients
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.loss_terms import LossTerms, Terms
from nnaudit.probes.ranked_pairs import RankedScores
from nnaudit.probes.triplets import TripletInputs
from nnaudit.report import Curve, Kind, Numbers, Result, Series, Status
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import main_tensor
from nnaudit.targets.source import source_of

_TOWARD = (0.3, 0.9)
"""How much of the way to the ideal output is gone."""

_PLACES, _NEAR = (-0.9, -0.3, 0.3, 0.9), 0.05
"""Where the slope of a term is read, and over which distance to both sides."""

_DEEP = 5.0
"""The logarithm of a wrong answer falls so many times farther than that of a right one rises."""

_GROUPS = 8
"""Parts of the batch that must agree, each moved alone."""

_ENDLESS = (1e2, 1e3, 1e4)
"""Outputs are raised and lowered by so many times their spread."""

_LINEAR = (9.0, 11.0)
"""A straight line falls ten times as far over ten times the distance."""

_SQUARE = 50.0
"""A square falls a hundred times as far over ten times the distance, a straight line ten times."""

_UNBOUNDED = ("Addmm", "Mm", "Convolution", "Bmm")
"""What makes outputs of any size: a layer without an activation behind it."""

_DENSE = 16
"""Answers per sample from which they are a mask."""

_ALL = 0.99
"""Of the scores that a ranking loss depends on: each pair is pulled apart in one direction."""

_ASYMMETRIC = ("bce", "bce_with_logits", "kl_div", "poisson_nll")
"""Losses that mean something else with input and target exchanged."""


@dataclass(frozen=True)
class OutputDirection:
    """One reading of output and target: ``moved(t)`` is better for t > 0 and worse for t < 0.

    Attributes:
        swapped: a confident answer that is off by k classes; None for quantities.
        classes: how many there are.
        far: an output that is worse without limit, by t; None for probabilities of classes.
        dense: there are many answers for a sample, as in a mask.
        pass_only: a reading so unlikely that only a pass is believed of it.
    """

    name: str
    moved: Callable[[float], Tensor]
    swapped: Callable[[int], Tensor] | None = None
    classes: int = 0
    far: Callable[[float], Tensor] | None = None
    dense: bool = False
    pass_only: bool = False

    @property
    def of_classes(self) -> bool:
        """Whether the output says which class is right, or whether one is."""
        return self.name in ("logits", "probabilities", "log-probabilities")


_FARTHER = 0.6
"""Share of triplets that are nearer to their negative from which the two have changed places: with
the right ones it is below a half, where nearness of inputs says anything."""


class LossDirection(Check):
    """Does the loss fall when the output moves toward the target?

    Why: A missing minus sign in front of a log-likelihood, "dice" returned instead of "1 - dice",
        or swapped input and target make the optimizer work towards the wrong answer, while the loss
        curve falls.
    How: Reads the sign where the total loss is a torch loss function times a constant in all of the
        first steps, and swapped arguments where the input of an asymmetric function (binary
        cross-entropy, KL, Poisson) is the data's target. Every other loss is tried out: the model's
        output is replaced by a better and by a worse one before the loss sees it (more of the right
        class in logits, probabilities or log-probabilities; nearer to the target for a quantity).
        - Passes when the loss falls under any interpretation of the output.
        - Fails when all interpretations agree that better outputs cost more and worse ones less, at
          every distance and in each of 8 parts of the batch alone, so that weights of either sign,
          such as rewards, do not count.
        - Besides, outputs that are not probabilities must get cheaper without limit as they get
          worse: distances, energies and standardised targets have a lower bound; or fall to a
          floor that is five times as far as they can rise (log(p + 1e-8)). Probabilities of
          the right classes must cost more than those of any other labelling, since a loss may
          renumber classes.
        - Where the total loss is a sum, fails for a term that depends on the targets and rises
          toward them, at each of four outputs on the way and in each of 8 parts of the batch, while
          another term falls: "dice" added to a cross-entropy, where "1 - dice" is meant. What does
          not depend on the targets, such as a penalty on confident outputs, may point anywhere.
        - Where the output is read as classes, fails for a loss that pulls outputs near the target
          towards it and pushes wrong ones further away, in each of 8 parts of the batch: a focal
          loss with p ** gamma for (1 - p) ** gamma. Gradients are read, not values: a weight that
          is detached turns nothing.
        - Fails for a loss against quantities without a lower bound: it falls along a straight line
          when all outputs of a layer are raised (or lowered) by 100, 1,000 and 10,000 times their
          spread, and does so for each of 8 parts of the batch: a pinball loss of which one side has
          the wrong sign. Losses that do not depend on the targets, as a critic's, are left out.
        - Fails for a loss that falls at least like the square of how far one of several outputs of
          the network is moved, by 100, 1,000 and 10,000 times its spread, and does so for each of 8
          parts of the batch: the KL divergence of a variational autoencoder with the wrong sign.
        - A ranking loss of two scores, of the data set's item and of one drawn at random (the model
          is called with both and one query): warns when it falls as the first score falls and the
          second rises, in 99% of the rows; fails where the program ranks by `topk`, for which the
          largest is best. Not judged where scores are made by norms, powers or a minus: distances.
        - Warns of a triplet loss of torch's when in 60% of the triplets of 8 batches (100 or more)
          the anchor's input is nearer to the negative's than to the positive's, and an even chance
          explains it with p < 1e-4: the two have changed places.
        - Not judged otherwise: embeddings, margins, and targets in several parts. `maximize=True`
          in the optimizer reverses the answer.
    Fix: `loss = -log_probability.mean()`, `loss = 1 - dice`; output first, target second.
    References: PyTorch documentation of BCELoss and KLDivLoss; Karpathy, "A Recipe for Training
        Neural Networks", 2019.
    """

    code, name, kind = "LOSS104", "loss-direction", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.SAME_BATCH)
    probes = (FirstSteps, LossTerms, RankedScores, TripletInputs)

    def run(self, audit: Audit) -> Result:
        """Find the direction in which the loss falls, and compare it with the optimizer's."""
        answer = self._direction(audit)
        groups = [group for o in audit.loop.optimizers for group in o.param_groups]
        if groups and all(group.get("maximize") for group in groups):
            return self._climbing(audit, answer)
        if answer.status is Status.FAIL or any(group.get("maximize") for group in groups):
            return answer
        return (
            self._by_slopes(audit)
            or self._bottomless(audit)
            or self._sinking(audit)
            or self._ranked_last(audit)
            or self._exchanged_triplets(audit)
            or answer
        )

    def _climbing(self, audit: Audit, answer: Result) -> Result:
        """Reverse the answer: the optimizer climbs, so better outputs must raise the loss."""
        if answer.status is Status.PASS:
            return self.failed(
                f"{answer.message.rstrip('.')}, but the optimizer increases it (maximize=True).",
                fix="Remove maximize=True from the optimizer.",
                measured="maximize=True",
                threshold="a score to be maximised, or maximize=False",
                evidence=answer.evidence,
                location=audit.loop.locate("optimizer"),
            )
        if answer.status is Status.FAIL:
            return self.passed(
                "The loss rises when the output gets better, and maximize=True increases it.",
                measured=answer.measured,
            )
        return answer

    def _direction(self, audit: Audit) -> Result:
        """Read the sign of known losses, and try out the others."""
        first = audit.probe(FirstSteps)
        if exchanged := _exchanged(first):
            return self._exchanged_arguments(exchanged)
        first.require()
        signed = _signed(first)
        if signed is None:
            return self._tried(audit, first)
        call, factor = signed
        if factor < 0 and _is_data(call.target, first):
            return self._negative(audit, call, factor)
        # Its input may have been turned on the way from the model.
        answer = self._tried(audit, first)
        if answer.status is not Status.INCONCLUSIVE or factor < 0:
            return answer
        return self.passed(
            f"The total loss is a positive multiple of {call.kind}.",
            measured=f"{factor:.3g} times {call.kind}",
        )

    def _exchanged_arguments(self, call: LossCall) -> Result:
        return self.failed(
            f"The arguments of {call.kind} are swapped: its input is the batch's target, and its "
            "target is the model's output.",
            fix=f"Pass the output first, the target second: F.{_function(call)}(output, target).",
            measured="input = target of the batch",
            threshold="input = output of the model",
            location=call.location,
        )

    def _negative(self, audit: Audit, call: LossCall, factor: float) -> Result:
        return self.failed(
            f"The total loss is {factor:.3g} times {call.kind}: training moves the output away "
            "from the target.",
            fix="Remove the minus sign in front of the loss.",
            measured=f"{factor:.3g} times {call.kind}",
            threshold="a positive factor",
            evidence=(Numbers(title="Total loss", values={f"factor of {call.kind}": factor}),),
            location=call.location or audit.loop.locate("loss"),
        )

    def _tried(self, audit: Audit, first: First) -> Result:
        trial = _Trial(audit, first)
        if trial.reason:
            return self.inconclusive(trial.reason)
        if trial.output.ndim == 0:
            return self.inconclusive("The model returns a single number, not one per row.")
        ways = list(trial.ways())
        if not ways:
            return self.inconclusive("How output and target should be compared is not known.")
        for way in ways:
            if trial.falls(way):
                return self.passed(
                    f"The loss falls when the output gets better (interpreted as {way.name}).",
                    measured=f"{trial.base:.4g} to {trial.loss(way.moved(_TOWARD[-1])):.4g}",
                )
        likely = [way for way in ways if not way.pass_only]
        wrong = [way for way in likely if trial.is_reversed(way)]
        if len(wrong) < len(likely) or not all(trial.confirmed(way) for way in wrong):
            return self.inconclusive(
                "The loss does not consistently rise or fall when the output gets better."
            )
        return self._reversed(audit, trial, wrong[0])

    def _by_slopes(self, audit: Audit) -> Result | None:
        """Fail where the gradient on the output, of a term or of all, points the wrong way.

        Asked where several terms depend on the targets, and of losses that are none of torch's.
        """
        found, first = audit.probe(LossTerms), audit.probe(FirstSteps)
        terms = found.terms[0] if len({len(terms) for terms in found.terms}) == 1 else ()
        if first.main_loss is not None and sum(bool(term.of_targets) for term in terms) < 2:
            return None
        trial = _Trial(audit, first)
        readable = not trial.reason and trial.output.ndim
        likely = [way for way in trial.ways() if not way.pass_only] if readable else []
        slopes = [each for way in likely if (each := trial.slopes(way)) is not None]
        if not slopes or len(slopes) < len(likely):
            return None
        if all(way.of_classes for way in likely) and all(map(_repels, slopes)):
            return self._repelling(audit)
        for n, term in enumerate(terms):
            if term.of_targets and all(_opposes(each, n) for each in slopes):
                return self._opposed(audit, found, n)
        return None

    def _bottomless(self, audit: Audit) -> Result | None:
        """Fail where a loss that is none of torch's falls for ever as all outputs grow."""
        first = audit.probe(FirstSteps)
        names = (seen.made_by.rstrip("0123456789") for seen in first.completed)
        made = {name.removesuffix("Backward") for name in names}
        if first.main_loss is not None or not made <= {*_UNBOUNDED}:
            return None
        trial = _Trial(audit, first)
        if trial.reason or not trial.compares_quantities():
            return None
        for sign, done in ((1.0, "raised"), (-1.0, "lowered")):
            losses = trial.slide(sign)
            if losses is not None:
                return self._endless(
                    audit,
                    losses,
                    f"all outputs {done}",
                    "whatever the targets are",
                    "Let it rise on both sides of the target: for quantiles torch.max(q * error, "
                    "(q - 1) * error), with error = target - output.",
                )
        return None

    def _sinking(self, audit: Audit) -> Result | None:
        """Fail where a loss falls ever faster as an output beside the main one grows."""
        first = audit.probe(FirstSteps)
        if first.main_loss is not None:
            return None
        trial = _Trial(audit, first)
        if trial.reason:
            return None
        for path, _ in trial.others:
            for sign, done in ((1.0, "raised"), (-1.0, "lowered")):
                losses = trial.sink(path, sign)
                if losses is not None:
                    return self._endless(
                        audit,
                        losses,
                        f"output{path} of the network {done}",
                        "ever faster: a term of it has the wrong sign",
                        "Turn the sign of the term: kl = -0.5 * torch.sum(1 + logvar - mu ** 2 - "
                        "logvar.exp()).",
                    )
        return None

    def _endless(
        self, audit: Audit, losses: tuple[float, ...], moved: str, how: str, fix: str
    ) -> Result:
        told = ", ".join(f"{loss:.3g}" for loss in losses)
        return self.failed(
            f"The loss has no lower bound: with {moved} by 100, 1,000 and 10,000 times the "
            f"spread it falls to {told}, {how}.",
            fix=fix,
            measured=told,
            threshold="a loss that rises far away",
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
        )

    def _ranked_last(self, audit: Audit) -> Result | None:
        """Say that a ranking loss lifts what was drawn at random above what was chosen.

        A lower score may be the better one: only who takes the largest for the best is certain.
        """
        seen = audit.probe(RankedScores)
        if seen is None or seen.chosen < _ALL or seen.drawn > 1 - _ALL:
            return None
        answer = self.failed if _takes_the_largest(audit) else self.warned
        return answer(
            "The ranking loss falls when the scores of the data set's items fall and those of the "
            f"items drawn at random rise ({seen.chosen:.0%} and {1 - seen.drawn:.0%} of the "
            f"scores, {seen.rows} rows): the network learns to rank what was chosen last.",
            fix="loss = -F.logsigmoid(positive - negative).mean()  # positive: the data set's item",
            measured="a loss that rises with the score of the chosen item",
            threshold="a loss that falls with it",
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
        )

    def _exchanged_triplets(self, audit: Audit) -> Result | None:
        """Warn where anchors are like what they are to be pushed away from."""
        seen = audit.probe(TripletInputs)
        if seen is None or seen.p_of_so_few >= stats.ALPHA:
            return None
        share = 1 - seen.nearer / seen.rows
        if share < _FARTHER:
            return None
        return self.warned(
            f"In {share:.0%} of {seen.rows:,} triplets the input of the anchor is nearer to that "
            "of the negative than to that of the positive: the loss pushes apart what is alike, "
            "unless these were chosen on purpose, as the hardest ones are.",
            measured=f"{share:.0%} nearer to the negative",
            threshold=f"{_FARTHER:.0%}",
            location=audit.loop.locate("loss"),
            fix="criterion(anchor, positive, negative)  # in this order",
        )

    def _repelling(self, audit: Audit) -> Result:
        return self.failed(
            "The loss pushes wrong outputs further away from the target: only those near it are "
            "pulled in, so what is not learnt yet never will be.",
            fix="Give the hard rows the weight: a focal loss is (1 - p) ** gamma * -log(p), with p "
            "the probability of the right class.",
            measured="a loss that rises towards the target while the output is wrong",
            threshold="a falling loss",
            location=audit.loop.locate("loss") or audit.loop.locate("training_step"),
        )

    def _opposed(self, audit: Audit, found: Terms, opposed: int) -> Result:
        call = found.call(opposed)
        return self.failed(
            f"One term of the loss works against the others: {found.name(opposed)} falls when the "
            "output moves away from the target, everywhere and in each part of the batch. Its sign "
            "is wrong.",
            fix="Flip the sign of that term: loss = cross_entropy + (1 - dice).",
            measured="a term that rises when the output gets better",
            threshold="terms that fall",
            location=(call.location if call is not None else None)
            or audit.loop.locate("loss")
            or audit.loop.locate("training_step"),
        )

    def _reversed(self, audit: Audit, trial: _Trial, way: OutputDirection) -> Result:
        places = (-0.9, -0.3, 0.0, 0.3, 0.9)
        losses = [trial.loss(way.moved(t)) if t else trial.base for t in places]
        chart = Curve(
            title="Loss with outputs moved toward the target (right) and away from it (left)",
            x_label="moved by",
            y_label="loss",
            series=(Series(name="loss", x=places, y=tuple(losses)),),
        )
        return self.failed(
            f"The loss rises from {losses[2]:.4g} to {losses[4]:.4g} when the output moves toward "
            f"the target, and falls to {losses[0]:.4g} when it moves away: its sign is wrong.",
            fix="Flip the sign of the loss: return -log_probability.mean(), or 1 - score.",
            measured=f"{losses[0]:.4g}, {losses[2]:.4g}, {losses[4]:.4g}",
            threshold="a falling loss",
            evidence=(chart,),
            location=audit.loop.locate("loss")
            or audit.loop.locate("training_step")
            or audit.loop.locate("model"),
        )


def _takes_the_largest(audit: Audit) -> bool:
    """Whether the program ranks by the largest scores, with ``topk``."""
    place = audit.loop.locate("train_loader") or audit.loop.locate("training_step")
    calls = source_of(place.file).calls if place is not None else ()
    return any(call.name == "topk" and not call.says("largest", False) for call in calls)


def _opposes(slopes: Tensor, term: int) -> bool:
    """Whether ``term`` rises at all places and in all parts, and another one falls there."""
    slopes = slopes.flatten(1)
    rises = term < len(slopes) and bool((slopes[term] > 0).all())
    return rises and bool((slopes < 0).all(1).any())


def _repels(slopes: Tensor) -> bool:
    """Whether the sum of all terms rises where the output is wrong, and falls where it is right."""
    wrong, *_, right = slopes.sum(0)
    return bool((wrong > 0).all() and (right < 0).all())


def _function(call: LossCall) -> str:
    return str(getattr(call.function, "__name__", call.kind))


def _signed(first: First) -> tuple[LossCall, float] | None:
    """Return the loss call that the total loss is a constant multiple of, and the constant."""
    seen = first.completed
    if len({len(each.loss_calls) for each in seen}) != 1 or len(seen) < 3:
        return None
    for n, call in enumerate(seen[0].loss_calls):
        ratio = steady_ratio([each.loss_calls[n] for each in seen], seen)
        if ratio is not None and _vary(first, n):
            return call, ratio
    return None


def _vary(first: First, n: int) -> bool:
    """Whether the calls had different values: a constant ratio then means something."""
    values = {
        float(v.float().mean())
        for seen in first.completed
        if (v := seen.loss_calls[n].value) is not None
    }
    return len(values) > 1


def _exchanged(first: First) -> LossCall | None:
    for call in (c for seen in first.observations[:1] for c in seen.loss_calls):
        given, other = call.arguments.get("input"), call.arguments.get("target")
        if call.kind not in _ASYMMETRIC or call.producer:
            continue
        if not (isinstance(given, Tensor) and isinstance(other, Tensor)):
            continue
        if _is_data(given, first) and not _is_data(other, first) and _is_output(other, first):
            return call
    return None


def _is_data(tensor: Tensor, first: First) -> bool:
    return bool(batches.paths_of((first.targets[0], first.batches[0]), tensor))


def _is_output(tensor: Tensor, first: First) -> bool:
    """Whether ``tensor`` follows the model's output, elements in the same order of size."""
    output = main_tensor(first.observations[0].output)
    if output is None or output.numel() != tensor.numel() or tensor.numel() < 2:
        return False
    order = output.detach().cpu().double().reshape(-1).argsort()
    sorted_by = tensor.detach().cpu().double().reshape(-1)[order]
    rows = bool((sorted_by.diff() >= 0).all())
    # A softmax keeps the order within rows only.
    flat = output.reshape(output.shape[0], -1), tensor.reshape(output.shape[0], -1)
    within = torch.equal(flat[0].argmax(1), flat[1].argmax(1)) and flat[0].shape[1] > 1
    return rows or within


class _Trial:
    """The user's own loss, on outputs put in place of the model's."""

    def __init__(self, audit: Audit, first: First) -> None:
        self._audit, self._batch = audit, first.batches[0]
        self.reason, self.base = "", math.nan
        loop = audit.loop
        try:
            done = loop.forward(self._batch)
        except UserCodeError as error:
            self.reason = f"The loss cannot be computed in eval mode: {error}."
            return
        output = main_tensor(done.output)
        if done.loss is None or output is None:
            self.reason = "The loss of a modified output cannot be computed here."
            return
        self.base, self.output = done.loss, output.detach()
        self.others = [
            (path, tensor.detach())
            for path, tensor in batches.tensors(done.output)
            if tensor is not output and tensor.is_floating_point()
            if output.ndim and tensor.shape[:1] == output.shape[:1]
        ]
        target = _target_of(done.loss_calls, first.targets[0], self.output)
        if target is None:
            self.reason = "There is no single target to compare the output with."
            return
        self.target = target.detach().to(self.output.device)
        if not (math.isfinite(self.base) and bool(torch.isfinite(self.output).all())):
            self.reason = "The loss or the outputs are NaN or infinite."
        elif (
            self.loss(self.output + 1.0 + self.output.abs())
            == self.loss(self.output * 0.0)
            == self.base
        ):
            self.reason = "The loss is not computed from what the model returns."

    def loss(self, output: Tensor, path: str | None = None) -> float:
        """Return the loss of ``output``; NaN when the user's code refuses it.

        It stands for the main tensor, or for the one at ``path``.
        """
        self._audit.clock.check()
        loop = self._audit.loop
        choose = main_tensor if path is None else lambda made: dict(batches.tensors(made)).get(path)
        try:
            kept = preserved(Subjects(models=loop.models))
            with kept, output_replaced(loop, lambda _: output, choose):
                value = loop.forward(self._batch).loss
        except UserCodeError:
            return math.nan
        return math.nan if value is None else value

    def ways(self) -> Iterator[OutputDirection]:
        """Yield every reading of output and target that their shapes and values allow."""
        output, target = self.output, self.target
        whole = not target.is_floating_point()
        if whole and output.ndim == target.ndim + 1:
            for dim in sorted({1, output.ndim - 1}):
                if output.movedim(dim, -1).shape[:-1] == target.shape:
                    yield from _class_ways(output, target, dim)
        if output.numel() == target.numel():
            answer = target.reshape(output.shape).to(output.dtype)
            yield from _element_ways(output, answer)
        elif output.ndim == 2 and output.numel() == 2 * target.numel() and not whole:
            yield from _distribution_ways(output, target.reshape(len(output), -1).to(output.dtype))

    def falls(self, way: OutputDirection) -> bool:
        """Whether better outputs cost less."""
        return all(self.loss(way.moved(t)) < self.base for t in _TOWARD)

    def is_reversed(self, way: OutputDirection) -> bool:
        """Whether better outputs cost more and worse ones less, the further the more."""
        better = [self.loss(way.moved(t)) for t in _TOWARD]
        worse = [self.loss(way.moved(-t)) for t in _TOWARD]
        return self.base < better[0] < better[1] and self.base > worse[0] > worse[1]

    def confirmed(self, way: OutputDirection) -> bool:
        """Whether each part of the batch says the same, and nothing else can be meant."""
        size = self.output.shape[0]
        for part in torch.arange(size).chunk(min(_GROUPS, size)):
            better, worse = (self._only(part, way.moved(t)) for t in (0.9, -0.9))
            if not (self.loss(better) > self.base > self.loss(worse)):
                return False
        if way.far is not None:
            near, far, farthest = (self.loss(way.far(t)) for t in (1.0, 10.0, 100.0))
            # At a floor nothing more is to be had; without one there is always more.
            endless = self.base > near > far > farthest and far - farthest > 0.9 * (near - far)
            return endless or way.dense or self._falls_to_a_floor(way)
        if way.swapped is None or way.classes < 3:
            return False
        right, *others = (self.loss(way.swapped(k)) for k in range(min(way.classes, 6)))
        return right - max(others) > 0.1 * (right - min(others))

    def _falls_to_a_floor(self, way: OutputDirection) -> bool:
        """Whether wrong logits are the cheaper ones by far, down to the floor of an epsilon.

        The logarithm of a probability with something added or clamped has a bound on both sides:
        near its start where the answer is right, far below it where it is wrong. A bounded loss of
        which the labels are numbered otherwise rises as far as it falls.
        """
        if way.name != "logits" or way.far is None:
            return False
        start = self.loss(self.output * 0.0)
        worse = [self.loss(way.far(t)) for t in (10.0, 100.0)]
        better = [self.loss(way.far(-t)) for t in (10.0, 100.0)]
        fall, rise = start - worse[1], better[1] - start
        settled = abs(better[1] - better[0]) < 0.1 * rise and abs(worse[1] - worse[0]) < 0.5 * fall
        return settled and rise > 0 and fall > _DEEP * rise

    def slopes(self, way: OutputDirection) -> Tensor | None:
        """Return by how much each term rises toward the target: (terms, places, parts).

        None where the terms cannot be told on outputs in place of the model's.
        """
        parts = torch.arange(self.output.shape[0]).chunk(min(_GROUPS, self.output.shape[0]))
        found = []
        for t in _PLACES:
            self._audit.clock.check()
            gradients = output_gradients(self._audit.loop, self._batch, way.moved(t))
            if gradients is None:
                return None
            along = way.moved(t + _NEAR) - way.moved(t - _NEAR)
            products = torch.stack([(each * along).double() for each in gradients])
            found.append(torch.stack([products[:, rows].flatten(1).sum(1) for rows in parts], 1))
        return torch.stack(found, 1)

    def compares_quantities(self) -> bool:
        """Whether the targets are quantities, and the loss depends on them."""
        target = self.target
        if not target.is_floating_point() or target.numel() < _GROUPS:
            return False
        if len(torch.unique(target)) < _GROUPS:
            return False
        turned = batches.map_leaves(
            self._batch, lambda leaf: leaf.roll(1, 0) if self._is_target(leaf) else leaf
        )
        try:
            other = self._audit.loop.forward(turned).loss
        except UserCodeError:
            return False
        return other is not None and other != self.base

    def _is_target(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and batches.same_values(leaf, self.target)

    def slide(self, sign: float) -> tuple[float, ...] | None:
        """Return the losses of outputs that are raised ever further, where they fall for ever.

        None where they do not, or not along a straight line, or not in each part of the batch.
        """
        spread = float(self.output.std(correction=0)) + float(self.target.std(correction=0))
        if not math.isfinite(spread) or spread == 0.0:
            return None
        steps = [sign * size * spread for size in _ENDLESS]
        losses = [self.loss(self.output + step) for step in steps]
        near, far, farthest = losses
        if not self.base > near > far > farthest:
            return None
        if not _LINEAR[0] < (far - farthest) / (near - far) < _LINEAR[1]:
            return None
        size = self.output.shape[0]
        for part in torch.arange(size).chunk(min(_GROUPS, size)):
            if not self.loss(self._only(part, self.output + steps[-1])) < self.base:
                return None
        return tuple(losses)

    def sink(self, path: str, sign: float) -> tuple[float, ...] | None:
        """Return the losses of the output at ``path``, moved ever further, if they fall so, too.

        None where they do not, or no faster than along a line, or not in each part of the batch.
        """
        output = dict(self.others)[path]
        spread = float(output.std(correction=0)) + float(output.abs().mean())
        if not math.isfinite(spread) or spread == 0.0 or output.numel() < _GROUPS:
            return None
        moved = [output + sign * size * spread for size in _ENDLESS]
        losses = [self.loss(each, path) for each in moved]
        near, far, farthest = losses
        if not (self.base > near > far > farthest and far - farthest > _SQUARE * (near - far)):
            return None
        for part in torch.arange(len(output)).chunk(min(_GROUPS, len(output))):
            mixed = output.clone()
            mixed[part] = moved[-1][part]
            if not self.loss(mixed, path) < self.base:
                return None
        return tuple(losses)

    def _only(self, rows: Tensor, moved: Tensor) -> Tensor:
        mixed = self.output.clone()
        mixed[rows] = moved[rows]
        return mixed


def _target_of(calls: tuple[LossCall, ...], given: Any, output: Tensor) -> Tensor | None:
    """Return what the loss compares the output with: a loss call's target, else the batch's."""
    for call in calls:
        prediction, target = call.arguments.get("input"), call.arguments.get("target")
        paired = isinstance(prediction, Tensor) and prediction.shape == output.shape
        if paired and isinstance(target, Tensor):
            return target
    parts = [part for _, part in batches.tensors(given)]
    return parts[0] if len(parts) == 1 and not parts[0].is_complex() else None


def _class_ways(output: Tensor, target: Tensor, dim: int) -> Iterator[OutputDirection]:
    last = output.movedim(dim, -1)
    classes = last.shape[-1]
    valid = (target >= 0) & (target < classes)
    # Negative and very large ids are ignored on purpose; many of them, and ids mean something else.
    if classes < 2 or float(valid.float().mean()) < 0.5 or bool((target >= classes).any()):
        return
    safe = target.long().clamp(0, classes - 1)
    right = torch.nn.functional.one_hot(safe, classes).to(output.dtype) * valid.unsqueeze(-1)
    wrong = (1.0 - right) * valid.unsqueeze(-1) / (classes - 1)
    flat = last.reshape(-1, classes).double()

    def answer(k: int) -> Tensor:
        return torch.nn.functional.one_hot((safe + k) % classes, classes).to(output.dtype)

    def back(values: Tensor) -> Tensor:
        return values.movedim(-1, dim)

    def mixed(t: float) -> Tensor:
        return (1 - abs(t)) * last + abs(t) * (right if t > 0 else wrong)

    if bool((flat >= 0).all()) and bool(((flat.sum(1) - 1).abs() < 1e-3).all()):
        yield OutputDirection(
            "probabilities",
            lambda t: back(mixed(t)),
            lambda k: back(0.98 * answer(k) + 0.02 / classes),
            classes,
        )
    elif bool((torch.logsumexp(flat, 1).abs() < 1e-2).all()):

        def logarithms(t: float) -> Tensor:
            p = last.exp()
            return back(
                ((1 - abs(t)) * p + abs(t) * (right if t > 0 else wrong)).clamp(min=1e-6).log()
            )

        yield OutputDirection(
            "log-probabilities",
            logarithms,
            far=lambda t: back(last - 5.0 * t * right),
        )
    else:
        size = 5.0 + float(last.std(correction=0))
        yield OutputDirection(
            "logits",
            lambda t: back(last + size * t * (right - wrong)),
            far=lambda t: back(last - size * t * (right - wrong)),
        )


def _distribution_ways(output: Tensor, answer: Tensor) -> Iterator[OutputDirection]:
    """Yield the reading of means (n, C) beside their variances in one output (n, 2C).

    The means usually come first. Where they come last, no move of the variances goes on lowering
    the loss for ever, and there is no answer.
    """
    width = answer.shape[1]

    def moved(t: float) -> Tensor:
        better = output.clone()
        better[:, :width] += t * (answer - output[:, :width])
        return better

    yield OutputDirection("means beside variances", moved, far=lambda t: moved(-t))


def _element_ways(output: Tensor, answer: Tensor) -> Iterator[OutputDirection]:
    binary = bool(((answer == 0) | (answer == 1)).all())
    signs = bool(((answer == -1) | (answer == 1)).all())
    if binary or signs:
        side = 2 * answer - 1 if binary else answer
        size = 3.0 + float(output.std(correction=0))
        unit = bool((output >= 0).all()) and bool((output <= 1).all())
        mask = binary and output[0].numel() >= _DENSE
        if unit and binary:

            def mixed(t: float) -> Tensor:
                return (1 - abs(t)) * output + abs(t) * (answer if t > 0 else 1 - answer)

            yield OutputDirection(
                "probabilities",
                mixed,
                # 1e-2, 1e-4 and 1e-6 for the right answer.
                far=lambda t: (1 - answer).clamp(rest := 0.01 ** (1 + math.log10(t)), 1 - rest),
                dense=mask,
            )
            return
        yield OutputDirection(
            "logits",
            lambda t: output + size * t * side,
            far=lambda t: output - size * t * side,
            dense=mask,
        )
    else:
        mask = False
    yield OutputDirection(
        "quantities",
        lambda t: output + t * (answer - output),
        far=lambda t: output - t * (answer - output),
        pass_only=mask,  # numbers that are no probabilities, for a mask, are logits
    )
