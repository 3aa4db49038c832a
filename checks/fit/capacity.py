"""FIT106: is the network too small for its data."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.checks.fit.runs import GAP, percent, series_of, trainable_layers
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.control import without_dropout
from nnaudit.measure.replicate import replicated
from nnaudit.probes.subset_scaling import SubsetFit, SubsetFits, SubsetScaling
from nnaudit.probes.subsets import TinyFitting, fixed_rows
from nnaudit.report import Curve, Evidence, Kind, Result, Series, Table
from nnaudit.targets import batch as batches
from nnaudit.training.fitting import Head, Limits, RowEvaluation, Run, evaluate_rows, head_of
from nnaudit.training.loss_bounds import Bounds
from nnaudit.training.reference import inputs_of, reference_for, train_on
from nnaudit.training.widen import widened

WIDER, WIDEST = 4, 16
RATES = (1e-3, 1e-2)
_STEPS = 400
_ROWS = 256
_RUN_SECONDS = 10.0
_FEWEST_PARTS = 6
_LARGE = 5_000_000
_CHEAP_STEP = 0.005
_NEARLY = 0.75

Predict = Callable[[RowEvaluation, int], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A network that was trained on the rows.

    Attributes:
        name: for people.
        run: its better run of two learning rates.
        closed: the share of the loss gap that it closed on the training rows.
        held_out: the same for each batch of rows it was not trained on, at its best moment.
        wider: it is the program's own network, but for its width.
        size: how many parameters are trained.
    """

    name: str
    run: Run
    closed: float
    held_out: tuple[float, ...]
    wider: bool = False
    size: float = 0.0

    @property
    def unseen(self) -> float:
        """The mean over the held-out batches; NaN without any."""
        return sum(self.held_out) / len(self.held_out) if self.held_out else math.nan


@dataclass(frozen=True)
class Rows:
    """What the candidates are trained on and what is held out."""

    train: RowEvaluation
    bounds: Bounds
    held_out: RowEvaluation | None


