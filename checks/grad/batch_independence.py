"""GRAD103: whether samples of one batch influence each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.measure.noise import eps_of, tolerance
from nnaudit.probes.perturbation import (
    Call,
    Layout,
    ModelCall,
    Reduction,
    Replay,
    compact,
    is_state,
    layout_of,
    samples,
    stand_in,
    warmed_up,
)
from nnaudit.report import Kind, Location, Result, Status, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import BatchNorm
from nnaudit.targets.model_inputs import main_tensor

_OUTPUTS = 4
"""Outputs of a model that are looked at."""

_PLACES = 3
"""Samples that are replaced by another; most of those that can be must show the effect."""

_POSITION = 1e-2
"""What may change with the position in the batch, relative to the spread of the outputs."""


@dataclass(frozen=True)
class _Effect:
    """What replacing one sample did: to its own output, and at most to another's."""

    sample: int
    own: float
    others: float
    floor: float
    affected: int

    @property
    def mixes(self) -> bool:
        return self.others > self.floor


class BatchIndependence(Check):
    """Is each sample's output computed from that sample alone?

    Why: A view or reshape where a permute was meant, a recurrent layer or an attention that takes
        the batch dimension for time (`batch_first`), a softmax or mean over dimension 0: all of
        them run, learn something, and give predictions that depend on which samples happen to be in
        the batch.
    How: Replaces one sample of the batch by another, up to 3 times, in eval mode and with the same
        random numbers. The outputs of the other samples must not change by more than 10 times what
        two identical calls differ by, or 64 roundings of the largest output. Then the batch is
        reversed: outputs must come out reversed, to within 1% of their spread (this shows a
        positional encoding added along the batch).
        - Fails when most replacements change another sample's output, a gradient flows from one
          sample to the other's output, and rows are known to be samples: a loader that stacks them,
          images, or next-token targets.
        - Warns where the code takes a maximum and the like over the samples, and replacing the one
          that a gradient shows to decide it changes the others (a scale may be meant for all).
        - Warns without such a gradient (an expert's capacity, a top-k over the batch couple samples
          by design), and where rows may be time steps, nodes or members of a set.
        - Of several outputs the main one is judged so; another one only where it certainly fails.
        - Models that draw random numbers are not asked for the reversed batch. Samples are looked
          for along dimension 1 where the loader's batch size is found there.
    Fix: `permute` instead of `view`; `batch_first=True`; `dim=-1` or `dim=1` instead of `dim=0`.
    References: Karpathy, "A Recipe for Training Neural Networks", 2019 ("use backprop to chart
        dependencies"); Somepalli et al., "SAINT: Improved Neural Networks for Tabular Data via Row
        Attention and Contrastive Pre-Training", 2021, on samples that attend to each other.
    """

    code, name, kind = "GRAD103", "batch-independence", Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (ModelCall,)

    def run(self, audit: Audit) -> Result:
        """Replace samples, then reverse the batch."""
        call = audit.probe(ModelCall)
        if call is None:
            return self.skipped(
                "The model is not called as a whole: its parts are called one by one."
            )
        layout = layout_of(audit.loop, call)
        if isinstance(layout, str):
            return self.skipped(f"{layout[0].upper()}{layout[1:]}.")
        if layout.count < 2:
            return self.skipped("A batch holds only one sample.")
        if reason := _by_design(audit.loop.model):
            return self.skipped(reason)
        try:
            answer = self._asked(audit, call, layout)
            if answer is None and not audit.loop.lacks(Needs.OWN_STEPS):
                warmed_up(audit)
                answer = self._asked(audit, call, layout)
            if answer is not None and answer.status is Status.PASS:
                answer = self._of_others(audit, call, layout) or answer
        except UserCodeError as error:
            return self.inconclusive(f"The model cannot be called again: {error} (see MODE102).")
        return answer or self.inconclusive(
            "Replacing samples of the first batch changes no output at all."
        )

    def _asked(self, audit: Audit, call: Call, layout: Layout, which: int = 0) -> Result | None:
        with Replay(audit.loop, call) as replay:
            trial = _Trial(audit, call, layout, replay, which)
            return self.skipped(trial.reason) if trial.reason else self._judged(audit, trial)

    def _of_others(self, audit: Audit, call: Call, layout: Layout) -> Result | None:
        """Return what is certainly wrong with a further output of the model's.

        One that is meant to compare samples, as a similarity or an assignment, is not judged by
        less than that.
        """
        with Replay(audit.loop, call) as replay:
            number = len(_outputs(replay(), layout.count))
        for which in range(1, min(number, _OUTPUTS)):
            audit.clock.check()
            answer = self._asked(audit, call, layout, which)
            if answer is not None and answer.status is Status.FAIL:
                return answer
        return None

    def _judged(self, audit: Audit, trial: _Trial) -> Result | None:
        """Return the answer, or None where nothing changes at all."""
        effects = trial.exchanged()
        if not any(max(e.own, e.others) > e.floor for e in effects):
            return None
        mixing = [effect for effect in effects if effect.mixes]
        if mixing and len(mixing) * 2 > len(effects):
            if trial.is_similarity():
                return self.skipped("The outputs are similarities between all pairs of samples.")
            return self._mixed(audit, trial, mixing)
        moved = trial.reversed_differs()
        if moved is not None:
            return self._placed(audit, trial, moved)
        if (extreme := trial.extreme()) is not None and not trial.is_similarity():
            return self._depends(audit, *extreme)
        largest = max(effect.others for effect in effects)
        return self.passed(
            f"Replacing one sample changes no other sample's output ({len(effects)} tried).",
            measured=f"largest change of another output {largest:.2g}",
            threshold=f"{effects[0].floor:.2g}",
        )

    def _mixed(self, audit: Audit, trial: _Trial, mixing: list[_Effect]) -> Result:
        first = mixing[0]
        module = trial.first_mixing(first.sample)
        place = f", starting in the output of {module}" if module else ""
        table = Table(
            title="One sample replaced by another",
            columns=(
                "sample",
                "change of its own output",
                "largest change of another sample",
                "samples affected",
            ),
            rows=tuple((e.sample, e.own, e.others, e.affected) for e in mixing),
        )
        details: dict[str, Any] = {
            "measured": f"another sample's output changes by {first.others:.3g}",
            "threshold": f"{first.floor:.2g}",
            "evidence": (table,),
            "location": _locate(audit, module),
            "module": module,
        }
        message = (
            f"Replacing sample {first.sample} changes the outputs of {first.affected} other "
            f"samples by up to {first.others:.3g}{place}"
        )
        unexplained = list(_statistics(audit.loop.model))
        if unexplained:
            return self.warned(
                f"{message}: {unexplained[0]} uses batch statistics in eval mode too.",
                fix="Keep running statistics: track_running_stats=True.",
                **details,
            )
        if not trial.connected(first.sample):
            return self.warned(
                f"{message}, although no gradient flows between them: samples compete for "
                "something (a capacity, a top-k over the batch).",
                fix="Unless this is by design, decide for each sample alone.",
                **details,
            )
        if not trial.layout.certain and audit.loop.makes_batches:
            return self.inconclusive(
                f"{message}: wrong if rows are samples, right if they are time steps, nodes of a "
                "graph or members of a set. The script makes its batches itself, so which they "
                "are is not known.",
                **details,
            )
        if not trial.layout.certain:
            return self.warned(
                f"{message}: wrong if rows are samples, right if they are time steps, nodes of a "
                "graph or members of a set.",
                fix="If rows are samples: batch_first=True, permute instead of view, no dim=0.",
                **details,
            )
        accident = trial.accident(module)
        if not accident.found:
            return self.warned(
                f"{message}, whatever their order: samples attend to each other, so predictions "
                "depend on what else is in the batch.",
                fix="Unless this is by design, attend over dimension 1, within each sample.",
                **details,
            )
        details["location"] = accident.location or details["location"]
        return self.failed(
            f"{message}{accident.cause}.",
            fix="Samples are along dimension 0: set batch_first=True, use permute instead of view "
            "or reshape to move dimensions, and do not reduce over dim=0.",
            **details,
        )

    def _depends(self, audit: Audit, effect: _Effect, reduction: Reduction) -> Result:
        return self.warned(
            f"Replacing sample {effect.sample} changes the outputs of {effect.affected} other "
            f"samples by up to {effect.others:.3g}: {reduction.name} reduces over the samples "
            "(dimension 0), and this one decides its value.",
            fix="Reduce over the dimensions of each sample: x.amax(dim=(1, 2, 3), keepdim=True).",
            measured=f"another sample's output changes by {effect.others:.3g}",
            threshold=f"{effect.floor:.2g}",
            location=reduction.location or audit.loop.locate("model"),
        )

    def _placed(self, audit: Audit, trial: _Trial, moved: float) -> Result:
        if not trial.layout.certain and audit.loop.makes_batches:
            return self.inconclusive(
                f"Reversing the batch changes outputs by up to {moved:.3g}: right if rows are time "
                "steps. The script makes its batches itself, so what they are is not known."
            )
        answer = self.failed if trial.layout.certain else self.warned
        return answer(
            f"Reversing the batch changes each sample's output, by up to {moved:.3g}: outputs "
            "depend on the position in the batch.",
            fix="Look for something added along dimension 0, such as a positional encoding made "
            "for (time, batch, features): x + pe[: x.size(1)] with batch-first data.",
            measured=f"change {moved:.3g}",
            threshold=f"{_POSITION:g} of the spread of the outputs",
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
        )


