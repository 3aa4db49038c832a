"""MODE104: whether batch normalisation gives the same network in train and in eval mode."""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from nnaudit import batch as batches
from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import constant_lr, without_dropout
from nnaudit.probes.first_steps import FirstSteps, consecutive_batches
from nnaudit.report import Kind, Numbers, Result

Norm = nn.modules.batchnorm._BatchNorm

_STEPS = 40
_EVALUATED = 8
_SETTLING = 20


@dataclass(frozen=True)
class Gap:
    """Mean losses of the same training batches, after some training.

    Attributes:
        start: before training, in train mode.
        train: in train mode.
        eval: in eval mode, with the running statistics as training left them.
        settled: in eval mode, with statistics averaged over batches at the final weights.
    """

    start: float
    train: float
    eval: float
    settled: float

    def excess(self, loss: float) -> float:
        """Return by how much of the train-mode loss ``loss`` is above it.

        A train-mode loss near zero says little: a tenth of the first loss is taken instead.
        """
        return (loss - self.train) / max(abs(self.train), 0.1 * abs(self.start), 1e-12)


class BatchnormGap(Check):
    """Does batch normalisation compute the same in eval mode as in training, on the same data?

    Why: In training it uses the statistics of the batch, in eval mode averages over the past.
        With one or two rows per batch, or with a momentum that never settles or never averages,
        these are two different networks, and the one that is validated was never trained.
    How: 40 steps are taken at your learning rate, dropout off; then the loss of 8 training
        batches is compared between train and eval mode. Early in training the averages lag
        behind the weights, which is nothing to worry about: so they are computed anew, over 20
        batches at the final weights, and only what remains then is held against the network: a
        loss in eval mode more than 50 % above that in train mode (or above a tenth of the first
        loss, where training has got that low already). With several optimizers (a GAN) there is
        no such answer. Apart from that, one or two rows per
        batch, a momentum of 0, one of 0.9 and above (PyTorch's is the weight of the new batch,
        other libraries' of the old), and one that needs more than ten epochs to settle are
        warnings on sight.
    Fix: larger batches, or GroupNorm, which is the same in both modes; momentum=0.1
    References: Ioffe, "Batch Renormalization" (2017); Wu and Johnson, "Rethinking 'Batch' in
        BatchNorm" (2021); PyTorch documentation of BatchNorm2d.
    """

    code, name, kind = "MODE104", "batchnorm-gap", Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS)
    probes = (FirstSteps,)
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
        try:
            gap = _measure(audit, norms)
        except UserCodeError as error:
            return self.inconclusive(f"The loss could not be computed in both modes: {error}.")
        if gap is None:
            return self.inconclusive("The loss could not be computed, or was not finite.")
        return self._judged(audit, norms, gap)

    def _judged(self, audit: Audit, norms: dict[str, Norm], gap: Gap) -> Result:
        limit = self.option(audit, "gap")
        numbers = Numbers(
            title="Mean loss of the same training batches",
            values={
                "before training": gap.start,
                "train mode": gap.train,
                "eval mode": gap.eval,
                "eval mode, statistics computed anew": gap.settled,
            },
        )
        said = (
            f"After {_STEPS} steps the loss of the same batches is {gap.train:.4g} in train mode "
            f"and {gap.settled:.4g} in eval mode"
        )
        if gap.excess(gap.settled) > limit and len(audit.loop.optimizers) > 1:
            return self.inconclusive(
                f"{said}; where several optimizers work against each other, one loss says little.",
                evidence=(numbers,),
            )
        if gap.excess(gap.settled) > limit:
            return self.warned(
                f"{said}, with statistics computed anew: batch normalisation does not carry over.",
                measured=f"{100 * gap.excess(gap.settled):.0f} % higher in eval mode",
                threshold=f"{100 * limit:.0f} %",
                evidence=(numbers,),
                module=next(iter(norms)),
                location=audit.loop.locate("model"),
                fix="use larger batches, or replace BatchNorm by nn.GroupNorm",
            )
        lag = "; the running averages lag behind as yet" if gap.excess(gap.eval) > limit else ""
        return self.passed(f"{said}{lag}.", evidence=(numbers,))

    def _odd_settings(self, audit: Audit, norms: dict[str, Norm]) -> Result | None:
        details: dict[str, Any] = {"location": audit.loop.locate("model")}
        first = audit.probe(FirstSteps)
        rows = min((batches.size(batch) for batch in first.batches), default=0)
        name = next(iter(norms))
        if 1 <= rows <= 2:
            return self.warned(
                f"Batch normalisation takes its statistics from {rows} rows per batch.",
                measured=f"{rows} rows",
                threshold="more than 2",
                module=name,
                fix="larger batches, or nn.GroupNorm in place of BatchNorm",
                **details,
            )
        epoch = _length(audit.loop)
        for name, norm in norms.items():
            momentum = norm.momentum
            if momentum is None:
                continue
            problem = ""
            if momentum <= 0.0:
                problem = "never takes in a batch: eval mode uses mean 0 and variance 1"
            elif momentum >= 0.9:
                problem = "keeps little more than the last batch"
            elif epoch and 1.0 / momentum > 10 * epoch:
                problem = f"needs {1 / momentum:.0f} batches to settle, and an epoch has {epoch}"
            if problem:
                return self.warned(
                    f"The running statistics of {name or 'the model'}, with momentum "
                    f"{momentum:g}, are of little use: it {problem}.",
                    measured=f"momentum={momentum:g}",
                    threshold="0 < momentum < 0.9, settled within ten epochs",
                    module=name,
                    fix="momentum=0.1, the weight of the new batch",
                    **details,
                )
        return None