class Capacity(Check):
    """Is the network large enough for its data?

    Why: A network that is too small underfits however long it trains, and the run looks like a
    hard task. Making it wider is the cheapest fix, and the first to try when the training loss
    stays high. Where a wider network underfits too, the cause is in the data, the labels or the
    loss, and no size will help.
    How: Most programs are judged by the largest subset of FIT105. The network is large enough when
    it closes 90% of the gap between the best constant prediction and the lowest possible loss, or
    most of that gap with the loss still falling. Otherwise the network as it is, a wider one and,
    where width does not help, a reference network are trained on up to 256 of the same fixed rows:
    Adam at 1e-3 and 1e-2, 400 steps (up to 800 while the loss falls), your loss, no dropout. Other
    rows are held out, because a wider network always fits noise better. It fails when all of these
    hold: your network closes less than 50% with its loss flat (less than 10% of the rest gained in
    the last quarter), the wider one closes 90%, it closes at least 0.2 more on held-out rows
    (paired t above 6 over six or more batches, one-sided p below 1e-3), the result repeats with
    other weights and the two sets of rows exchanged (1e-6 together), and default initial weights do
    not help.
    - "Wider" uses your own width argument where build_model has one. Otherwise the hidden layers of
      a copy are widened with fresh weights: 4 times, or 16 times where a layer has 8 outputs or
      fewer. The message says which.
    - It warns where only the reference network fits: width is not what is missing.
    - It warns where your network closes less than 75% and still falls after 800 steps, while
      another fits in half of them and is as far ahead on held-out rows.
    - A model without hidden layers, with mostly frozen parameters or with a random loss may be
      small by design: a warning at most.
    - Where an exact check that explains the result has failed, no networks are compared.
    Fix: make the hidden layers wider, starting with the one that is named.
    References: Goodfellow, Bengio and Courville, "Deep Learning" (2016), sections 5.2 and 11.3;
    Andrej Karpathy, "A Recipe for Training Neural Networks" (2019): first a model large enough to
    overfit; Zhang et al., "Understanding deep learning requires rethinking generalization" (ICLR
    2017): why fitting alone proves nothing.
    """

    code, name, kind = "FIT106", "capacity", Kind.STATISTICAL
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (TinyFitting, SubsetScaling)
    trains = True
    consequence_of = (
        "FIT101", "DATA101", "DATA102", "DATA103", "DATA111", "LOSS101", "LOSS102", "GRAD102",
        "GRAD101", "GRAD106", "GRAD107", "MODE101", "INIT101",
    )  # fmt: skip

    def run(self, audit: Audit) -> Result:
        """Believe subsets that are fitted; compare networks where they are not."""
        scaling = audit.probe(SubsetScaling)
        if not scaling.subset_fits:
            return self.inconclusive(f"The subset-size test was inconclusive: {scaling.reason}.")
        top = scaling.subset_fits[-1]
        said = f"it closed {percent(top.closed)} of the loss gap on {top.rows} examples ({GAP})"
        # A loss that still falls is believed; sooner where a closer look is expensive.
        cheap = top.run.seconds / max(top.run.steps, 1) < _CHEAP_STEP
        if top.fitted or (top.closed >= (0.8 if cheap else 0.5) and top.falling()):
            going = "" if top.fitted else ", and the loss is still falling"
            return self.passed(f"The network is large enough: {said}{going}.")
        return self._suspicious(audit, scaling, top, said)

    def _suspicious(self, audit: Audit, scaling: SubsetFits, top: SubsetFit, said: str) -> Result:
        if cause := self.cause(audit):
            return self.inconclusive(
                f"Not judged, because {cause} has failed, which may be why {said}. Fix {cause} "
                "first, then rerun."
            )
        if top.bounds.reconstruction:
            return self.inconclusive(
                f"Not judged: a bottleneck makes reconstructions inexact by design; {said}."
            )
        seconds = _STEPS * top.run.seconds / max(top.run.steps, 1)
        if seconds > _RUN_SECONDS:
            return self.inconclusive(
                f"Not judged: in {top.run.steps} steps {said}, and comparing networks would take "
                f"more than {seconds:.0f} s for each. Rerun on a faster device."
            )
        rows = _rows_of(audit, scaling)
        head = head_of(rows.train.output, rows.train.calls[0]) if rows else None
        if rows is None or head is None:
            return self.inconclusive(
                f"Not judged: {said}, and no other network can be tried, because the loss is not "
                "computed from the model's output alone."
            )
        return self._compare(audit, rows, head, top)

    def _compare(self, audit: Audit, rows: Rows, head: Head, top: SubsetFit) -> Result:
        compare_candidates = _compared(audit, rows, head)
        if compare_candidates is None:
            return self.inconclusive(
                "Not judged: the network cannot be trained outside your own loop, so it cannot be "
                "compared with others."
            )
        own, others = compare_candidates
        best = max(others, key=lambda candidate: candidate.closed, default=None)
        evidence = _evidence(own, others, rows)
        said = (
            f"On {rows.train.rows} fixed examples, in {own.run.steps} steps of Adam, your network "
            f"closed {percent(own.closed)} of the loss gap ({GAP})"
        )
        if best is None:
            return self._alone(own, rows, said, evidence)
        versus = f"{said}; {best.name} closed {percent(best.closed)}"
        unfair = own.closed < top.closed - 0.1
        if unfair or best.closed < 0.9:
            why = (
                f"Not judged by that, for your own optimizer closed {percent(top.closed)} on "
                f"{top.rows} examples"
                if unfair
                else "The size is not the cause: look at the data, the labels and the number of "
                "steps"
            )
            return self.inconclusive(f"{versus}. {why}.", evidence=evidence)
        unseen = (
            f"on held-out examples {percent(own.unseen)} and {percent(best.unseen)}"
            if own.held_out
            else "no examples were left to hold out"
        )
        falling = own.run.falling(rows.bounds.floor, 0.1)
        if falling and not _much_faster(own, best):
            return self._alone(own, rows, said, evidence)
        gain, t = _gain(own, best)
        if not gain >= 0.1 or t < 3:
            return self.passed(
                f"{versus}; {unseen}. A larger network fits these examples better, but predicts "
                "unseen ones no better.",
                evidence=evidence,
            )
        return self._too_small(audit, rows, head, (own, best), f"{versus}; {unseen}", evidence)

    def _too_small(
        self,
        audit: Audit,
        rows: Rows,
        head: Head,
        pair: tuple[Candidate, Candidate],
        said: str,
        evidence: tuple[Evidence, ...],
    ) -> Result:
        """Another network does better on unseen rows too: fail where that is clear and repeats."""
        own, best = pair
        if own.run.falling(rows.bounds.floor, 0.1):
            said = f"{said}. The loss is still falling, but far too slowly"
        details: dict[str, Any] = {
            "evidence": evidence,
            "measured": f"{percent(own.closed)} against {percent(best.closed)}",
            "threshold": "at least 50% of the loss gap, or no other network far ahead",
            "location": audit.loop.locate("model"),
            "fix": _fix(audit, best),
        }
        said = f"The network underfits. {said}"
        if not (best.wider and _clear(own, best, rows)) or _small_by_design(audit):
            return self.warned(f"{said}.", **details)
        if not self._again(audit, rows, head, best):
            return self.warned(f"{said}. With other weights and examples it was not so.", **details)
        if self._reset_fits(audit, rows, head):
            details["fix"] = "use the layers' default initial weights: see INIT101"
            return self.warned(
                f"{said}. With default initial weights the same network fits, too.", **details
            )
        return self.failed(f"{said}. Other weights and examples gave the same.", **details)

    def _alone(
        self, own: Candidate, rows: Rows, said: str, evidence: tuple[Evidence, ...]
    ) -> Result:
        """Answer where nothing was compared: no need, no time, or no way."""
        if own.closed >= 0.9:
            return self.passed(
                f"{said}. It is large enough: where your own training does worse, the optimizer's "
                "settings are the cause.",
                evidence=evidence,
            )
        if own.run.cut:
            return self.inconclusive(f"There was not enough time. {said}.", evidence=evidence)
        if own.run.falling(rows.bounds.floor, 0.1):
            answer = self.passed if own.closed >= 0.5 else self.inconclusive
            return answer(f"{said}, and the loss is still falling.", evidence=evidence)
        return self.inconclusive(
            f"{said}, and no wider network could be built to compare it with.",
            evidence=evidence,
        )

    def _reset_fits(self, audit: Audit, rows: Rows, head: Head) -> bool:
        """Whether the same network fits with weights as its layers draw them: bad initial weights.

        A widened copy has such weights, so without this control they could be what helped.
        """
        seed = audit.seed + 2
        control = _train_candidate(
            audit, rows, "reset", lambda: _widened(audit, rows, head, 1, seed), seed
        )
        return control is not None and control.closed >= 0.5

    def _again(self, audit: Audit, rows: Rows, head: Head, best: Candidate) -> bool:
        """Repeat with fresh weights, training on what was held out."""
        held_out = rows.held_out
        if held_out is None or held_out.bounds is None:
            return False
        swapped = Rows(held_out, held_out.bounds, rows.train)
        with replicated(audit) as other:
            compare_candidates = _compared(other, swapped, head)
        if compare_candidates is None:
            return False
        own, others = compare_candidates
        same = [other for other in others if other.name == best.name]
        return bool(same) and _clear(own, same[0], swapped)


