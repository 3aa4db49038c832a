"""Watching a script until its training loop is found, and taking control of it there.

That is where it asks its training loader for a batch after an optimizer step; in a script without a
loader, at the end of the last optimizer's step. Everything here happens in the script's thread.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from nnaudit.errors import TargetError
from nnaudit.loop.autograd import in_transform
from nnaudit.loop.observer import Observer
from nnaudit.loop.script import frameworks
from nnaudit.loop.script.batch_count import counts_batches
from nnaudit.loop.script.channel import Unwind
from nnaudit.loop.script.driver import Driver
from nnaudit.loop.script.evaluation import validation_loader
from nnaudit.loop.script.listener import ScriptListener, Unwinding
from nnaudit.loop.script.loop_tracker import CallSite, LoopTracker, elsewhere, place
from nnaudit.loop.script.patches import TappedIterator
from nnaudit.loop.script.planned_run import PlannedRun, counted_span
from nnaudit.loop.script.reading import LoaderReads
from nnaudit.loop.script.run import Run
from nnaudit.loop.script.scouting import Scout
from nnaudit.loop.script.training_objects import (
    Propagated,
    StepLog,
    TrainingObjects,
    find_training_objects,
    helpers,
    recorded,
    settle_rates,
)
from nnaudit.loop.script.variables import planned_epochs
from nnaudit.state.process import keep_autocast, keep_grad_mode
from nnaudit.state.snapshot import Snapshot, Subjects
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

PATIENCE = 32
"""Optimizer steps without a new batch, before a script is held to draw its batches itself."""

WAIT = 20.0
"""Seconds for which a script that speaks of loaders may train without one: it may be a baseline,
or pre-training, and the training with a loader is still to come."""


class Discovery(ScriptListener):
    """Listens to an execution of a script until control is taken.

    Attributes:
        found: it has come to the training loop that is to be audited.
        steps, backwards: how many there were in this training.
        calls_networks: modules with parameters were called.
        waiting_since: when training without a loader began, where one with a loader is awaited.
        phases: the training loops that it has come to.
        scout: where it only shows which loop to audit, what has been learnt of that.
    """

    def __init__(self, run: Run, calls: ExitStack) -> None:
        """``calls`` makes the taps report the calls of modules, until it is closed."""
        super().__init__(run)
        self.found = False
        self.steps = 0
        self.backwards = 0
        self.calls_networks = False
        self.waiting_since: float | None = None
        self.phases = LoopTracker()
        self.scout: Scout | None = None
        self._calls = calls
        self._log = StepLog()
        self._waiting: StepLog | None = None
        self._initial: Snapshot | None = None
        self._reads = LoaderReads()
        self._idle = 0
        self._by_call = False
        self._known_optimizers = 0
        self._past: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._built_at: weakref.WeakKeyDictionary[Optimizer, CallSite] = weakref.WeakKeyDictionary()
        self._last: Optimizer | None = None
        self._due = False
        self._rates: dict[int, list[list[float]]] = {}
        self._first_weights: list[float] = []

    @property
    def leads(self) -> bool:
        """An earlier execution was led: this one only gets there again."""
        return self.run.rerun is not None

    @property
    def starting(self) -> bool:  # type: ignore[override]
        """Control was not taken."""
        return not self.found

    @property
    def passing_by(self) -> bool:
        """Whether control is not to be taken in the training loop that the script is in."""
        loop = self.session.loop
        return self.scout is not None or (loop is not None and self.phases.current < loop)

    def leave(self) -> None:
        """Take away what listens, and keep which losses it saw."""
        self.run.evaluated.rest()
        if self.listening.observer is not None:
            self._log.loss_calls += self.listening.observer.observation.loss_calls
        super().leave()

    # --- what is made -----------------------------------------------------------------------------

    def on_optimizer_built(self, optimizer: Optimizer) -> None:
        """Note the learning rates that an optimizer is made with, and where."""
        self._note_rates(optimizer)
        self._built_at[optimizer] = place()

    def _note_rates(self, optimizer: Optimizer) -> None:
        rates = [float(group.get("lr") or 0.0) for group in optimizer.param_groups]
        self._rates.setdefault(id(optimizer), []).append(rates)

    def _keep_initial(self) -> None:
        """Take the snapshot to which the run goes back when it is handed over."""
        registers, counters = self.run.registers, self.run.counters
        counters.read()
        self._initial = Snapshot.take(
            Subjects(
                models=registers.modules(),
                optimizers=tuple(registers.of["optimizer"].alive()),
                schedulers=tuple(registers.of["scheduler"].alive()),
                scalers=tuple(registers.of["scaler"].alive()),
                loaders=tuple(registers.of["loader"].alive()),
                extras=(counters.values, *helpers()),
            )
        )
        for optimizer in registers.of["optimizer"].alive():
            self._note_rates(optimizer)
        # Several loaders may be read along with one another: what they gave already counts.
        reading = self._reads.keys()
        old, self._log = self._log, StepLog()
        self._log.recent.extend(entry for entry in old.recent if entry[0] in reading)
        self._log.asked += [key for key in old.asked if key in reading]

    # --- loaders ----------------------------------------------------------------------------------

    def on_iterate(self, iterator: TappedIterator) -> None:
        """Begin the loader's own iterator."""
        iterator.begin()
        self.run.registers.of["loader"].add(iterator.loader)
        self._reads.started(iterator)

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """Give the script its next batch, or take control."""
        if torch.is_grad_enabled():
            self._enter_phase()
        if self.passing_by:
            self._end_if_settled()
            return iterator.draw()
        self.leave()
        self._idle = 0
        if self._waiting is not None and not iterator.count and torch.is_grad_enabled():
            self._begin_to_learn()
        if self.steps and torch.is_grad_enabled() and self._reads.feeds_training(iterator):
            if self._begins_to_scout():
                return iterator.draw()
            return self._take_over(iterator.loader).on_next_batch(iterator)
        return self._pass_on(iterator)

    def _pass_on(self, iterator: TappedIterator) -> Any:
        """Give the script the loader's own next batch, and remember it."""
        if iterator.count == 0 and not self.backwards:
            self._keep_initial()
        try:
            batch = iterator.draw()
        except StopIteration:
            iterator.exhausted = True
            raise
        self._reads.drawn(iterator, batch)
        self._log.recent.appendleft((iterator.key, iterator.latest))
        self._log.asked.append(iterator.key)
        if not torch.is_grad_enabled():
            self.run.evaluated.read(iterator.loader)
        elif not self.steps:
            self._reads.sample(iterator)
        self.listening.enter(Observer(nn.Identity(), losses_only=True))
        return batch

    def _enter_phase(self) -> None:
        """The script may train from here on."""
        passed = self.passing_by
        self.phases.enter(place(), len(self.run.registers.of["optimizer"]))
        if passed and not self.passing_by:
            self._begin_to_learn()

    def _begin_to_learn(self) -> None:
        """Forget the training before: the one to be audited may begin here."""
        for log in filter(None, (self._waiting, self._log)):
            self._past.update(log.stepped)
            self.phases.leave_behind(p.location for p in log.propagated if p.location is not None)
        self._log, self._waiting, self._initial = StepLog(), None, None
        self._reads.live, self._last = {}, None
        self.backwards = self.steps = 0
        self._due = self._by_call = False
        gc.collect()  # what has trained before should not count as part of this training

    # --- calls of networks ------------------------------------------------------------------------

    def on_forward(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note the call of an outermost module; in a script without a loader, take control here."""
        if next(module.parameters(), None) is None or self._is_being_built(module):
            return run(args, kwargs)
        self.calls_networks = True
        if in_transform():
            # What it is given there can neither be kept nor replaced.
            if self._is_of_note(module):
                self._log.calls.append(recorded(module, (), {}, self._log.recent))
            return run(args, kwargs)
        if self.scout is not None:
            self.scout.called(module, args, kwargs)
        if torch.is_grad_enabled():
            self.run.evaluated.rest()
            if not self._reads.being_read():
                self._enter_phase()
            driver = None if self.passing_by else self._learn_from(module)
            if driver is not None:
                return driver.on_forward(module, run, args, kwargs)
        elif not (self.passing_by or self.run.rerun):
            given = [each.latest for each in self._reads.being_read().values()]
            return self.run.evaluated.on_forward(module, run, args, kwargs, given)
        if not self._is_of_note(module):
            return run(args, kwargs)
        call = recorded(module, args, kwargs, self._log.recent)
        output = run(args, kwargs)
        call.output = batches.detached(output)
        self._log.calls.append(call)
        return output

    def _learn_from(self, module: nn.Module) -> Driver | None:
        """A script calls a network in training; return the driver, if control was taken."""
        if self._due and self._waits():
            if self._waiting is None:
                self.leave()
                self._waiting, self._log = self._log, StepLog()
        elif self._due:
            return None if self._begins_to_scout() else self._take_over_without_loader()
        elif not (self.backwards or self.steps or self._reads.being_read()):
            # The first training call of a script without a loader: nothing has changed yet.
            optimizers = len(self.run.registers.of["optimizer"])
            if not self._by_call or optimizers != self._known_optimizers:
                self._by_call, self._known_optimizers = True, optimizers
                with self.session.taps.muted():
                    self._keep_initial()
        elif self.steps and self._by_call and self.listening.observer is None:
            # The second round: from here on what is compared with what is listened to as well.
            self._log = StepLog(stepped=self._log.stepped)
            self.listening.enter(Observer(nn.Identity(), losses_only=True))
        return None

    def _is_being_built(self, module: nn.Module) -> bool:
        """Whether a network that is not complete yet calls ``module``, which is not trained yet.

        A parametrisation is called as it is put on, and some find the size of their features so.
        """
        building = (frame for frame in callstack.frames() if frame.f_code.co_name == "__init__")
        if not any(isinstance(callstack.receiver(frame), nn.Module) for frame in building):
            return False
        optimizers = self.run.registers.of["optimizer"].alive()
        held = {
            id(p) for each in optimizers for group in each.param_groups for p in group["params"]
        }
        return not any(id(parameter) in held for parameter in module.parameters())

    def _waits(self) -> bool:
        """Whether the training without a loader may be only what comes before the training."""
        session = self.session
        if session.loop is not None:
            return False
        if session.without_loader is None and session.speaks_of_loaders:
            now = time.perf_counter()
            self.waiting_since = self.waiting_since or now
            return now - self.waiting_since < WAIT
        return session.without_loader is False

    def _is_of_note(self, module: nn.Module) -> bool:
        if self.passing_by or not torch.is_grad_enabled():
            return False
        counts = self._log.counts
        counts[id(module)] = counts.get(id(module), 0) + 1
        return counts[id(module)] <= 2

    # --- losses and steps -------------------------------------------------------------------------

    def on_backward(self, root: Tensor) -> bool:
        """Note a backward pass."""
        value = self.passes.value_of(root)
        if self.passing_by:
            self.phases.remember()
            return True
        if not self.backwards:
            self._reads.live = self._reads.being_read()
            if self.run.rerun is None:  # one that was led has stepped
                self._first_weights = self._weights()
        self.backwards += 1
        self._log.backwards += 1
        if self.passes.counts():
            if self.passes.void:
                del self._log.propagated[self._log.used :]
                self.passes.void = False
            self._log.propagated.append(Propagated(value, callstack.user_line()))
        return True

    def _weights(self) -> list[float]:
        """Return how large the parameters are that the script's optimizers hold, in all."""
        optimizers = self.run.registers.of["optimizer"].alive()
        held = (p for each in optimizers for group in each.param_groups for p in group["params"])
        there = (p for p in held if not (is_lazy(p) or p.is_meta) and p.layout is torch.strided)
        return [float(p.detach().double().abs().sum()) for p in there]

    @property
    def has_moved(self) -> bool:
        """Whether what its optimizers hold has changed since the first backward pass."""
        return self._weights() != self._first_weights

    def on_zero_grad(self) -> None:
        """Note whether anything of what was back-propagated is left."""
        held = self._log.propagated[self._log.used :]
        self.passes.zeroed(held, self.run.registers.of["optimizer"].alive)

    def on_scaler_step(self) -> None:
        """A gradient scaler's step counts once control was taken."""

    def on_step_start(self, optimizer: Optimizer, closure: bool) -> None:
        """Note that an optimizer is about to step.

        A script without a loader whose round begins with that, for the network is called in the
        ``closure``, is led from here: within a step, hooks on it would miss its beginning.
        """
        if closure and self._due and not (self.passing_by or self._waits()):
            if not self._begins_to_scout():
                self._take_over_without_loader().on_step_start(optimizer, closure)
            return
        self.passes.begin_step()
        if not self.passing_by:
            self._log.within_backward |= self.session.taps.propagating > 0
            self._note_rates(optimizer)
            if not (self.backwards or self.steps):
                # Gradients came from elsewhere: torch.func, or written by hand.
                self._reads.live = self._reads.being_read()

    def on_step_end(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped."""
        self.passes.end_step()
        passed = self.passing_by
        self.phases.step(len(self.run.registers.of["optimizer"]))
        if passed:
            self._past.add(optimizer)
            if self.scout is not None:
                self.scout.stepped(optimizer, self.phases.number)
                self._end_if_settled()
            return
        self.steps += 1
        self._idle += 1
        self._log.stepped.append(optimizer)
        self._log.used = len(self._log.propagated)
        self.passes.void = False
        if not self._reads.live or self._idle > PATIENCE:
            self._learn_the_round(optimizer)

    def _learn_the_round(self, optimizer: Optimizer) -> None:
        """Find out which optimizer is the last in a round: the order shows when one comes again."""
        stepped = self._log.stepped
        if self._last is None and stepped.count(optimizer) > 1:
            self._last = list(dict.fromkeys(stepped))[-1]
        self._due = self._last is optimizer
        self._by_call = True

    # --- which loop it is to be -------------------------------------------------------------------

    def _begins_to_scout(self) -> bool:
        """Let the script go on where its text shows another training; returns whether it does."""
        session = self.session
        if session.loop is not None or session.objects or self.run.rerun is not None:
            return False
        if not self._elsewhere():
            return False
        self.scout = Scout(self.phases.current, self._log.stepped)
        self._reads = LoaderReads()
        self.leave()
        return True

    def _end_if_settled(self) -> None:
        """End the script where it has shown which loop to audit.

        Raises:
            Unwind: it has.
        """
        if self.scout is not None and self.scout.over:
            self.run.state = self.session.taps.listener = Unwinding(self.run)
            raise Unwind

    def _elsewhere(self) -> dict[str, tuple[int, ...]]:
        script = self.session.path
        lines = {p.location.line for p in self._log.propagated if p.location is not None}
        return elsewhere(script, place(), lines, self.phases.past(script))

    # --- taking control ---------------------------------------------------------------------------

    def _take_over_without_loader(self) -> Driver:
        self.leave()
        self._log = self._waiting or self._log
        return self._take_over()

    def _take_over(self, train_loader: Any = None) -> Driver:
        """Hand the script over, in the state before its first step, with its first order to do.

        ``train_loader`` is None in a script that draws its batches itself.
        """
        run, session = self.run, self.session
        without_loader = train_loader is None
        session.taps.listener = None
        self.found = True
        if not without_loader:
            self._calls.close()
        run.training_at = callstack.user_line()
        run.planned_epochs = planned_epochs()
        run.span = counted_span()
        if without_loader and not run.span.batches:
            run.span = PlannedRun()  # the loop counts steps
        run.counts_batches = not without_loader and counts_batches()
        run.stops_at_loader_end |= run.counts_batches
        run.phase = max(self.phases.number, 1)
        self._reads.forget_samples()
        if session.without_loader is None:
            session.without_loader = without_loader
        run.loop.without_loader, run.loop.redraws = without_loader, self._reads.redraws
        main = self._reads.reader(train_loader)
        if not without_loader:
            run.loop.frozen = self._reads.read_along(main)
            run.loop.ends_epoch = not self._lasts(train_loader)
        driver = Driver(run, self._last)
        if run.rerun is None:
            self._settle(main, train_loader)
            driver.hand_over()
        else:
            driver.take_up(run.rerun, train_loader)
        return driver

    def _lasts(self, train_loader: Any) -> bool:
        """Whether the training loader is still being read when the optimizer has stepped."""
        return self._reads.redraws or id(train_loader) in self._reads.being_read()

    def _settle(self, main: TappedIterator | None, train_loader: Any) -> None:
        """Settle who is who, and go back to before the first step.

        Raises:
            TargetError: there is no network to audit.
        """
        run = self.run
        key = main.key if main is not None else 0
        without_loader = run.loop.without_loader
        try:
            roles = find_training_objects(
                run.registers, self._log, key, without_loader=without_loader, past=self._past
            )
        except LookupError:
            raise TargetError(
                f"{self.session.path.name} took an optimizer step without calling a network that "
                "the optimizer trains: there is nothing to audit"
            ) from None
        run.train_loader = train_loader
        seen = run.evaluated
        found = validation_loader(run.registers, train_loader, seen.loaders, seen.names)
        # Not `or`: a loader has a truth value only where its data set has a length.
        run.val_loader = found if found is not None else frameworks.validation_of_framework()
        run.roles = roles
        self._look_around(roles)
        # Where a script draws its batches ahead, or is paused after it has drawn one, its variables
        # hold what the auditor has already replaced.
        run.counters.tensors = not (without_loader or roles.lookahead)
        self._go_back()
        run.rates_rise = settle_rates(roles.optimizers, self._rates)

    def _look_around(self, roles: TrainingObjects) -> None:
        """Note what else the script trains, in other loops or in other rounds of this one."""
        here = place()
        self.run.elsewhere = self._elsewhere()
        self.run.in_rounds = here.loops and self._built_at.get(roles.optimizer) == here

    def _go_back(self) -> None:
        """Restore the state before the first step; the counters follow when the script resumes."""
        assert self._initial is not None
        counters = self.run.counters
        before = dict(counters.values)
        # The snapshot may be from within a cast or a no_grad block that has ended.
        grad, casting = keep_grad_mode(), keep_autocast()
        self._initial.restore()
        self._initial = None
        grad(), casting()
        counters.read()
        counters.values.update({k: v for k, v in before.items() if k in counters.values})