def _in_use(audit: Audit) -> dict[str, Norm]:
    """Return the batch normalisations that use batch statistics in training and keep averages."""
    flags: dict[str, bool] = {}
    for seen in audit.probe(FirstSteps).observations:
        flags.update(seen.training_flags)
    return {
        name: module
        for name, module in audit.loop.model.named_modules()
        if isinstance(module, Norm) and module.running_mean is not None and flags.get(name, False)
    }


def _length(loop: Loop) -> int:
    try:
        return len(loop.train_loader)
    except (TypeError, NotImplementedError):
        return 0


def _measure(audit: Audit, norms: dict[str, Norm]) -> Gap | None:
    """Train a little and compare; None where there is no finite loss.

    Raises:
        UserCodeError: a step or a forward pass raised.
    """
    loop = audit.loop
    with ExitStack() as stack:
        for model in loop.models:
            stack.enter_context(without_dropout(model))
        held = [batches.clone(b) for b in consecutive_batches(loop, _EVALUATED)]
        start = _mean_loss(audit, held, train=True)
        with constant_lr(loop):
            for batch in consecutive_batches(loop, _STEPS):
                audit.clock.check()
                loop.step(batch)
        after = _mean_loss(audit, held, train=False)
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the plain average of what follows
        for batch in consecutive_batches(loop, _SETTLING):
            audit.clock.check()
            loop.forward(batch, train=True)
        settled = _mean_loss(audit, held, train=False)
        # Last, for it would move the averages towards these very batches.
        train = _mean_loss(audit, held, train=True)
    losses = (start, train, after, settled)
    if any(loss is None for loss in losses):
        return None
    found = [loss for loss in losses if loss is not None]
    # A loss that explodes in eval mode only is what is looked for.
    if not (math.isfinite(found[0]) and math.isfinite(found[1])):
        return None
    return Gap(*found)


def _mean_loss(audit: Audit, some: list[Any], *, train: bool) -> float | None:
    losses = []
    for batch in some:
        audit.clock.check()
        loss = audit.loop.forward(batch, train=train).loss
        if loss is None:
            return None
        losses.append(loss)
    return statistics.mean(losses)
