"""MODE103: whether validation leaves the network unchanged."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import Loop, Needs
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.movement import same
from nnaudit.probes.validated_weights import ValidatedAverage, ValidatedWeights
from nnaudit.report import Kind, Result, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import StatisticsNorm
from nnaudit.targets.model_inputs import ModelInputs, has_forward
from nnaudit.training.evaluation import IN_PARTS, evaluate, fed_to
from nnaudit.wording import count, verb

BATCHES = 3
_STEPS = 3
_ROUNDINGS = 64
_STRAIGHT = 1e-2
"""The part of a change that may miss the straight line: rounding of many small steps."""

_TOWARD = 0.9
"""Cosine between the way of a moving average and the way to the trained weights."""

_STATISTICS = ("running_mean", "running_var", "running_std", "running_avg", "moving_average")


class EvalPurity(Check):
    """Does validation leave parameters and buffers unchanged?

    Why: What a validation pass changes, it trains on validation data: running statistics that
        include the validation set, a codebook or an average that is still updated. The score is
        then measured on data that were used, and a run with more frequent validation ends
        elsewhere.
    How: Runs the model in eval mode and without gradients on three batches of the validation loader
        (of the training loader where there is none), and compares parameters and buffers bit for
        bit. What stays the same when the same batches run again, to 64 roundings, was only brought
        to where a constraint wants it (a maximum norm, a lazy initialisation) and does not count.
        - Fails when a parameter changes, or a statistic of a normalisation: a buffer of torch's
          normalisation layers, or one called `running_mean` and the like.
        - Fails when a parameter changes, by more than 64 roundings, each time that the network is
          switched to eval mode and back, in a network whose classes have a `train()` of their own,
          after three steps: an adapter that is merged into its layer before validation and not
          taken out again afterwards is merged again and again.
        - Warns, in a program without validation, when such parameters are frozen or move straight
          towards other parameters (a momentum encoder updated in its own forward): eval mode is
          nnaudit's choice there.
        - Warns when a moving average of the weights is in the network while the program validates,
          and still is in the next training step: it is found by its values in a dict, a list or a
          network of the program's that moves toward the trained weights. To train on from the
          average is a method of its own.
        - Warns about other buffers (counters, hidden states, memories) that keep their shape and
          dtype, which is a note in a program without validation: a queue of keys may be filled by
          the forward of the training. A buffer that takes a new shape is a cache.
    Fix: `if self.training: ...` around every update of a buffer in `forward`.
    References: PyTorch documentation of nn.Module.register_buffer and nn.BatchNorm2d.
    """

    code, name, kind = "MODE103", "eval-purity", Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (ValidatedAverage,)
    consequence_of = ("MODE101",)

    def run(self, audit: Audit) -> Result:
        """Run some batches and compare."""
        loop = audit.loop
        if (wrong := self._around(audit)) is not None:
            return wrong
        if not has_forward(loop.model):
            return self.skipped(IN_PARTS)
        validated = not loop.lacks(Needs.VAL_LOADER)
        source = loop.val_batches() if validated else consecutive_batches(loop, BATCHES)
        some = [batches.clone(batch) for batch in islice(source, BATCHES)]
        if not some:
            return self.inconclusive("The validation loader yields no batch.")
        try:
            with preserved(loop.subjects):
                feds = [fed_to(loop, batch) for batch in some]
            before = {name: value.detach().clone() for name, value in _state(loop).items()}
            after = _after(audit, feds)
            moved = [n for n, old in before.items() if n not in after or not same(after[n], old)]
            again = _after(audit, feds) if moved else after
            changed = [n for n in moved if not _settled(after.get(n), again.get(n))]
        except UserCodeError as error:
            return self.inconclusive(
                f"Not measured: the model cannot be run on a batch on its own: {error} (see "
                "MODE102)."
            )
        whose = "validation" if validated else "training"
        if not changed:
            but = f" ({len(moved)} settle in the first pass, such as {moved[0]})" if moved else ""
            return self.passed(
                f"{len(some)} {whose} batches in eval mode leave all {len(before)} parameters and "
                f"buffers unchanged{but}."
            )
        return self._changed(audit, changed, before, after, validated=validated)

    def _around(self, audit: Audit) -> Result | None:
        """Return what is wrong with what the program does before validation and after it."""
        average = audit.probe(ValidatedAverage)
        if average is not None and average.remained and average.alignment >= _TOWARD:
            return self._remained(audit, average)
        switched = _switched(audit)
        return self._switches(audit, switched) if switched else None

    def _switches(self, audit: Audit, changed: list[str]) -> Result:
        return self.failed(
            f"Each time that the network is switched to eval mode and back, "
            f"{count(len(changed), 'parameter')} {verb(len(changed), 'change')} ({changed[0]} "
            "first): what is merged into a weight for validation is not taken out again, and is "
            "merged once more at the next.",
            measured=f"{count(len(changed), 'parameter')} changed by model.eval(), model.train()",
            threshold="no change but rounding",
            fix="in train(mode): merge once where mode is False, and subtract it again where it is "
            "True",
            **_at(audit, changed[0]),
        )

    def _remained(self, audit: Audit, average: ValidatedWeights) -> Result:
        return self.warned(
            f"For validation the average of the weights (kept in a {average.held}) is put into "
            "the network, and training goes on with it: what the steps of the epoch changed is "
            "mostly undone.",
            measured=f"{count(average.weights, 'parameter')} not given back",
            threshold="the trained weights, after validation",
            location=audit.loop.locate("val_loader") or audit.loop.locate("model"),
            fix="keep the trained weights before, and load them after validation: ema.restore()",
        )

    def _changed(
        self,
        audit: Audit,
        changed: list[str],
        before: dict[str, Tensor],
        after: dict[str, Tensor],
        *,
        validated: bool,
    ) -> Result:
        model = audit.loop.model
        parameters = {name for name, _ in model.named_parameters()}
        details: dict[str, Any] = {
            "threshold": "no change",
            "evidence": (_table(changed, before, after),),
        }
        weights = [name for name in changed if name in parameters]
        if weights:
            # Without validation the forward may be a part of the training step, as in MoCo.
            follow = not validated and all(
                not model.get_parameter(name).requires_grad or _follows(name, before, after)
                for name in weights
            )
            answer = self.warned if follow else self.failed
            return answer(
                f"A forward pass in eval mode changes {count(len(weights), 'parameter')} "
                f"({weights[0]}).",
                measured=f"{count(len(weights), 'parameter')} changed",
                fix="change parameters only in training: if self.training: ...",
                **_at(audit, weights[0]),
                **details,
            )
        modules = dict(model.named_modules())
        statistics = [name for name in changed if _is_statistic(name, modules)]
        if statistics:
            return self.failed(
                "A forward pass in eval mode changes "
                f"{count(len(statistics), 'running statistic')} ({statistics[0]} first): "
                "validation data become part of the model.",
                measured=f"{count(len(statistics), 'running statistic')} changed",
                fix="update them only if self.training, and register the module so that eval() "
                "reaches it",
                **_at(audit, statistics[0]),
                **details,
            )
        others = [n for n in changed if n in after and _keeps_form(before[n], after[n])]
        if not others:
            return self.passed(
                f"A forward pass in eval mode changes only {count(len(changed), 'cache')} "
                f"({changed[0]}), which also changes its shape."
            )
        answer = self.warned if validated else self.noted
        return answer(
            f"A forward pass in eval mode changes {count(len(others), 'buffer')} ({others[0]}).",
            measured=f"{count(len(others), 'buffer')} changed",
            fix="unless it is a cache or a state kept by design: if self.training: ...",
            **_at(audit, others[0]),
            **details,
        )


def _state(loop: Loop) -> dict[str, Tensor]:
    named = [*loop.model.named_parameters(), *loop.model.named_buffers()]
    return {name: value for name, value in named if value.layout is torch.strided}


def _switched(audit: Audit) -> list[str]:
    """Return the parameters that change each time the mode is switched to eval and back.

    Where no class of the network has a mode switch of its own, there are none, and no step is
    taken.
    """
    loop = audit.loop
    if all(type(m).train is nn.Module.train and _plain_eval(m) for m in loop.model.modules()):
        return []
    seen: list[dict[str, Tensor]] = []
    with preserved(loop.subjects):
        for batch in consecutive_batches(loop, _STEPS):
            audit.clock.check()
            loop.step(batch)
        with user_code("switching between train and eval mode"):
            for _ in range(3):
                named = loop.model.named_parameters()
                seen.append({name: p.detach().clone() for name, p in named})
                loop.model.eval()
                loop.model.train()
    before, once, twice = seen
    return [
        name
        for name in before
        if name in once and name in twice
        if not _settled(before[name], once[name]) and not _settled(once[name], twice[name])
    ]


def _plain_eval(module: nn.Module) -> bool:
    return type(module).eval is nn.Module.eval


def _after(audit: Audit, feds: list[ModelInputs]) -> dict[str, Tensor]:
    """Return copies of parameters and buffers after a forward pass in eval mode for each feed."""
    for fed in feds:
        audit.clock.check()
        evaluate(audit.loop, fed)
    return {name: value.detach().clone() for name, value in _state(audit.loop).items()}


def _settled(once: Tensor | None, twice: Tensor | None) -> bool:
    """Whether a second pass left alone what the first had changed, but for rounding."""
    if once is None or twice is None or not _keeps_form(once, twice):
        return False
    if not once.is_floating_point():
        return same(once, twice)
    scale = float(once.abs().max()) if once.numel() else 0.0
    return _largest(twice, once) <= _ROUNDINGS * torch.finfo(once.dtype).eps * scale


def _follows(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether a parameter has moved straight towards another, which has stayed where it was."""
    old, move = before[name].double(), after[name].double() - before[name].double()
    size = float(move.abs().max())
    for other, goal in before.items():
        stayed = other in after and same(after[other], goal)
        if other == name or goal.shape != old.shape or not stayed:
            continue
        way = goal.double() - old
        share = float((move * way).sum() / way.square().sum().clamp_min(1e-30))
        if share > 0 and float((move - share * way).abs().max()) <= _STRAIGHT * size:
            return True
    return False


