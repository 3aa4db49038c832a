"""One run of a script: it is executed, watched until its first optimizer step, and then led.

Control is taken when the script asks its training loader for a batch after an optimizer step; in a
script without a loader, at the end of the last optimizer's step. From then on the loader yields
what the auditor wants and never ends, so that the script repeats the body of its loop for as long
as the audit lasts. Everything here happens in the script's thread.
"""

from __future__ import annotations

import builtins
import gc
import os
import sys
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from nnaudit.errors import NnauditError, TargetError, UnfitError, UserCodeError
from nnaudit.loop.base import seed_everything
from nnaudit.loop.direct import StepCount
from nnaudit.loop.observer import Observer, caller
from nnaudit.loop.script import frameworks
from nnaudit.loop.script.channel import (
    Call,
    Close,
    CommandChannel,
    Invoke,
    Launch,
    Resume,
    StepRequest,
    Unwind,
)
from nnaudit.loop.script.loop_tracker import CallSite, LoopTracker, elsewhere, place
from nnaudit.loop.script.objects import training_of
from nnaudit.loop.script.overlay import Overlay
from nnaudit.loop.script.patches import Patches, TappedIterator
from nnaudit.loop.script.planned_run import PlannedRun, counted_span
from nnaudit.loop.script.rebinding import adopt
from nnaudit.loop.script.reseeding import quiet_imports, shifting
from nnaudit.loop.script.substitute import TargetSwap, placed
from nnaudit.loop.script.training_objects import (
    Propagated,
    Registers,
    StepLog,
    TrainingObjects,
    autocast_state,
    cast,
    helpers,
    settle_rates,
    validation_loader,
)
from nnaudit.loop.script.variables import ScriptVariables, planned_epochs, user_frames
from nnaudit.report import Location, Part
from nnaudit.state.snapshot import Snapshot, Subjects, keep_autocast, keep_grad_mode
from nnaudit.targets import batch as batches
from nnaudit.targets.set_order import compiled
from nnaudit.wording import count

_CUDA: Any = torch.cuda
_STACK: Any = torch.overrides
"""Where torch keeps the calling thread's stack of function modes; its functions have no types."""

FRUITLESS = 3
"""How often in a row a script that ended is run again and ends without another optimizer step."""

WARY = 3
"""Steps beyond the end of the loader before which the state is kept, lest one of them fails."""

PATIENCE = 32
"""Batches beyond the usual number, or optimizer steps without a new batch, before the way in which
a script takes its batches is held to be another than it seemed."""


WAIT = 20.0
"""Seconds for which a script that speaks of loaders may train without one: it may be a baseline,
or pre-training, and the training with a loader is still to come."""


class StuckError(NnauditError):
    """The script was given batch after batch and took no optimizer step."""

    exit_code = 4


class EndedError(NnauditError):
    """The script has come to its end and could not be taken up again."""

    exit_code = 4


@dataclass
class Session:
    """What all runs of one script share.

    Attributes:
        objects: the file does not train when it is run, but hands over an object that does: it is
            executed as a module, and :func:`objects.training_of` says what follows.
        trainer: whose loop it is then.
        loop: which of the script's training loops to audit, from 1; None for the first, or, in a
            script that speaks of loaders, the first that has one.
        free: the loop that is audited has no loader; None until the first run has come to it.
        executions: how often the script was executed.
    """

    path: Path
    argv: list[str]
    seed: int
    taps: Patches
    overlay: Overlay
    commands: CommandChannel
    on_first: Callable[[Run], None]
    device: str = "cpu"
    objects: bool = False
    trainer: Part | None = None
    loop: int | None = None
    free: bool | None = None
    executions: int = 0
    start: Path = field(default_factory=Path.cwd)
    count: StepCount = field(default_factory=StepCount)
    runs: list[Run] = field(default_factory=list)

    @cached_property
    def speaks_of_loaders(self) -> bool:
        """Whether the script's own text leads to expect a training loader."""
        return "loader" in self.path.read_text(errors="replace").lower()


@dataclass
class _Ended:
    """How an execution of the script came to its end by itself."""

    error: BaseException | None


@dataclass
class _RerunState:
    """What an execution of the script that follows an ended one has to take over.

    Attributes:
        order: the step that is waiting to be taken.
        registers, helpers, loaders: what the first execution made.
        process: random numbers and flags as they were when it ended.
    """

    order: StepRequest
    registers: Registers
    helpers: tuple[Any, ...]
    loaders: tuple[Any, Any]
    process: Snapshot


