"""MODE104: whether batch normalisation gives the same network in train and in eval mode."""

from __future__ import annotations

from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.consecutive import batches_per_epoch
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.training_run import Modes, Training, TrainingRun
from nnaudit.report import Kind, Numbers, Result
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import BatchNorm
from nnaudit.wording import count

_EARLY = 100
"""Steps of a run before which a gap may be one of the first steps' alone."""


class BatchnormGap(Check):
    """Does batch normalisation give the same loss in eval mode as in train mode?

    Why: In train mode it uses the statistics of the batch, in eval mode running averages. With one
        or two rows per batch, or with a momentum that never settles or never averages, these are
        two different networks, and the one that is validated was never trained.
    How: Compares the loss of up to 8 training batches in train and eval mode, dropout off, after
        the run of up to 300 steps at your learning rate (as in FIT103). Warns when the eval loss is
        more than `gap` above the train loss (or above a tenth of the first loss, where training has
        got that low).
        - Early in training the running averages lag behind the weights, which is normal: they are
          recomputed over up to 20 batches or 1,024 rows first, and only what remains counts.
        - Warns without a run about 1 or 2 rows per batch, and about a momentum of 0, of 0.9 and
          above (PyTorch's momentum is the weight of the new batch, other libraries' of the old
          average), or one that needs more than ten epochs to settle.
        - A gap in a run that the budget has cut short of 100 steps is inconclusive.
        - With several optimizers (a GAN) it is inconclusive.
    Fix: Larger batches, or `nn.GroupNorm`, which is the same in both modes; `momentum=0.1`.
    References: Ioffe, "Batch Renormalization" (2017); Wu and Johnson, "Rethinking 'Batch' in
        BatchNorm" (2021); PyTorch documentation of BatchNorm2d.
    """

    code, name, kind = "MODE104", "batchnorm-gap", Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS, Needs.SAME_BATCH)
    probes = (FirstSteps, TrainingRun)
    trains = True
    consequence_of = ("MODE101",)
    options: ClassVar[dict[str, float]] = {"gap": 0.5}

    def run(self, audit: Audit) -> Result:
        """Look at the settings, then at the losses."""
        norms = _in_use(audit)
        if not norms:
            return self.skipped("No batch normalisation with running statistics is trained.")
        odd = self._odd_settings(audit, norms)
        if odd is not None:
            return odd
        training = audit.probe(TrainingRun)
        if training.modes is None:
            return self.inconclusive(
                "The run did not come to an end with a finite loss: see FIT104."
            )
        if isinstance(training.modes, str):
            return self.inconclusive(f"Not compared: {training.modes}.")
        return self._judged(audit, norms, training, training.modes)

    def _judged(
        self, audit: Audit, norms: dict[str, BatchNorm], training: Training, modes: Modes
    ) -> Result:
        limit = self.option(audit, "gap")
        first = training.losses[0]
        excess = _excess(modes.settled, modes.train, first)
        numbers = Numbers(
            title="Mean loss of the same training batches",
            values={
                "train mode": modes.train,
                "eval mode": modes.eval,
                "eval mode, statistics recomputed": modes.settled,
            },
        )
        said = (
            f"After {len(training.losses)} steps the loss on the same batches is "
            f"{modes.train:.4g} in train mode and {modes.settled:.4g} in eval mode"
        )
        if excess > limit and len(audit.loop.optimizers) > 1:
            return self.inconclusive(
                f"{said}, but with several competing optimizers one loss says little.",
                evidence=(numbers,),
            )
        if excess > limit and len(training.losses) < _EARLY:
            return self.inconclusive(
                f"{said}; that is early, when a batch's statistics and those of all rows differ "
                f"most: {_EARLY} steps are needed, and there was no time for them.",
                evidence=(numbers,),
            )
        if excess > limit:
            return self.warned(
                f"{said}, even with recomputed statistics: batch normalisation does not carry over "
                "to eval mode.",
                measured=f"loss {excess:.0%} higher in eval mode",
                threshold=f"{limit:.0%}",
                evidence=(numbers,),
                module=next(iter(norms)),
                location=audit.loop.locate("model"),
                fix="use larger batches, or replace BatchNorm by nn.GroupNorm",
            )
        lags = _excess(modes.eval, modes.train, first) > limit
        lag = "; the running averages still lag behind" if lags else ""
        return self.passed(f"{said}{lag}.", evidence=(numbers,))

    def _odd_settings(self, audit: Audit, norms: dict[str, BatchNorm]) -> Result | None:
        details: dict[str, Any] = {"location": audit.loop.locate("model")}
        first = audit.probe(FirstSteps)
        rows = min((batches.size(batch) for batch in first.batches), default=0)
        name = next(iter(norms))
        if 1 <= rows <= 2:
            return self.warned(
                f"Batch normalisation computes its statistics from {count(rows, 'row')} per batch.",
                measured=count(rows, "row"),
                threshold="more than 2 rows",
                module=name,
                fix="use larger batches, or nn.GroupNorm instead of BatchNorm",
                **details,
            )
        epoch = batches_per_epoch(audit.loop)
        for name, norm in norms.items():
            momentum = norm.momentum
            if momentum is None:
                continue
            problem = ""
            if momentum <= 0.0:
                problem = "are never updated: eval mode uses mean 0 and variance 1"
            elif momentum >= 0.9:
                problem = "hold little more than the last batch"
            elif epoch and 1.0 / momentum > 10 * epoch:
                problem = (
                    f"need {1 / momentum:.0f} batches to settle, and an epoch has only {epoch}"
                )
            if problem:
                return self.warned(
                    f"With momentum {momentum:g}, the running statistics of {name or 'the model'} "
                    f"{problem}.",
                    measured=f"momentum={momentum:g}",
                    threshold="0 < momentum < 0.9, settled within ten epochs",
                    module=name,
                    fix="nn.BatchNorm2d(..., momentum=0.1)  # the weight of the new batch",
                    **details,
                )
        return None


def _in_use(audit: Audit) -> dict[str, BatchNorm]:
    """Return the batch normalisations that use batch statistics in training and keep averages."""
    flags: dict[str, bool] = {}
    for seen in audit.probe(FirstSteps).observations:
        flags.update(seen.training_flags)
    return {
        name: module
        for name, module in audit.loop.model.named_modules()
        if isinstance(module, BatchNorm)
        and module.running_mean is not None
        and flags.get(name, False)
    }


def _excess(loss: float, train: float, first: float) -> float:
    """Return by how much of the train-mode loss ``loss`` is above it.

    A train-mode loss near zero says little: a tenth of the first loss is taken instead.
    """
    return (loss - train) / max(abs(train), 0.1 * abs(first), 1e-12)