@dataclass(frozen=True)
class _Accident:
    """Whether samples influence each other by mistake, and what shows it."""

    found: bool
    cause: str = ""
    location: Location | None = None


class _Trial:
    """The outputs on the first batch, and on changed ones."""

    def __init__(
        self, audit: Audit, call: Call, layout: Layout, replay: Replay, which: int = 0
    ) -> None:
        self._audit, self._call, self._replay, self._which = audit, call, replay, which
        self.layout = layout
        self.reason = ""
        output = self._chosen(replay())
        if output is None:
            self.reason = "The model's output has no batch dimension."
            return
        if not bool(torch.isfinite(output).all()):
            self.reason = "The outputs are NaN or infinite."
        self._base = output
        again = self._chosen(replay())
        same = again if again is not None and again.shape == output.shape else output
        self._eps = eps_of(audit.loop.model)
        self._floor = tolerance(output, same, eps=self._eps)

    def _chosen(
        self, output: Any, count: int | None = None, *, detach: bool = True
    ) -> Tensor | None:
        """Return the floating output that is looked at; None where there is none."""
        found = _outputs(output, self.layout.count if count is None else count)
        if self._which >= len(found):
            return None
        return compact(found[self._which]) if detach else found[self._which]

    def exchanged(self) -> list[_Effect]:
        """Replace samples at the start, in the middle and near the end of the batch."""
        count = self.layout.count
        effects = []
        for sample in sorted({0, count // 2, max(count - 2, 0)})[:_PLACES]:
            self._audit.clock.check()
            order = stand_in(self._call.inputs, self.layout, sample)
            output = None if order is None else self._on(order)
            if output is not None:
                effects.append(self._effect(sample, output))
        return effects

    def _on(self, order: Tensor, *, states: bool = False) -> Tensor | None:
        try:
            output = self._replay(samples(self._call.inputs, self.layout, order, states=states))
        except UserCodeError:  # packed sequences are sorted by length
            return None
        chosen = self._chosen(output)
        return chosen if chosen is not None and chosen.shape == self._base.shape else None

    def _effect(self, sample: int, output: Tensor) -> _Effect:
        """Of the dimensions that may hold the samples, the one with the least mixing counts."""
        found = []
        for dim in _dims(self._base, self.layout.count):
            change = _per_sample(output - self._base, dim)
            change = torch.where(torch.isnan(change), torch.inf, change)
            others = change.clone()
            others[sample] = 0.0
            affected = int((others > self._floor).sum())
            own, most = float(change[sample]), float(others.max())
            found.append(_Effect(sample, own, most, self._floor, affected))
        return min(found, key=lambda effect: effect.others)

    def reversed_differs(self) -> float | None:
        """Return by how much outputs depend on the place in the batch, or None if they do not."""
        return self._displaced(torch.arange(self.layout.count).flip(0))

    def _displaced(self, order: Tensor) -> float | None:
        """Return by how much outputs fail to follow their samples into ``order``, if they do.

        A carried state may have its samples along dimension 1: they follow in one of both ways.
        """
        ways = any(is_state(t, self.layout) for _, t in batches.tensors(self._call.inputs))
        found = [self._failed_to_follow(order, states) for states in ((False, True)[: 1 + ways])]
        return None if None in found else found[0]

    def _failed_to_follow(self, order: Tensor, states: bool) -> float | None:
        output = self._on(order, states=states)
        if output is None:
            return None
        moved = [
            _per_sample(output - self._base.index_select(dim, order), dim).max()
            for dim in _dims(self._base, self.layout.count)
        ]
        least = float(torch.stack(moved).min())
        spread = float((self._base.amax() - self._base.amin()).abs())
        # Deep networks amplify roundings, and a row's arithmetic depends a little on its place.
        if not least > max(self._floor, _POSITION * spread, 1000 * self._eps * spread):
            return None
        other = self._chosen(self._replay(seed=self._audit.seed + 12345))
        draws = other is None or not torch.equal(other, self._base)
        return None if draws else least

    def is_similarity(self) -> bool:
        """Whether a smaller batch makes the second dimension of the output smaller too."""
        count = self.layout.count
        if self._base.ndim < 2 or self._base.shape[:2] != (count, count):
            return False
        fewer = torch.arange(count - 1)
        try:
            output = self._replay(samples(self._call.inputs, self.layout, fewer))
        except UserCodeError:
            return False
        smaller = self._chosen(output, count - 1)
        return smaller is not None and smaller.shape[:2] == (count - 1, count - 1)

    def accident(self, module: str) -> _Accident:
        """Look for a sign that the samples influence each other by mistake."""
        if reduction := self._replay.reduction_over_samples(self.layout.count):
            cause = f": {reduction.name} reduces over the samples (dimension 0)"
            return _Accident(True, cause, reduction.location)
        if self._takes_samples_for_time(module):
            return _Accident(True, ", which has batch_first=False but gets batch-first data")
        return _Accident(not self._is_symmetric())

    def _takes_samples_for_time(self, module: str) -> bool:
        """Whether ``module`` is an attention that was to be given time first, and never is."""
        modules = dict(self._audit.loop.model.named_modules())
        if _batch_first(modules.get(module)) is not False:
            return False
        count = self.layout.count
        return not any(
            _batch_first(modules.get(name)) is False and count in output.shape[1:2]
            for name, output in self._replay.traced()
            if output.shape[:1] != (count,)
        )

    def _is_symmetric(self) -> bool:
        """Whether outputs follow their samples through a random permutation of the batch."""
        generator = torch.Generator().manual_seed(self._audit.seed)
        order = torch.randperm(self.layout.count, generator=generator)
        return self._displaced(order) is None

    def connected(self, sample: int) -> bool:
        """Whether a gradient flows from ``sample`` to another's output, as far as can be told."""
        last = self.layout.count - 1
        others = self._influence_on(last if sample != last else 0)
        return others is None or bool(others.max() > 0.0)

    def _influence_on(self, other: int) -> Tensor | None:
        """Return the gradient that each sample gets of the output of ``other``, its own taken off.

        None where it cannot be told.
        """
        count = self.layout.count

        def pick(output: Any) -> Tensor:
            chosen = self._chosen(output, detach=False)
            if chosen is None:
                raise TypeError("no output")
            row = chosen.movedim(_dims(chosen, count)[0], 0)[other]
            weights = torch.linspace(0.5, 1.5, row.numel(), device=row.device, dtype=row.dtype)
            return (row.reshape(-1) * weights).sum()

        found = self._replay.influence(pick, count)
        if found is None:
            return None
        others = found.clone()
        others[other] = 0.0
        return others

    def extreme(self) -> tuple[_Effect, Reduction] | None:
        """Return what replacing the sample does that decides a reduction over all of them.

        None where there is no such reduction, or it reaches no other sample's output.
        """
        reduction = self._replay.reduction_over_samples(self.layout.count)
        others = self._influence_on(0) if reduction is not None else None
        if reduction is None or others is None or not others.max() > 0.0:
            return None
        sample = int(others.argmax())
        order = stand_in(self._call.inputs, self.layout, sample)
        output = None if order is None else self._on(order)
        effect = None if output is None else self._effect(sample, output)
        return (effect, reduction) if effect is not None and effect.mixes else None

    def first_mixing(self, sample: int) -> str:
        """Return the first module in whose output other samples change."""
        order = stand_in(self._call.inputs, self.layout, sample)
        if order is None:
            return ""
        before = self._replay.traced()
        after = self._replay.traced(samples(self._call.inputs, self.layout, order))
        for (name, a), (_, b) in zip(before, after, strict=False):
            if a.shape != b.shape or self.layout.count not in a.shape[:2] or not name:
                continue
            floor = tolerance(a, a, eps=self._eps)
            spread = [_others_change(a, b, dim, sample) for dim in _dims(a, self.layout.count)]
            if min(spread) > floor:
                return name
        return ""


def _others_change(before: Tensor, after: Tensor, dim: int, sample: int) -> float:
    change = _per_sample(after.double() - before.double(), dim)
    change[sample] = 0.0
    return float(change.max())


def _outputs(output: Any, count: int) -> list[Tensor]:
    """Return the floating outputs with a dimension of the size of the batch, the main one first."""
    main = main_tensor(output)
    others = (tensor for _, tensor in batches.tensors(output) if tensor is not main)
    return [
        tensor
        for tensor in [*([main] if main is not None else []), *others]
        if tensor.is_floating_point() and tensor.layout is torch.strided and _dims(tensor, count)
    ]


def _dims(tensor: Tensor, count: int) -> list[int]:
    return [dim for dim in (0, 1) if tensor.ndim > dim and tensor.shape[dim] == count]


def _per_sample(change: Tensor, dim: int) -> Tensor:
    return change.movedim(dim, 0).reshape(change.shape[dim], -1).abs().amax(1)


def _batch_first(module: nn.Module | None) -> bool | None:
    """Return how one of torch's attentions takes its input; None for anything else."""
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    return module.batch_first if isinstance(module, nn.MultiheadAttention) else None


def _by_design(model: nn.Module) -> str:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "FakeQuant" in kind or "Observer" in kind:
            return f"{name} measures the range of the whole batch for quantisation."
    return ""


def _statistics(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            yield name


def _locate(audit: Audit, module: str) -> Any:
    modules = dict(audit.loop.model.named_modules())
    while module:
        module = module.rpartition(".")[0]
        if where := audit.loop.locate(modules[module]):
            return where
    return audit.loop.locate(audit.loop.model) or audit.loop.locate("model")
