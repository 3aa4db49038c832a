"""One bounded run of the training as it is, on its real stream of batches.

Everything that only training shows is read off this one run, so that a healthy program pays for
it once: losses by step, where epochs begin, what the network says on fixed batches and on
validation batches at a few moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import Rate, constant_lr, without_dropout
from nnaudit.loop.losses import LossCall, compare_with_labels
from nnaudit.loop.observation import Observation
from nnaudit.loop.planned_rate import planned_rise
from nnaudit.measure.eval_result import (
    EvalResult,
    draws_needed,
    evaluate_batches,
    mean_loss,
)
from nnaudit.measure.run_length import SECONDS, STEPS
from nnaudit.probes.first_steps import is_given
from nnaudit.probes.moved_inputs import MovedInputs, moved_inputs
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import BatchNorm, mode_matters
from nnaudit.training.fitting import without_input
from nnaudit.training.loss_bounds import best_constant
from nnaudit.training.loss_reader import LossReader
from nnaudit.training.stopwatch import Stopwatch

LONGEST = 600

BEYOND = 50
"""Steps into the second epoch that an epoch of up to :data:`LONGEST` steps is followed for."""

MOMENTS = (0, 10, 30, 100)
"""Steps before which the network is looked at, and once more after the last."""

FIXED = 2
VAL_ROWS, VAL_BATCHES = 512, 16
_GAP_ROWS, _GAP_BATCHES = 256, 8
_SETTLING_ROWS, _SETTLING_BATCHES = 1024, 20
_OBSERVED_EVERY = 5
_CALL_BYTES = 64 * 2**20
_PERSISTENT = 5
"""So many losses in a row that are no number are no skipped step of mixed precision."""


@dataclass(frozen=True)
class Modes:
    """Mean losses of the same training batches after the run, dropout off.

    Attributes:
        train: in train mode.
        eval: in eval mode, with the running statistics as training left them.
        settled: in eval mode, with statistics averaged over batches at the final weights.
    """

    train: float
    eval: float
    settled: float


@dataclass(frozen=True)
class EvalPoint:
    """The network after ``step`` steps, on :attr:`Training.fixed` and :attr:`Training.val`."""

    step: int
    fixed: EvalResult
    val: EvalResult


@dataclass(frozen=True)
class Training:
    """What :class:`TrainingRun` saw.

    Attributes:
        losses: the loss of each step in train mode, before its update; NaN where a step raised.
        rates: the highest learning rate of each step.
        epoch_starts: the steps at which an epoch of the training loader began; the first is 0.
        rows: the rows of each step's batch.
        calls: by step, the torch loss function that made the loss, its input a placeholder; of
            every fifth step. Empty where the loss is composite or of unknown kind, and where its
            targets are none of the loader's but one number in each step, as in adversarial
            training: what predicts them without inputs says nothing.
        constant: the loss of the best prediction that ignores the inputs, over ``calls``; NaN
            where it is not known.
        fixed: the first batches of the run, as the loader made them: later trained on.
        val: some batches of the validation loader; empty without one.
        val_whole: they are all of it.
        moments: the network before training, at a few moments and at the end, in order.
        warmed: a warm-up or peak of the learning rate is planned, so the run rises to the peak
            in its first third and comes down in its last; else the rate is held constant.
        broke: the step from which on losses were no numbers, for good; None when they never were.
        error: what the user's code raised once training had begun; else empty.
        cut: the time was up before the run had its full length.
        seconds: what the steps took, as on a quiet machine.
        asleep: steps in whose calls, gradients on, the network was in eval mode, with every module
            in it to which the mode matters.
        modes: what batch normalisation makes of the two modes in the end, or why that is not known;
            None where the run did not come to a finite end.
        moved: where :attr:`calls` are not known, the loss of :attr:`val` in the end, and with
            inputs that have changed places; None where that cannot be had either.
    """

    losses: tuple[float, ...]
    rates: tuple[float, ...]
    epoch_starts: tuple[int, ...]
    rows: tuple[int, ...]
    calls: dict[int, LossCall]
    constant: float
    fixed: tuple[Any, ...]
    val: tuple[Any, ...]
    val_whole: bool
    moments: tuple[EvalPoint, ...]
    warmed: bool = False
    broke: int | None = None
    error: str = ""
    cut: bool = False
    seconds: float = 0.0
    asleep: tuple[int, ...] = ()
    modes: Modes | str | None = None
    moved: MovedInputs | None = None

    @property
    def first_epoch(self) -> tuple[float, ...]:
        """The losses of the first epoch: of rows that had not been trained on."""
        end = self.epoch_starts[1] if len(self.epoch_starts) > 1 else len(self.losses)
        return self.losses[:end]

    @property
    def has_labels(self) -> bool:
        """Whether its losses compare with classes, or with the same numbers in every step."""
        return compare_with_labels(self.calls.values())

    @property
    def ending(self) -> str:
        """Why the run ended before its time; empty where it did not."""
        if self.broke is None:
            return ""
        why = self.error or "the loss is NaN or infinite from then on"
        return f"The run ended at step {self.broke}: {why}."

    def last(self, share: float = 1 / 3) -> tuple[float, ...]:
        """The losses of the last ``share`` of the run."""
        return self.losses[-max(1, round(share * len(self.losses))) :]


class TrainingRun(Probe[Training]):
    """Takes a few hundred steps on the real stream, as the author's loop does.

    See :class:`Training` for what it holds. The learning rate is the author's highest, reached by
    a squeezed warm-up where one is planned; dropout and augmentation are on.
    """

    def measure(self, audit: Audit) -> Training:
        """Train for :data:`STEPS` steps or :data:`SECONDS`.

        Raises:
            UserCodeError: the very first step raised, or the loader did.
            OutOfBudgetError: the time is used up.
        """
        return training_run(audit)


def training_run(audit: Audit, *, steps: int = STEPS, val: bool = True) -> Training:
    """Train for ``steps`` steps or :data:`SECONDS`; the caller preserves the state.

    Args:
        val: look at validation batches as well.

    Raises:
        UserCodeError: the very first step raised, or the loader did.
        OutOfBudgetError: the time is used up.
    """
    held, whole = _validation(audit.loop) if val else ((), False)
    run = _Run(audit, steps, held)
    with constant_lr(audit.loop) as rate, run.reading_modes():
        run.train(rate)
    return run.result(whole)


def squeezed(position: float) -> float:
    """Return the factor on the peak learning rate at ``position`` (0 to 1) of a planned run.

    Up in the first third, down to a tenth in the last: warm-up, one-cycle and cosine in short.
    """
    if position < 1 / 3:
        return max(3 * position, 0.01)
    return 1.0 if position < 2 / 3 else 1.0 - 2.7 * (position - 2 / 3)


@dataclass
class _Run:
    """A run on its way."""

    audit: Audit
    steps: int
    val: tuple[Any, ...]
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    calls: dict[int, LossCall] = field(default_factory=dict)
    fixed: list[Any] = field(default_factory=list)
    moments: list[EvalPoint] = field(default_factory=list)
    bytes: int = 0
    unknown: bool = False
    filled: int = 0
    warmed: bool = False
    cut: bool = False
    error: str = ""
    seconds: float = 0.0
    asleep: list[int] = field(default_factory=list)
    modes: Modes | str | None = None
    moved: MovedInputs | None = None
    awake: list[bool] = field(default_factory=list)
    draws: int = 0
    reader: LossReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = LossReader(self.audit.loop, untried=True)

    def train(self, rate: Rate) -> None:
        """Take the steps."""
        loop = self.audit.loop
        self.warmed = planned_rise(loop)
        known = _length(loop)
        most = max(self.steps, known + BEYOND) if known <= LONGEST - BEYOND else self.steps
        most = self.steps if self.steps < STEPS else most
        for batch in self._stream(most):
            self.audit.clock.check()
            if not self.fixed:
                self.fixed = [batches.clone(batch)]
                self._look(0)
            elif len(self.fixed) < FIXED and len(self.starts) == 1:
                self.fixed.append(batches.clone(batch))
            if len(self.losses) in MOMENTS[1:]:
                self._look(len(self.losses))
            if self.warmed:
                rate.factor = squeezed(len(self.losses) / most)
            if not self._step(batch) or self._gone():
                break
            if self.seconds > SECONDS:
                self.cut = True
                break
        if self.moments and self.moments[-1].step < len(self.losses):
            self._look(len(self.losses))
        if self.unknown and not self.error and math.isfinite(self.losses[-1]):
            with preserved(loop.subjects):
                self.moved = moved_inputs(self.audit, self.val)
        if not self.error and math.isfinite(self.losses[-1]):
            self.modes = _modes(self.audit)

    @contextmanager
    def reading_modes(self) -> Iterator[None]:
        """Note with every call that gradients flow through whether the network is in eval mode."""
        model = self.audit.loop.model
        parts = [m for m in model.modules() if mode_matters(m)]

        def called(module: nn.Module, args: Any) -> None:
            if torch.is_grad_enabled():
                self.awake.append(module.training or any(part.training for part in parts))

        scripted = isinstance(model, torch.jit.ScriptModule)
        hook = model.register_forward_pre_hook(called) if parts and not scripted else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def _stream(self, most: int) -> Iterator[Any]:
        """Yield batches epoch after epoch; only what the steps take counts as time."""
        while len(self.losses) < most:
            self.starts.append(len(self.losses))
            watch = Stopwatch()
            for batch in self.audit.loop.batches():
                # A program that makes its batches itself does so in steps, which take their time.
                self.seconds += watch.seconds if self.audit.loop.makes_batches else 0.0
                yield batch
                if len(self.losses) >= most:
                    return
                watch = Stopwatch()
            if self.starts[-1] == len(self.losses):
                self.starts.pop()
                break  # a loader that can be read once only
        if not self.losses:
            raise TargetError(
                "train_loader yields no batch: is the dataset empty, or smaller than one batch "
                "with drop_last=True?"
            )

    def _step(self, batch: Any) -> bool:
        """Take one step; whether there can be another."""
        number = len(self.losses)
        observe = number % _OBSERVED_EVERY == 0 and not self.unknown and self.bytes < _CALL_BYTES
        watch = Stopwatch()
        self.awake.clear()
        try:
            step = self.audit.loop.step(batch, losses=observe)
        except UserCodeError as error:
            if not self.losses:
                raise
            self.error = str(error)
            self.losses.append(math.nan)
            self.rates.append(self.rates[-1])
            self.rows.append(batches.size(batch))
            return False
        self.seconds += watch.seconds
        self.asleep += [number] if self.awake and not any(self.awake) else []
        self.losses.append(step.loss)
        # The rate is set when the optimizer steps: what the step began with is the one before.
        self.rates.append(_highest(self.audit.loop))
        self.rows.append(batches.size(batch))
        if step.observation is not None:
            self._note(number, batch, step.observation)
        return True

    def _note(self, number: int, batch: Any, seen: Observation) -> None:
        call = self.reader.call(batch, seen)
        if call is None or not call.compares:
            self.unknown = math.isfinite(self.losses[-1])
            return
        self.filled += _is_filled(call) and not is_given(call, batch)
        kept = without_input(call)
        self.calls[number] = kept
        self.bytes += kept.target.nbytes

    def _gone(self) -> bool:
        last = self.losses[-_PERSISTENT:]
        return len(last) == _PERSISTENT and not any(math.isfinite(loss) for loss in last)

    def _look(self, step: int) -> None:
        loop, seed = self.audit.loop, self.audit.seed
        with preserved(loop.subjects):
            self.draws = self.draws or draws_needed(loop, self.fixed[0], seed)
            fixed, val = (
                evaluate_batches(loop, some, self.reader, draws=self.draws, seed=seed)
                for some in (self.fixed, self.val)
            )
            moment = EvalPoint(step, fixed, val)
        self.moments.append(moment)

    def result(self, whole: bool) -> Training:
        """Return what was seen."""
        calls = {} if self.unknown or self.filled == len(self.calls) else self.calls
        constant = best_constant(list(calls.values())) if calls else None
        bad = len(self.losses)
        while bad and not math.isfinite(self.losses[bad - 1]):
            bad -= 1
        broke = bad if bad < len(self.losses) and (self._gone() or self.error) else None
        return Training(
            losses=tuple(self.losses),
            rates=tuple(self.rates),
            epoch_starts=tuple(self.starts),
            rows=tuple(self.rows),
            calls=calls,
            constant=math.nan if constant is None else constant,
            fixed=tuple(self.fixed),
            val=self.val,
            val_whole=whole,
            moments=tuple(self.moments),
            warmed=self.warmed,
            broke=broke,
            error=self.error,
            cut=self.cut,
            seconds=self.seconds,
            asleep=tuple(self.asleep),
            modes=self.modes,
            moved=self.moved,
        )


def _is_filled(call: LossCall) -> bool:
    """Whether the targets are one number, several times."""
    target = call.target.reshape(-1)
    return target.numel() > 1 and bool((target == target[0]).all())


def _highest(loop: Loop) -> float:
    groups = [group for optimizer in loop.optimizers for group in optimizer.param_groups]
    return max((float(group["lr"] or 0.0) for group in groups), default=0.0)


def _length(loop: Loop) -> int:
    try:
        return len(loop.train_loader)
    except (TypeError, NotImplementedError):
        return LONGEST


def _validation(loop: Loop) -> tuple[tuple[Any, ...], bool]:
    """Copies of some validation batches, and whether they are all there are."""
    if loop.lacks(Needs.VAL_LOADER):
        return (), False
    found: list[Any] = []
    rows = 0
    try:
        for batch in loop.val_batches():
            if len(found) >= VAL_BATCHES or rows >= VAL_ROWS:
                return tuple(found), False
            found.append(batches.clone(batch))
            rows += batches.size(batch)
    except UserCodeError:
        return (), False
    return tuple(found), True


def _modes(audit: Audit) -> Modes | str:
    """Compare train and eval mode at the weights as they are, or say why not.

    The averages are lost.
    """
    loop = audit.loop
    norms = [
        module
        for module in loop.model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None and module.training
    ]
    if not norms:
        return "no batch normalisation is in train mode at the end of the run"
    try:
        with ExitStack() as stack:
            for model in loop.models:
                stack.enter_context(without_dropout(model))
            held = _copies(loop, _GAP_BATCHES, _GAP_ROWS)
            draws = draws_needed(loop, held[0], audit.seed)
            after = mean_loss(audit, held, draws=draws)
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain average of what follows
            for batch in _copies(loop, _SETTLING_BATCHES, _SETTLING_ROWS):
                audit.clock.check()
                loop.forward(batch, train=True)
            if any(norm.num_batches_tracked == 0 for norm in norms):
                return "a forward pass outside of the training step does not move its averages"
            settled = mean_loss(audit, held, draws=draws)
            # Last, for it would move the averages towards these very batches.
            train = mean_loss(audit, held, draws=draws, train=True)
    except UserCodeError as error:
        return f"the loss cannot be computed outside of the training step ({error})"
    # A loss that explodes in eval mode only is what is looked for.
    usable = math.isfinite(train) and not math.isnan(after) and not math.isnan(settled)
    return Modes(train, after, settled) if usable else "the loss is NaN or infinite"


def _copies(loop: Loop, most: int, rows: int) -> list[Any]:
    """Return the first batches of an epoch, up to ``most``: fewer make up ``rows``, but two."""
    found: list[Any] = []
    for batch in islice(loop.batches(), most):
        found.append(batches.clone(batch))
        if len(found) > 1 and sum(batches.size(each) for each in found) >= rows:
            break
    return found