class Run:
    """One run. It is the taps' listener while its script has control.

    Attributes:
        roles: who is who, once control was taken.
        free: the script draws its batches without a loader.
        ends_epoch: the optimizer steps after the loader has ended, not in between.
        training_at: the user's line at which the run is led: where it asks for a batch, or steps.
        phase: the number of the training loop that is audited, among those that the script came to.
        elsewhere: what else its text trains by, and where; see :func:`phases.elsewhere`.
        in_rounds: the audited loop makes an optimizer itself: only its first round is audited.
        revivals: how often the script had to be run again because it ended.
        rates_rise: the script raises its learning rate by itself, to a height that is not known.
        bounded: its epochs end with the loader, for it failed in one that went on.
    """

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.seed = seed
        self.registers = Registers()
        self.counters = ScriptVariables()
        self.roles: TrainingObjects | None = None
        self.train_loader: Any = None
        self.val_loader: Any = None
        self.training_at: Location | None = None
        self.phase = 1
        self.elsewhere: dict[str, tuple[int, ...]] = {}
        self.in_rounds = False
        self.reruns = 0
        self.rates_rise = False
        self.bounded = False
        self._before: Snapshot | None = None
        self._fruitless = 0
        self._waiting_since: float | None = None
        self._heir: _RerunState | None = None
        self._dead: BaseException | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget what was learnt: an execution of the script begins."""
        self.free = False
        self.ends_epoch = False
        self.planned_epochs = 0
        self.span = PlannedRun()
        self._void = False
        self._handed_over = False
        self._diary = StepLog()
        self._initial: Snapshot | None = None
        self._iterators: list[weakref.ref[TappedIterator]] = []
        self._live: dict[int, TappedIterator] = {}
        self._clock = 0
        self._asked: dict[int, int] = {}
        self._sampled: dict[int, TappedIterator] = {}
        self._redraws = False
        self._frozen: dict[int, Any] = {}
        self._evaluated: list[Any] = []
        self._backwards = 0
        self._steps = 0
        self._idle = 0
        self._by_call = self._calls_networks = False
        self._waiting: StepLog | None = None
        self._past: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._phases = LoopTracker()
        self._built_at: weakref.WeakKeyDictionary[Optimizer, CallSite] = weakref.WeakKeyDictionary()
        self._taken = False
        self._closing = False
        self._order: StepRequest | None = None
        self._in_step: Optimizer | None = None
        self._passes = 0
        self._last: Optimizer | None = None
        self._due = False
        self._round_over = False
        self._scaled: deque[tuple[Any, Tensor]] = deque(maxlen=4)
        self._watching = ExitStack()
        self._observer: Observer | None = None
        self._alias: dict[int, Any] = {}
        self._aliased: list[Any] = []
        self._hoards: bool | None = None
        self._slot: Any = None
        self._counted = False
        self._rates: dict[int, list[list[float]]] = {}

    # --- executing --------------------------------------------------------------------------------

    def execute(self) -> None:
        """Run the script until the auditor is done with it.

        Raises:
            UserCodeError: the script crashed before its first optimizer step.
            TargetError: it ended without one.
        """
        self.session.runs.append(self)
        try:
            ended = self._once()
            if ended is not None and not self._taken and self._waiting_since is not None:
                # It was in vain: what has trained without a loader was all there is.
                self.session.free = True
                self.registers = Registers()
                self._begin()
                ended = self._once()
            if ended is not None and not self._taken:
                raise self._untrained(ended)
            if ended is not None and ended.error is not None and not self._handed_over:
                # Taking hold of the script failed, inside its own loop: nobody waits for it.
                raise ended.error
            while ended is not None and self._wait_after(ended):
                ended = self._once()
        finally:
            self.session.runs.remove(self)

    def _once(self) -> _Ended | None:
        """Execute the script once; return how it ended, None where it was unwound."""
        nnaudit_runs_the_script = True  # noqa: F841 - the name at which frames.user_frames stops
        nnaudit_runs_it_again = self._heir is not None  # noqa: F841 - see loop.base.REPEATED
        path, taps = self.session.path, self.session.taps
        self.session.executions += 1
        main = types.ModuleType(path.stem if self.session.objects else "__main__")
        main.__dict__.update(__file__=str(path), __builtins__=builtins, __cached__=None)
        with ExitStack() as stack:
            stack.enter_context(self.session.overlay.layer())
            stack.enter_context(_as_main(main, path, self.session.argv, self.session.start))
            stack.enter_context(quiet_imports(path.parent))
            shift = (self.seed - self.session.seed) % 2**32
            heard = taps.heard
            stack.enter_context(
                shifting(shift, lambda: self.registers.empty, lambda: heard() is not None)
            )
            stack.callback(gc.collect)
            stack.callback(setattr, taps, "listener", taps.listener)
            self._watching_calls = stack.enter_context(ExitStack())
            self._watching_calls.enter_context(taps.calls())
            stack.callback(self._leave)
            seed_everything(self.seed)
            taps.listener = self
            error: BaseException | None = None
            try:
                # Here and in no function of its own: what seeds looks for this frame.
                exec(compiled(path, main.__dict__), main.__dict__)
                if self.session.objects:
                    self._train_objects(main)
            except KeyboardInterrupt:
                raise
            except SystemExit as exit_:
                error = exit_ if exit_.code else None
            except BaseException as raised:
                error = raised
            return None if self._closing else _Ended(error)

    def _train_objects(self, module: types.ModuleType) -> None:
        """Start the training of the object that the executed file hands over.

        Raises:
            TargetError: it does not hand over one this time.
        """
        found = training_of(module, self.session.path, self.session.device)
        if found is None:
            raise TargetError(f"{self.session.path.name} hands over other objects each time")
        start, self.session.trainer = found
        start()

    def _untrained(self, ended: _Ended) -> Exception:
        name, error = self.session.path.name, ended.error
        if isinstance(error, SystemExit):
            usage = self.session.taps.usage
            said = f" ({usage.splitlines()[-1]})" if usage else ""
            code = error.code
            ended_so = f"exit code {code}" if isinstance(code, int) else f"the words {code!r}"
            failure = TargetError(
                f"{name} ended with {ended_so:.200} before it trained{said}: "
                "pass its own arguments after --"
            )
            if usage:
                failure.add_note(usage)
            return failure
        if isinstance(error, NnauditError):
            return error
        if error is not None:
            reads = ", which reads input that an audit has not: pass arguments"
            ahead = "its second batch" if self._steps else "its first optimizer step"
            ahead = "the training loop to audit" if self._passing_by else ahead
            when = reads if isinstance(error, EOFError) else f", before {ahead}"
            return UserCodeError(f"running {name}{when}", error)
        return TargetError(f"{name} {self._why_untrained()}")

    def _why_untrained(self) -> str:
        if self.session.loop is not None and self._phases.number < self.session.loop:
            return (
                f"comes to {count(self._phases.number, 'training loop')}: --loop "
                f"{self.session.loop} names none"
            )
        if self._steps > 1 and not self._calls_networks:
            return (
                f"took {self._steps} optimizer steps without calling a network: nnaudit audits "
                "what an nn.Module holds and computes"
            )
        if self._steps:
            return (
                f"ended after {self._steps} optimizer step(s): nnaudit takes hold of a loop when "
                "it asks for the next batch, so let it train on two batches or more"
            )
        if self._backwards:
            return (
                f"ended without an optimizer step, though it called backward() {self._backwards} "
                "time(s): nnaudit takes hold of training by the step of a torch optimizer, so let "
                "one update the weights"
            )
        return (
            "ended without an optimizer step: pass the arguments that make it train after --, and "
            "mind that training in child processes is not seen"
        )

    def _wait_after(self, ended: _Ended) -> bool:
        """The script ended by itself: serve the auditor until it wants a step, or is done.

        Returns whether the script is to be executed again.
        """
        self.session.taps.listener = None
        if self._heir is not None:
            # It was executed again and did not get as far as the first time.
            self._dead = EndedError(
                f"{self.session.path.name} could not be taken up again after it ended"
            )
            order: StepRequest | None = self._heir.order
            self._heir, self._taken = None, True
        else:
            order, self._order = self._order, None
        if order is not None and not self._settle(order, ended):
            # It ended for want of another round of its loop: that round begins a new execution.
            self._prepare_revival(order)
            return True
        while True:
            command = self.session.commands.listen()
            if isinstance(command, Close):
                return False
            if not isinstance(command, Resume):
                self._do(command)
            elif self._dead is not None or self._fruitless >= FRUITLESS:
                command.request.error = self._dead or EndedError("the script ends again and again")
                self._answer(command.request)
            else:
                self._prepare_revival(command.request)
                return True

    def _settle(self, order: StepRequest, ended: _Ended) -> bool:
        """Answer the one who waits for the order during which the script came to its end.

        Returns False where there is no answer: the step has not been tried.
        """
        if self._dead is not None:
            order.error = self._dead
        elif ended.error is not None and order.overlong and not (order.attempts or self.bounded):
            # Batches beyond the loader's number are the audit's making. From now on there are none.
            self.bounded, self._before = True, order.backup
            return False
        elif ended.error is not None:
            self._fruitless = 0
            order.error = (
                UnfitError("running on a batch in place of its own", ended.error)
                if order.reshaped
                else UserCodeError("running the training step", ended.error)
            )
            if order.observation is not None:
                order.error.observation = order.observation  # type: ignore[attr-defined]
        elif not order.attempts and self._fruitless < FRUITLESS:
            return False
        elif not order.attempts:
            order.error = EndedError("the script ends again and again")
        self._answer(order)
        return True

    def _prepare_revival(self, order: StepRequest) -> None:
        assert self.roles is not None
        self.reruns += 1
        self._fruitless += 1
        order.restart()
        loaders = (self.train_loader, self.val_loader)
        process = Snapshot.take(Subjects())
        self._heir = _RerunState(order, self.registers, self.roles.helpers, loaders, process)
        self.registers = Registers()
        self._begin()

    @property
    def repeats(self) -> bool:
        """Whether the script was executed before in this process."""
        return self.session.executions > 1

    @property
    def starting(self) -> bool:
        """Whether the script has not come to its training loop, or not yet come to it again."""
        return not self._taken

    # --- what was made ----------------------------------------------------------------------------

    def made(self, kind: str, thing: Any) -> None:
        """Note what the script makes."""
        self.registers.of[kind].add(thing)
        frameworks.adapt(self.session.taps)

    def built(self, optimizer: Optimizer) -> None:
        """Note the learning rates that an optimizer is made with, and where."""
        self._note_rates(optimizer)
        self._built_at[optimizer] = place()

    def _note_rates(self, optimizer: Optimizer) -> None:
        rates = [float(group.get("lr") or 0.0) for group in optimizer.param_groups]
        self._rates.setdefault(id(optimizer), []).append(rates)

    @property
    def subjects(self) -> Subjects:
        """Everything a step may change."""
        roles = self.roles
        if roles is None or self._heir is not None:
            return Subjects(
                models=self.registers.modules(),
                optimizers=tuple(self.registers.of["optimizer"].alive()),
                schedulers=tuple(self.registers.of["scheduler"].alive()),
                scalers=tuple(self.registers.of["scaler"].alive()),
                loaders=tuple(self.registers.of["loader"].alive()),
                extras=(self.counters.values, *helpers()),
            )
        return Subjects(
            models=roles.models,
            optimizers=roles.optimizers,
            schedulers=roles.schedulers,
            scalers=roles.scalers,
            loaders=tuple(x for x in (self.train_loader, self.val_loader) if x is not None),
            extras=(self.counters.values, *roles.helpers),
        )

    def _keep_initial(self) -> None:
        """Take the snapshot to which the run goes back when it is handed over."""
        self.counters.read()
        self._initial = Snapshot.take(self.subjects)
        for optimizer in self.registers.of["optimizer"].alive():
            self._note_rates(optimizer)
        # Several loaders may be read along with one another: what they gave already counts.
        reading = {i.key for i in (*self._being_read().values(), *self._sampled.values())}
        old, self._diary = self._diary, StepLog()
        self._diary.recent.extend(entry for entry in old.recent if entry[0] in reading)
        self._diary.asked += [key for key in old.asked if key in reading]

    # --- loaders ----------------------------------------------------------------------------------

    def started(self, iterator: TappedIterator) -> None:
        """Begin the loader's own iterator, unless its batches will never be asked for."""
        if not (self._taken and self._is_training(iterator)):
            iterator.begin()
        self.registers.of["loader"].add(iterator.loader)
        self._iterators.append(weakref.ref(iterator))

    def requested(self, iterator: TappedIterator) -> Any:
        """Give the script its next batch."""
        if self._closing:
            raise Unwind
        if self._taken:
            return self._serve(iterator)
        if torch.is_grad_enabled():
            self._enter_phase()
        if self._passing_by:
            return iterator.draw()
        self._leave()
        self._idle = 0
        if self._waiting is not None and not iterator.count and torch.is_grad_enabled():
            self._begin_to_learn()
        if self._steps and torch.is_grad_enabled() and self._belongs(iterator):
            self.train_loader = iterator.loader
            self._take_over()
            return self._serve(iterator)
        return self._pass_on(iterator)

    @property
    def _passing_by(self) -> bool:
        """Whether the script is in a training loop before the one that is to be audited."""
        return self.session.loop is not None and self._phases.current < self.session.loop

    def _enter_phase(self) -> None:
        """The script may train from here on, and control has not been taken."""
        passed = self._passing_by
        self._phases.enter(place(), len(self.registers.of["optimizer"]))
        if passed and not self._passing_by:
            self._begin_to_learn()

    def _begin_to_learn(self) -> None:
        """Forget the training before: the one to be audited may begin here."""
        for log in (self._waiting, self._diary):
            self._past.update(log.stepped if log is not None else ())
        self._diary, self._waiting, self._initial = StepLog(), None, None
        self._live, self._last = {}, None
        self._backwards = self._steps = 0
        self._due = self._by_call = False
        gc.collect()  # what has trained before should not count as part of this training

    def _belongs(self, iterator: TappedIterator) -> bool:
        """Whether ``iterator``'s loader was being read when the script first back-propagated."""
        if not (self._live or iterator.count) and id(iterator.loader) in self._sampled:
            # Each step takes next(iter(loader)): no iterator lasts until the next.
            self._live, self._redraws = dict(self._sampled), True
        return any(_same_data(iterator.loader, live.loader) for live in self._live.values())

    def _pass_on(self, iterator: TappedIterator) -> Any:
        """Give the script the loader's own next batch, and remember it."""
        if iterator.count == 0 and not self._backwards:
            self._keep_initial()
        try:
            batch = iterator.draw()
        except StopIteration:
            iterator.exhausted = True
            raise
        iterator.count += 1
        iterator.latest = batches.clone(batch)
        self._clock += 1
        self._asked[iterator.key] = self._clock
        self._diary.recent.appendleft((iterator.key, iterator.latest))
        self._diary.asked.append(iterator.key)
        if not torch.is_grad_enabled():
            self._evaluated.append(iterator.loader)
        elif not self._steps:
            self._sampled[id(iterator.loader)] = iterator.remembered()
        self._enter(Observer(nn.Identity(), losses_only=True), ())
        return batch

    def _being_read(self) -> dict[int, TappedIterator]:
        """Return, for each loader that the script is in the middle of, how it is reading it."""
        iterators = [i for r in self._iterators if (i := r()) is not None]
        reading = [i for i in iterators if i.count and not i.exhausted]
        reading.sort(key=lambda i: self._asked.get(i.key, 0))
        return {id(i.loader): i for i in reading}

    def _is_training(self, iterator: TappedIterator) -> bool:
        if not torch.is_grad_enabled():
            return False
        loader = self._alias.get(id(iterator.loader), iterator.loader)
        if loader is self.train_loader:
            return True
        training = self.roles is not None and self.roles.model.training
        return training and _same_data(loader, self.train_loader)

    def _serve(self, iterator: TappedIterator) -> Any:
        """Give the script what the auditor wants it to have."""
        if id(iterator.loader) in self._frozen:
            iterator.count += 1
            return batches.clone(self._frozen[id(iterator.loader)])
        if not self._is_training(iterator):
            self._note_validation(not _same_data(iterator.loader, self.train_loader))
            return self._serve_aside(iterator)
        if self._order is None or self._order.attempts:
            self._pause()
        if self._before is not None:
            self._resume()
        order = self._order
        assert order is not None
        assert self.roles is not None
        if self._is_over(iterator, order):
            with self.session.taps.unheard():
                self._before = Snapshot.take(self._lasting)
            self._leave()
            iterator.exhausted = True
            raise StopIteration
        if order.ends_epoch or (self.ends_epoch and iterator.count):
            order.ends_epoch = False
            iterator.exhausted = True
            raise StopIteration
        if order.handed >= 8 * self.roles.per_step + PATIENCE:
            order.error = _stuck(order)
            self._pause()
            return self._serve(iterator)
        self._note_validation(False)
        order.handed += 1
        iterator.count += 1
        if self._hoards is None:
            self._hoards = any(type(holder) is cycle for holder in gc.get_referrers(iterator))
        self._slot = batches.clone(order.batch) if not self._hoards else self._refilled(order.batch)
        return self._slot

    @property
    def leads(self) -> bool:
        """Whether control was taken: the script takes the steps that the auditor wants."""
        return self._taken or self._heir is not None

    def _is_over(self, iterator: TappedIterator, order: StepRequest) -> bool:
        """Whether the loader has no batches left for ``order``, and the script is to be told."""
        length = _length(iterator.loader)
        if length is None or order.handed or not self.has_epochs or not iterator.count:
            return False
        assert self.roles is not None
        left = length - iterator.count
        if self.bounded:
            return left < min(self.roles.per_step, length)
        order.overlong = left < self.roles.per_step
        if order.overlong and left > -WARY and order.backup is None:
            with self.session.taps.unheard():
                order.backup = Snapshot.take(self._lasting)
        return False

    def _resume(self) -> None:
        """Undo what came between two epochs, or between a failure and now, and go on."""
        assert self._before is not None and self._order is not None
        grad, casting = keep_grad_mode(), keep_autocast()
        with self.session.taps.unheard():
            self._before.restore()
        grad(), casting()
        self._before = None
        self.counters.read()
        self._set_off(self._order)

    @property
    def _lasting(self) -> Subjects:
        """What a step may change, without variables: those of an epoch's function end with it."""
        return replace(self.subjects, extras=self.roles.helpers if self.roles is not None else ())

    @property
    def has_epochs(self) -> bool:
        """Whether the script can be told that its loader has ended, and begins another epoch.

        Not where it has no loader, ends its epochs itself, has batches in flight, counts them by a
        framework, begins anew for every batch, or goes round by ``itertools.cycle``, which asks its
        loader only once.
        """
        roles = self.roles
        simple = roles is not None and not (self.free or self.ends_epoch or roles.lag)
        return simple and not (self._counted or self._hoards or self._redraws)

    def _refilled(self, batch: Any) -> Any:
        """Return ``batch`` in the memory of the one before: itertools.cycle keeps all it gets."""
        old, new = list(batches.leaves(self._slot)), list(batches.leaves(batch))
        same = [path for path, _ in old] == [path for path, _ in new] and all(
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.shape == b.shape
            and a.dtype == b.dtype
            for (_, a), (_, b) in zip(old, new, strict=True)
        )
        if not same:
            return batches.clone(batch)
        with torch.no_grad():
            for (_, a), (_, b) in zip(old, new, strict=True):
                a.copy_(b)
        return self._slot

    def _note_validation(self, validating: bool) -> None:
        """Tell the observer whether what the script does until its next batch is validation."""
        order = self._order
        if order is not None and order.observation is not None and not order.handed:
            order.observation.validating = validating

    @staticmethod
    def _serve_aside(iterator: TappedIterator) -> Any:
        """Let the script validate, on one batch: nobody reads what it finds."""
        if iterator.count and not torch.is_grad_enabled():
            raise StopIteration
        batch = iterator.draw()
        iterator.count += 1
        return batch

    # --- calls, losses, steps ---------------------------------------------------------------------

    def called(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note the call of an outermost module; in a script without a loader, lead it from here."""
        if next(module.parameters(), None) is None:
            return run(args, kwargs)
        self._calls_networks = True
        if not self._taken and torch.is_grad_enabled():
            if not self._being_read():
                self._enter_phase()
            if not self._passing_by:
                self._learn_from(module)
        if self.free and torch.is_grad_enabled():
            args, kwargs = self._at_the_door(module, args, kwargs)
        order = self._order
        if order is not None and order.train is not None:
            module.train(order.train)
        if not (order.watch if order is not None else self._is_of_note(module)):
            return run(args, kwargs)
        call = Call(
            module,
            batches.clone(args),
            batches.clone(kwargs),
            recent=tuple(self._diary.recent),
            grad=torch.is_grad_enabled(),
            autocast=autocast_state(),
            given=tuple(tensor.detach() for _, tensor in batches.tensors((args, kwargs))),
        )
        output = run(args, kwargs)
        call.output = batches.map_leaves(
            output, lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf
        )
        (self._diary.calls if order is None else order.calls).append(call)
        return output

    def _learn_from(self, module: nn.Module) -> None:
        """A script calls a network in training, and control has not been taken."""
        if self._due and self._waits():
            if self._waiting is None:
                self._leave()
                self._waiting, self._diary = self._diary, StepLog()
        elif self._due:
            self._take_over_without_loader()
        elif not self._by_call and not self._backwards and not self._being_read():
            # The first training call of a script without a loader: nothing has changed yet.
            self._by_call = True
            with self.session.taps.unheard():
                self._keep_initial()
        elif self._steps and self._by_call and self._observer is None:
            # The second round: from here on what is compared with what is listened to as well.
            self._diary = StepLog(stepped=self._diary.stepped)
            self._enter(Observer(nn.Identity(), losses_only=True), ())

    def _take_over_without_loader(self) -> None:
        self.free = True
        self._leave()
        self._diary = self._waiting or self._diary
        self._take_over()

    def _waits(self) -> bool:
        """Whether the training without a loader may be only what comes before the training."""
        session = self.session
        if session.loop is not None:
            return False
        if session.free is None and session.speaks_of_loaders:
            now = time.perf_counter()
            self._waiting_since = self._waiting_since or now
            return now - self._waiting_since < WAIT
        return session.free is False

    def _is_of_note(self, module: nn.Module) -> bool:
        if self._taken or self._passing_by or not torch.is_grad_enabled():
            return False
        counts = self._diary.counts
        counts[id(module)] = counts.get(id(module), 0) + 1
        return counts[id(module)] <= 2

    def _at_the_door(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Wait for the next order where one is done; put its batch in place of the script's own."""
        if self._order is not None and self._round_over:
            self._pause()
        order, roles = self._order, self.roles
        if order is None or roles is None or roles.entry is None or order.batch is None:
            return args, kwargs
        if not self.is_same(module, roles.entry.module) or roles.recipe is None:
            return args, kwargs
        if order.handed >= 8 * roles.per_step + PATIENCE:
            order.error = _stuck(order)
            self._pause()
            return self._at_the_door(module, args, kwargs)
        order.handed += 1
        made = placed(roles.recipe.fill(batches.clone(order.batch)), (args, kwargs))
        order.reshaped |= _shapes(made) != _shapes((args, kwargs))
        followed: tuple[Any, Any] = _followed(made, (args, kwargs))
        return followed

    def scaled(self, loss: Any, result: Any) -> None:
        """Remember what a gradient scaler made of which loss."""
        if isinstance(loss, Tensor) and isinstance(result, Tensor):
            self._scaled.append((result, loss.detach()))

    def propagated(self, root: Tensor) -> bool:
        """Note a backward pass; returns whether it shall take place."""
        value = next((loss for result, loss in self._scaled if result is root), root.detach())
        self._scaled.clear()
        if not self._taken and self._passing_by:
            self._phases.remember()
            return True
        order = self._order
        if order is not None and order.dry:
            self._zero_gradients()
        wanted = order is None or not order.dry or self._reaches_inputs(root)
        if not self._taken:
            if not self._backwards:
                self._live = self._being_read()
            self._backwards += 1
            self._diary.backwards += 1
        # Within an optimizer's step (a closure) only the first pass is of the weights before it.
        self._passes += 1
        if self._in_step is not None and self._passes > 1:
            return wanted
        self._forget_what_is_void()
        if not self._taken:
            self._diary.propagated.append(Propagated(value, caller()))
        elif order is not None:
            order.pending.append(value)
        return wanted

    def zeroed(self) -> None:
        """Note whether anything of what was back-propagated is left: after an attack's passes not.

        It is forgotten when there is another pass; a step without one has used nothing (STEP102).
        """
        order, log = self._order, self._diary
        held = order.pending if order is not None else log.propagated[log.used :]
        self._void = bool(held) and self._in_step is None and not self._any_gradient()

    def _forget_what_is_void(self) -> None:
        if not self._void:
            return
        self._void = False
        if self._order is not None:
            self._order.pending = []
        else:
            del self._diary.propagated[self._diary.used :]

    def _any_gradient(self) -> bool:
        """Whether anything is left for the step: of the main optimizer, once that is known."""
        known = self.roles
        alive = (known.optimizer,) if known else self.registers.of["optimizer"].alive()
        held = (p.grad for o in alive for group in o.param_groups for p in group["params"])
        return any(grad is not None and bool(grad.to_dense().any()) for grad in held)

    def _reaches_inputs(self, root: Tensor) -> bool:
        """Whether the pass also makes gradients of inputs, as adversarial training uses them."""
        models = self.roles.models if self.roles is not None else ()
        known = {id(parameter) for model in models for parameter in model.parameters()}
        stack, seen = [root.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                return True
            stack += [parent for parent, _ in node.next_functions]
        return False

    def _zero_gradients(self) -> None:
        """Give every parameter a gradient of zero: a gradient scaler insists on some."""
        for optimizer in self.roles.optimizers if self.roles is not None else ():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None and parameter.requires_grad:
                        zero = torch.zeros_like(parameter)
                        sparse = isinstance(optimizer, torch.optim.SparseAdam)
                        parameter.grad = zero.to_sparse() if sparse else zero

    def stepping(self, optimizer: Optimizer, closure: bool) -> None:
        """Note that an optimizer is about to step.

        A script without a loader whose round begins with that, for the network is called in the
        ``closure``, is led from here: within a step, hooks on it would miss its beginning.
        """
        if closure and self._taken and self.free and self._order is not None and self._round_over:
            self._pause()
        elif closure and not self._taken and self._due and not (self._passing_by or self._waits()):
            self._take_over_without_loader()
        optimizer = self._alias.get(id(optimizer), optimizer)
        self._in_step = optimizer
        self._passes = 0
        if not self._taken and not self._passing_by:
            self._note_rates(optimizer)
            if not (self._backwards or self._steps):
                # Gradients came from elsewhere: torch.func, or written by hand.
                self._live = self._being_read()
        if self._order is not None and self.roles is not None and optimizer is self.roles.optimizer:
            self._order.lr = self.rates()

    def is_same(self, module: nn.Module, other: nn.Module) -> bool:
        """Whether the two are one, or one has taken the other's place in a later execution."""
        return self._alias.get(id(module), module) is other

    def rates(self) -> tuple[float, ...]:
        """Return the learning rate of every parameter group."""
        assert self.roles is not None
        return tuple(float(g["lr"]) for o in self.roles.optimizers for g in o.param_groups)

    def stepped(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped; hand over where that is the place for it."""
        if self._closing:
            raise Unwind
        optimizer = self._alias.get(id(optimizer), optimizer)
        self._in_step = None
        if self._order is not None:
            self._finish(self._order, optimizer)
            self._round_over |= optimizer is self._last
        elif not self._taken:
            passed = self._passing_by
            self._phases.step(len(self.registers.of["optimizer"]))
            if passed:
                self._past.add(optimizer)
                return
            self._steps += 1
            self._idle += 1
            self._diary.stepped.append(optimizer)
            self._diary.used = len(self._diary.propagated)
            self._void = False
            if not self._live or self._idle > PATIENCE:
                self._learn_the_round(optimizer)

    def attempted(self) -> None:
        """Note that a gradient scaler stepped, or skipped a step."""
        if self._order is not None and not self._order.attempts and self.roles is not None:
            self._finish(self._order, self.roles.optimizer)
            self._round_over = True

    def _finish(self, order: StepRequest, optimizer: Optimizer) -> None:
        """Write down the loss of the step that was taken: the main optimizer's goes before."""
        assert self.roles is not None
        order.attempts += 1
        self._fruitless = 0
        self._void = False
        if optimizer is self.roles.optimizer and not order.ended:
            if _CUDA.is_initialized():
                torch.cuda.synchronize()
            order.ended = time.perf_counter()
            order.roots = order.pending or order.roots
        elif order.pending and not order.ended:
            order.roots = order.pending
        order.pending = []

    def _learn_the_round(self, optimizer: Optimizer) -> None:
        """Find out which optimizer is the last in a round: the order shows when one comes again."""
        stepped = self._diary.stepped
        if self._last is None and stepped.count(optimizer) > 1:
            self._last = list(dict.fromkeys(stepped))[-1]
        self._due = self._last is optimizer
        self._by_call = True

    # --- taking and giving control ----------------------------------------------------------------

    def _take_over(self) -> None:
        """Settle who is who, go back to before the first step, and wait for the first order."""
        self.session.taps.listener = None
        if not self.free:
            self._watching_calls.close()
        self.training_at = _innermost_user_line()
        self.planned_epochs = planned_epochs()
        # Of a run without a loader the loop counts steps.
        self.span = PlannedRun() if self.free else counted_span()
        self.phase = max(self._phases.number, 1)
        self._taken = True
        self._sampled.clear()
        if self.session.free is None:
            self.session.free = self.free
        if self._heir is not None:
            self._take_up(self._heir)
            return
        main = self._reader()
        try:
            key = main.key if main is not None else 0
            roles = cast(self.registers, self._diary, key, free=self.free, past=self._past)
        except LookupError:
            raise TargetError(
                f"{self.session.path.name} took an optimizer step without calling a network that "
                "the optimizer trains: there is nothing to audit"
            ) from None
        self._settle_loaders()
        self.roles = roles
        self._look_around(roles)
        # Where a script draws its batches ahead, or is paused after it has drawn one, its variables
        # hold what the auditor has already replaced.
        self.counters.tensors = not (self.free or roles.lag)
        self._go_back()
        self.rates_rise = settle_rates(roles.optimizers, self._rates)
        self._counted = frameworks.make_endless()
        self._handed_over = True
        if len(self.session.runs) == 1:
            self.session.on_first(self)
        else:
            self.session.commands.answer(self)
        self._set_off(self._await_order())

    def _look_around(self, roles: TrainingObjects) -> None:
        """Note what else the script trains, in other loops or in other rounds of this one."""
        here, script = place(), self.session.path
        lines = {p.location.line for p in self._diary.propagated if p.location is not None}
        self.elsewhere = elsewhere(script, here, lines, self._phases.past(script))
        self.in_rounds = here.loops and self._built_at.get(roles.optimizer) == here

    def _reader(self) -> TappedIterator | None:
        """Return the iterator that fed the first step, of the loader that is asked for the next."""
        readers = [i for i in self._live.values() if _same_data(i.loader, self.train_loader)]
        return readers[-1] if readers else None

    def _settle_loaders(self) -> None:
        """Tell the training loader from those read along with it, and from the validation's."""
        main = self._reader()
        since = self._asked.get(main.key, 0) if main is not None else 0
        for key, iterator in self._live.items():
            if iterator is not main and self._asked[iterator.key] > since and not self.free:
                self._frozen[key] = iterator.latest
        found = validation_loader(self.registers, self.train_loader, self._evaluated)
        # Not `or`: a loader has a truth value only where its data set has a length.
        self.val_loader = found if found is not None else frameworks.validation_of_framework()
        reading = self._being_read()
        lasts = self.free or self._redraws or id(self.train_loader) in reading
        self.ends_epoch = not lasts

    def _go_back(self) -> None:
        """Restore the state before the first step; the counters follow when the script resumes."""
        assert self._initial is not None
        before = dict(self.counters.values)
        # The snapshot may be from within a cast or a no_grad block that has ended.
        grad, casting = keep_grad_mode(), keep_autocast()
        self._initial.restore()
        self._initial = None
        grad(), casting()
        self.counters.read()
        self.counters.values.update({k: v for k, v in before.items() if k in self.counters.values})

    def _take_up(self, heir: _RerunState) -> None:
        """Continue where an execution that ended left off, with its objects in place of the new."""
        new, self.registers = self.registers, heir.registers
        self._settle_loaders()
        self._alias, self._aliased = adopt(heir.registers, new, heir.helpers, helpers())
        if self.train_loader is not None:
            self._alias[id(self.train_loader)] = heir.loaders[0]
            self._aliased.append(self.train_loader)
        self.train_loader, self.val_loader = heir.loaders
        self._last = self._alias.get(id(self._last), self._last)
        heir.process.restore()
        self.counters.read()
        self._counted = frameworks.make_endless()
        self._heir = None
        self._set_off(heir.order)

    def _pause(self) -> None:
        """Tell the auditor what became of its order, and wait for the next.

        Raises:
            Unwind: the auditor is done.
        """
        self._leave()
        order, self._order = self._order, None
        self.session.taps.listener = None
        self.counters.read()
        if order is not None:
            self._answer(order)
        self._set_off(self._await_order())

    def _answer(self, order: StepRequest) -> None:
        self.session.commands.answer(order, order.error)

    def _set_off(self, order: StepRequest) -> None:
        """Let the script do ``order``."""
        self.counters.write()
        self._order = order
        self._round_over = False
        if order.watch and not self.free:
            self._watching.enter_context(self.session.taps.calls())
        self._enter(order.observer, order.modes)
        if self.free and order.batch is not None and self.roles is not None:
            self._watching.enter_context(TargetSwap(self.roles, order.batch))
        self._scaled.clear()
        self._in_step = None
        self.session.taps.listener = self
        order.started = time.perf_counter()

    def _await_order(self) -> StepRequest:
        """Do what the auditor says until it wants a step.

        Raises:
            Unwind: the auditor is done.
        """
        while True:
            command = self.session.commands.listen()
            if isinstance(command, Resume):
                return command.request
            if isinstance(command, Close):
                self._closing = True
                self.session.taps.listener = self
                raise Unwind
            self._do(command)

    def _do(self, command: Invoke | Launch) -> None:
        """Call a function, or run the script anew on top of this run, in the script's thread."""
        commands = self.session.commands
        try:
            if isinstance(command, Invoke):
                commands.answer(command.function())
            else:
                command.run.execute()
                commands.answer()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            commands.answer(None, error)

    # --- listening in the script's thread ---------------------------------------------------------

    def _enter(self, observer: Observer | None, modes: tuple[TorchFunctionMode, ...]) -> None:
        for mode in modes:
            _STACK._push_mode(mode)
            self._watching.callback(_withdraw, mode)
        if observer is not None:
            self._watching.enter_context(observer)
        self._observer = observer

    def _leave(self) -> None:
        if self._observer is not None and not self._taken:
            self._diary.loss_calls += self._observer.observation.loss_calls
        self._observer = None
        self._watching.close()


def _followed(made: Any, given: Any) -> Any:
    """Return ``made`` with gradients going on to ``given``, where an attack asks for some."""
    tensors = dict(batches.leaves(given))
    places = iter([path for path, _ in batches.leaves(made)])

    def follow(leaf: Any) -> Any:
        like = tensors.get(next(places))
        if not (isinstance(leaf, Tensor) and isinstance(like, Tensor) and like.requires_grad):
            return leaf
        return leaf + (like - like.detach()) if like.shape == leaf.shape else leaf

    return batches.map_leaves(made, follow)


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for _, tensor in batches.tensors(batch)]


def _stuck(order: StepRequest) -> StuckError:
    return StuckError(f"the script took {order.handed} batches without an optimizer step")


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _same_data(left: Any, right: Any) -> bool:
    data = getattr(left, "dataset", None)
    return left is right or (data is not None and data is getattr(right, "dataset", None))


def _withdraw(mode: TorchFunctionMode) -> None:
    """Take ``mode`` off the stack of function modes, wherever on it it is."""
    above = []
    while torch._C._len_torch_function_stack():
        top = _STACK._pop_mode()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        _STACK._push_mode(other)


def _innermost_user_line() -> Location | None:
    frames = user_frames()
    if not frames:
        return None
    return Location(file=frames[-1].f_code.co_filename, line=frames[-1].f_lineno)


@contextmanager
def _as_main(main: types.ModuleType, path: Path, argv: list[str], start: Path) -> Iterator[None]:
    """Make ``main`` the main module, as ``python path argv`` would, with its own modules anew."""
    folder = path.parent
    saved_argv, saved_path, saved_folder = sys.argv, list(sys.path), Path.cwd()
    mine = {
        name: module
        for name, module in list(sys.modules.items())
        if name in ("__main__", main.__name__) or _is_beside(module, folder)
    }
    for name in mine:
        del sys.modules[name]
    sys.modules["__main__"] = sys.modules[main.__name__] = main
    sys.argv = [str(path), *argv]
    sys.path.insert(0, str(folder))
    os.chdir(start)
    try:
        yield
    finally:
        os.chdir(saved_folder)
        sys.argv = saved_argv
        sys.path[:] = saved_path
        for name, module in list(sys.modules.items()):
            if module is main or _is_beside(module, folder):
                del sys.modules[name]
        sys.modules.update(mine)


def _is_beside(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return (
        isinstance(file, str)
        # Normalised: of what was found by way of "../..", the folder is only the beginning.
        and os.path.normpath(file).startswith(f"{folder}/")
        and "site-packages" not in file
        and not getattr(module, "__name__", "").startswith("nnaudit")
    )