def _rows_of(audit: Audit, scaling: SubsetFits) -> Rows | None:
    """Up to 256 rows of FIT105's and as many others; a third is held out where data are few."""
    parts = (*scaling.subset_fits[-1].evaluation.parts, *scaling.held_out)
    size = max(batches.size(parts[0]), 1)
    count = max(1, min(_ROWS // size, 2 * len(parts) // 3))
    with fixed_rows(audit.loop):
        try:
            train = evaluate_rows(audit.loop, parts[:count])
            held_out = (
                evaluate_rows(audit.loop, parts[count : 2 * count]) if parts[count:] else None
            )
        except UserCodeError:
            return None
    if train.bounds is None or not train.bounds.informative:
        return None
    usable = held_out is not None and held_out.bounds is not None and held_out.bounds.informative
    return Rows(train, train.bounds, held_out if usable else None)


def _compared(audit: Audit, rows: Rows, head: Head) -> tuple[Candidate, list[Candidate]] | None:
    """Train the network as it is; where it underfits a wider one, and then the reference.

    None where a plain loop cannot train the network as it is.
    """
    seed = audit.seed
    own = _train_candidate(audit, rows, "your network", lambda: _copied(audit, head), seed)
    if own is None:
        return None
    falling = own.run.falling(rows.bounds.floor, 0.1)
    if own.closed >= 0.9 or own.run.cut or (falling and own.closed >= _NEARLY):
        return own, []
    others: list[Candidate] = []
    for name, make, wider in _larger_networks(audit, rows, head, seed):
        other = _train_candidate(audit, rows, name, make, seed, wider=wider)
        if other is not None:
            others.append(other)
            if other.closed >= 0.9:
                break
    return own, others


Maker = Callable[[], tuple[nn.Module, Predict] | None]


def _larger_networks(
    audit: Audit, rows: Rows, head: Head, seed: int
) -> Iterator[tuple[str, Maker, bool]]:
    """Yield names, makers and whether it is the network itself, wider."""
    model = audit.loop.model
    narrowest = _narrowest(model)
    # Four times one unit are not many.
    factor = WIDEST if narrowest and narrowest[1] <= 8 else WIDER
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    if not large and not audit.loop.lacks(Needs.WIDTH):
        yield (
            f"your network built {factor} times as wide",
            lambda: _relaunched(audit, head, factor, seed),
            True,
        )
    elif not large:
        name = f"a copy with hidden layers widened {factor} times"
        yield name, lambda: _widened(audit, rows, head, factor, seed), True
    kind = reference_for(rows.train, seed=seed)
    if kind is not None:
        yield kind.kind, lambda: _referenced(rows, seed), False


def _referenced(rows: Rows, seed: int) -> tuple[nn.Module, Predict] | None:
    made = reference_for(rows.train, seed=seed)
    return None if made is None else (made, lambda s, part: made(inputs_of(s, part)))


def _train_candidate(
    audit: Audit, rows: Rows, name: str, make: Maker, seed: int, *, wider: bool = False
) -> Candidate | None:
    """Train one network at each learning rate and keep the better run."""
    seconds = min(_RUN_SECONDS, max(audit.clock.remaining / 10, 0.5))
    best: Candidate | None = None
    for rate in RATES:
        made = make()
        if made is None:
            return None
        network, predict = made
        try:
            candidate = _trained(audit, rows, name, network, predict, rate, seconds, seed)
            candidate = dataclasses.replace(candidate, wider=wider)
        except RuntimeError:  # shapes that only this network cannot deal with
            return best
        if best is None or candidate.closed > best.closed:
            best = candidate
        if best.closed >= 0.9:
            break
    return best


def _trained(
    audit: Audit,
    rows: Rows,
    name: str,
    network: nn.Module,
    predict: Predict,
    rate: float,
    seconds: float,
    seed: int,
) -> Candidate:
    passes = max(4, math.ceil(_STEPS / len(rows.train.parts)))
    parameters = [p for p in network.parameters() if p.requires_grad]
    peaks: list[list[float]] = []
    count = 0

    def predicted(part: int) -> Tensor:
        nonlocal count
        count += 1
        if rows.held_out is not None and count % 50 == 0:
            peaks.append(_evaluated(network, predict, rows.held_out))
        return predict(rows.train, part)

    with without_dropout(network):
        run = train_on(
            parameters,
            predicted,
            rows.train,
            label=name,
            learning_rate=rate,
            level=rows.bounds.floor + 0.1 * (rows.bounds.constant - rows.bounds.floor),
            limits=Limits(passes, 2 * passes, seconds),
            clock=audit.clock,
            seed=seed,
        )
        if rows.held_out is not None:
            peaks.append(_evaluated(network, predict, rows.held_out))
    losses = [loss for loss in run.losses if math.isfinite(loss)]
    closed = rows.bounds.closed(min(losses[-1:], default=math.inf)) if losses else -math.inf
    held_out = tuple(max(peaks, key=sum)) if peaks else ()
    return Candidate(name, run, closed, held_out, size=float(sum(p.numel() for p in parameters)))


def _evaluated(network: nn.Module, predict: Predict, held_out: RowEvaluation) -> list[float]:
    """Return the share closed on each held-out batch."""
    bounds = held_out.bounds
    assert bounds is not None
    with torch.no_grad():
        losses = [
            float(call.recompute(predict(held_out, part)))
            for part, call in enumerate(held_out.calls)
        ]
    return [max(bounds.closed(loss), -10.0) if math.isfinite(loss) else -10.0 for loss in losses]


def _predicting(network: nn.Module, head: Head) -> Predict:
    def predict(evaluation: RowEvaluation, part: int) -> Tensor:
        fed = evaluation.feds[part]
        return head(network(*fed.args, **fed.kwargs), evaluation.calls[part].input.shape)

    return predict


def _copied(audit: Audit, head: Head) -> tuple[nn.Module, Predict]:
    network = copy.deepcopy(audit.loop.model)
    return network.train(), _predicting(network, head)


def _relaunched(
    audit: Audit, head: Head, factor: int, seed: int
) -> tuple[nn.Module, Predict] | None:
    try:
        with audit.loop.relaunched(seed, width=float(factor)) as wide:
            network = copy.deepcopy(wide.model)
    except UserCodeError:
        return None
    return network.train(), _predicting(network, head)


def _widened(
    audit: Audit, rows: Rows, head: Head, factor: int, seed: int
) -> tuple[nn.Module, Predict] | None:
    network = widened(audit.loop.model, rows.train.feds[0], factor, seed=seed)
    return None if network is None else (network.train(), _predicting(network, head))


def _gain(own: Candidate, other: Candidate) -> tuple[float, float]:
    """Return how much more the other closed on held-out batches, and the paired t of that."""
    differences = torch.tensor(other.held_out).double() - torch.tensor(own.held_out).double()
    n = len(differences)
    if n < 2:
        return 0.0, 0.0
    mean, deviation = float(differences.mean()), float(differences.std())
    return mean, mean / max(deviation / math.sqrt(n), 1e-12)


def _clear(own: Candidate, other: Candidate, rows: Rows) -> bool:
    """Whether a network was far too small: the numbers of the docstring."""
    gain, t = _gain(own, other)
    flat = not own.run.cut and not own.run.falling(rows.bounds.floor, 0.1)
    fits = own.closed < 0.5 and other.closed >= 0.9
    return fits and flat and gain >= 0.2 and t > 6 and len(own.held_out) >= _FEWEST_PARTS


def _much_faster(own: Candidate, other: Candidate) -> bool:
    """Whether another network fits in half the steps, and far better on unseen rows.

    Then it matters little that this one is on its way still.
    """
    gain, t = _gain(own, other)
    return 2 * other.run.steps <= own.run.steps and gain >= 0.2 and t > 6


def _small_by_design(audit: Audit) -> bool:
    """Whether the network may be small on purpose, or the loss random."""
    parameters = list(audit.loop.model.parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    tiny = audit.probe(TinyFitting)
    noisy = tiny.noise > 0.02 * abs(tiny.evaluation.loss)
    few = trainable_layers(audit.loop.model) < 2
    return few or noisy or frozen > 0.5 * sum(p.numel() for p in parameters)


def _evidence(own: Candidate, others: Sequence[Candidate], rows: Rows) -> tuple[Evidence, ...]:
    candidates = [own, *others]
    table = Table(
        title="Networks trained on the same fixed examples",
        columns=("network", "steps", "loss gap closed", "on held-out examples", "last loss"),
        rows=tuple((e.name, e.run.steps, e.closed, e.unseen, e.run.losses[-1]) for e in candidates),
    )
    runs = Curve(
        title="Loss of each network",
        x_label="passes over the examples",
        y_label="loss",
        series=tuple(series_of(e.run) for e in candidates),
        thresholds={"best constant": rows.bounds.constant, "lowest possible": rows.bounds.floor},
    )
    wide = [e for e in others if e.wider]
    if not wide:
        return table, runs
    losses = (own.run.losses[-1], wide[0].run.losses[-1])
    factor = Curve(
        title="Loss after training by width",
        x_label="trained parameters",
        y_label="loss",
        series=(Series(name="after training", x=(own.size, wide[0].size), y=losses),),
        thresholds={"best constant": rows.bounds.constant, "lowest possible": rows.bounds.floor},
        log_x=True,
    )
    return table, factor, runs


def _fix(audit: Audit, best: Candidate) -> str:
    narrowest = _narrowest(audit.loop.model)
    where = f": {narrowest[0]} has {narrowest[1]} outputs" if narrowest else ""
    if best.wider:
        return f"make the hidden layers wider{where}"
    return f"use a larger network, such as {best.name}{where}"


def _narrowest(model: nn.Module) -> tuple[str, int] | None:
    """The hidden layer with the fewest outputs; None without hidden layers."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [(name, int(m.weight.shape[0])) for name, m in model.named_modules()
              if isinstance(m, kinds)]  # fmt: skip
    return min(layers[:-1], key=lambda layer: layer[1], default=None)