def _is_statistic(name: str, modules: dict[str, nn.Module]) -> bool:
    owner, _, leaf = name.rpartition(".")
    module = modules.get(owner)
    return isinstance(module, StatisticsNorm) or any(s in leaf for s in _STATISTICS)


def _keeps_form(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype


def _at(audit: Audit, name: str) -> dict[str, Any]:
    owner = name.rpartition(".")[0]
    module = dict(audit.loop.model.named_modules()).get(owner)
    found = audit.loop.locate(module) if module is not None else None
    return {"module": owner, "location": found or audit.loop.locate("model")}


def _largest(new: Tensor, old: Tensor) -> float:
    wide = torch.complex128
    gap = (new.detach().to(wide) - old.to(wide)).abs()
    return float(gap.max()) if gap.numel() else 0.0


def _table(changed: list[str], before: dict[str, Tensor], after: dict[str, Tensor]) -> Table:
    rows = []
    for name in changed[:20]:
        old, new = before[name], after.get(name)
        if new is None or new.shape != old.shape:
            gap = "new shape" if new is not None else "removed"
        else:
            gap = f"{_largest(new, old):.3g}"
        rows.append((name, "x".join(map(str, old.shape)), gap))
    return Table(
        title="Changed by a forward pass in eval mode",
        columns=("name", "shape", "largest change"),
        rows=tuple(rows),
    )
