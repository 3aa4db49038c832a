"""Driving a script whose training loop was found: it repeats the body of its loop.

From the hand-over on the loader yields what the auditor wants and never ends, for as long as the
audit lasts. Everything here happens in the script's thread.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnaudit.loop.autograd import in_transform
from nnaudit.loop.script import frameworks
from nnaudit.loop.script.channel import Close, Restart, Resume, StepRequest, Unwind
from nnaudit.loop.script.gradients import fill_with_zeros, reaches_inputs
from nnaudit.loop.script.listener import ScriptListener, Unwinding
from nnaudit.loop.script.patches import TappedIterator
from nnaudit.loop.script.reading import same_data
from nnaudit.loop.script.rebinding import adopt
from nnaudit.loop.script.run import Rerun, Run, StuckError
from nnaudit.loop.script.substitute import TargetSwap, followed, placed, refilled, shapes
from nnaudit.loop.script.training_objects import helpers, recorded
from nnaudit.state.process import keep_autocast, keep_grad_mode
from nnaudit.state.snapshot import Snapshot
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

_CUDA: Any = torch.cuda

MARGIN = 32
"""Batches beyond eight times the usual number, after which a script takes no step any more."""

ASTRAY = 32
"""Steps that another training takes in a row, after which the script is executed again."""

WARY = 3
"""Steps beyond the end of the loader before which the state is kept, lest one of them fails."""


class Driver(ScriptListener):
    """Listens to an execution of a script from the hand-over on, and does the auditor's orders.

    Attributes:
        order: the step that the script is taking; None while the auditor has control.
        before: the state to go back to before the next batch, where something came in between.
    """

    def __init__(self, run: Run, last: Optimizer | None) -> None:
        """``last`` steps last in a round of a loop without a loader."""
        super().__init__(run)
        self.order: StepRequest | None = None
        self.before: Snapshot | None = None
        self._last = last
        self._round_over = False
        self._slot: Any = None
        self._aside_batch: Any = None
        self._fed: Any = None
        self._strayed = False

    # --- control ----------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Give control to the auditor for the first time, and let the script do its first order."""
        run = self.run
        run.state = self
        run.loop.counted = frameworks.make_endless()
        run.handed_over = True
        if len(self.session.runs) == 1:
            self.session.on_first(run)
        else:
            self.session.commands.answer(run)
        self._set_off(self._await_order())

    def take_up(self, rerun: Rerun, train_loader: Any) -> None:
        """Continue where an execution that ended left off, with its objects in place of the new."""
        run, loop = self.run, self.run.loop
        run.state = self
        new, run.registers = run.registers, rerun.registers
        loop.alias, loop.aliased = adopt(rerun.registers, new, rerun.helpers, helpers())
        if train_loader is not None:
            loop.alias[id(train_loader)] = rerun.loaders[0]
            loop.aliased.append(train_loader)
        run.train_loader, run.val_loader = rerun.loaders
        self._last = loop.original(self._last)
        self.before = rerun.before
        rerun.process.restore()
        run.counters.read()
        loop.counted = frameworks.make_endless()
        run.rerun = None
        self._set_off(rerun.order)

    def leave(self) -> None:
        """Take away what listens in the script's thread."""
        self.run.evaluated.rest()
        super().leave()

    def _pause(self) -> None:
        """Tell the auditor what became of its order, and wait for the next.

        Raises:
            Unwind: the auditor is done.
        """
        self.leave()
        order, self.order = self.order, None
        self.session.taps.listener = None
        self.run.counters.read()
        if order is not None:
            self.session.commands.answer(order, order.error)
        self._set_off(self._await_order())

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
                self.run.state = self.session.taps.listener = Unwinding(self.run)
                raise Unwind
            self.session.carry_out(command)

    def _set_off(self, order: StepRequest) -> None:
        """Let the script do ``order``."""
        run = self.run
        run.counters.write()
        run.note_modes()
        self.order = order
        self._round_over = False
        if (order.watch or order.evaluates) and not run.without_loader:
            self.listening.also(self.session.taps.calls())
        self.listening.enter(order.observer, order.modes)
        if run.without_loader and order.batch is not None and run.roles is not None:
            self.listening.also(TargetSwap(run.roles, order))
        self.passes.reset()
        self.session.taps.listener = self
        order.started = time.perf_counter()

    # --- batches ----------------------------------------------------------------------------------

    def on_iterate(self, iterator: TappedIterator) -> None:
        """Begin the loader's own iterator, unless its batches will never be asked for."""
        if not self._is_training(iterator):
            iterator.begin()
        self.run.registers.of["loader"].add(iterator.loader)

    def _is_training(self, iterator: TappedIterator) -> bool:
        if not torch.is_grad_enabled():
            return False
        run = self.run
        if id(iterator.loader) in run.loop.others:
            return False
        if run.loop.original(iterator.loader) is run.train_loader:
            return True
        if run.roles is None or not run.roles.model.training:
            return False
        return same_data(iterator.loader, run.train_loader) or self._is_made_anew(iterator.loader)

    def _is_made_anew(self, loader: Any) -> bool:
        """Whether ``loader`` has taken the training loader's place, its data loaded once more.

        It was made at the same line, and is read at the same line, as the training loader was.
        """
        run = self.run
        made = run.registers.place(loader)
        if made is None or made != run.registers.place(run.train_loader):
            return False
        return callstack.user_line() == run.training_at

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """Give the script what the auditor wants it to have."""
        run = self.run
        if id(iterator.loader) in run.loop.frozen:
            iterator.count += 1
            return batches.clone(run.loop.frozen[id(iterator.loader)][1])
        if not self._is_training(iterator):
            self._note_validation(not same_data(iterator.loader, run.train_loader))
            self._note_evaluation(iterator)
            return self._aside(iterator)
        if self.order is None or self.order.attempts:
            self._pause()
        self._give_up_execution()
        if self.before is not None:
            self._resume(self.before)
        order, roles = self.order, run.roles
        assert order is not None
        assert roles is not None
        if self._is_over(iterator, order):
            self.before = self._kept()
            iterator.exhausted = True
            raise StopIteration
        if order.ends_epoch or (run.ends_epoch and iterator.count):
            order.ends_epoch, order.epoch_ended = False, True
            iterator.exhausted = True
            raise StopIteration
        if order.handed >= 8 * roles.per_step + MARGIN:
            self._give_up(order)
            return self.on_next_batch(iterator)
        self._note_validation(False)
        order.handed += 1
        iterator.count += 1
        self._fed = iterator.loader
        return self._copy(order.batch, iterator)

    def _aside(self, iterator: TappedIterator) -> Any:
        """Let the script validate: on one batch, as nobody reads what it finds, unless it minds.

        What another network of its is trained with is none of the audit's business either.
        """
        training = torch.is_grad_enabled() and id(iterator.loader) not in self.run.loop.others
        if iterator.count and not (training or self.session.validates_whole):
            if self.order is not None:
                self.order.shortened = True
            raise StopIteration
        self._give_up_execution()
        batch = iterator.draw()
        iterator.count += 1
        if self.order is not None and self.order.evaluates:
            self._aside_batch = batch
        return batch

    def _note_evaluation(self, iterator: TappedIterator) -> None:
        """Note which loader the script reads beside its training steps."""
        order = self.order
        if order is None or not order.evaluates or id(iterator.loader) in self.run.loop.others:
            return
        roles = self.run.roles
        between = order.epoch_ended and not order.handed
        asleep = roles is not None and not roles.model.training
        if (between and asleep) or not torch.is_grad_enabled():
            self.run.evaluated.read(self.run.loop.original(iterator.loader))

    def _give_up_execution(self) -> None:
        """End this execution of the script, where the order says so.

        Raises:
            Restart: it does.
        """
        if self.order is not None and self.order.gives_up:
            raise Restart

    def _copy(self, batch: Any, iterator: TappedIterator) -> Any:
        """Return ``batch`` for the script to keep, or to write to."""
        loop = self.run.loop
        if loop.is_cycled is None:
            loop.is_cycled = any(type(holder) is cycle for holder in gc.get_referrers(iterator))
        self._slot = refilled(self._slot, batch) if loop.is_cycled else batches.clone(batch)
        return self._slot

    def _give_up(self, order: StepRequest) -> None:
        """The script takes batches and no step: say so, and wait for another order."""
        order.error = StuckError(
            f"the script took {order.handed} batches without an optimizer step"
        )
        self._pause()

    def _is_over(self, iterator: TappedIterator, order: StepRequest) -> bool:
        """Whether the loader has no batches left for ``order``, and the script is to be told."""
        run, length = self.run, _length(iterator.loader)
        if length is None or order.handed or not run.has_epochs or not iterator.count:
            return False
        assert run.roles is not None
        left = length - iterator.count
        if run.stops_at_loader_end:
            # The rest of a window of accumulated gradients is a step only to a loop that counts.
            return left < (1 if run.counts_batches else min(run.roles.per_step, length))
        order.past_loader_end = left < run.roles.per_step
        if order.past_loader_end and left > -WARY and order.backup is None:
            order.backup = self._kept()
            run.counters.read()
            self._set_off(order)
        return False

    def _kept(self) -> Snapshot:
        """Take a snapshot without the hooks of what listens: they would come back with it."""
        self.leave()
        with self.session.taps.muted():
            return Snapshot.take(self.run.lasting)

    def _resume(self, before: Snapshot) -> None:
        """Undo what came between two epochs, or between a failure and now, and go on."""
        assert self.order is not None
        grad, casting = keep_grad_mode(), keep_autocast()
        # An execution that took up the order is listened to from there on, not from here.
        self.leave()
        with self.session.taps.muted():
            before.restore()
        grad(), casting()
        self.before = None
        self.run.counters.read()
        self._set_off(self.order)

    def _note_validation(self, validating: bool) -> None:
        """Tell the observer whether what the script does until its next batch is validation."""
        order = self.order
        if order is not None and order.observation is not None and not order.handed:
            order.observation.validating = validating

    # --- calls of networks ------------------------------------------------------------------------

    def on_forward(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note the call of an outermost module; in a script without a loader, pause before it."""
        if next(module.parameters(), None) is None:
            return run(args, kwargs)
        if in_transform():
            if self.order is not None and self.order.watch:
                self.order.calls.append(recorded(module, (), {}))
            return run(args, kwargs)
        if self.run.without_loader and torch.is_grad_enabled():
            args, kwargs = self._substituted(module, args, kwargs)
        order = self.order
        if order is not None and order.evaluates:
            self.run.evaluated.rest()
            if not torch.is_grad_enabled():
                self._give_up_execution()
                given = [each for each in (self._slot, self._aside_batch) if each is not None]
                return self.run.evaluated.on_forward(module, run, args, kwargs, given)
        if order is not None and order.train is not None:
            module.train(order.train)
        if order is None or not order.watch:
            return run(args, kwargs)
        call = recorded(module, args, kwargs)
        output = run(args, kwargs)
        call.output = batches.detached(output)
        order.calls.append(call)
        return output

    def _substituted(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Wait for the next order where one is done; put its batch in place of the script's own."""
        if self.order is not None and self._round_over:
            self._pause()
        order, roles = self.order, self.run.roles
        if order is None or roles is None or roles.entry is None or order.batch is None:
            return args, kwargs
        if not self.run.is_same(module, roles.entry.module) or roles.recipe is None:
            return args, kwargs
        if order.handed >= 8 * roles.per_step + MARGIN:
            self._give_up(order)
            return self._substituted(module, args, kwargs)
        order.handed += 1
        made = placed(roles.recipe.fill(batches.clone(order.batch)), (args, kwargs))
        order.reshaped |= shapes(made) != shapes((args, kwargs))
        given: tuple[Any, Any] = followed(made, (args, kwargs))
        return given

    # --- losses and steps -------------------------------------------------------------------------

    def on_backward(self, root: Tensor) -> bool:
        """Note a backward pass; returns whether it shall take place."""
        value, order, roles = self.passes.value_of(root), self.order, self.run.roles
        wanted = True
        dry = order is not None and order.dry
        if dry and roles is not None and not roles.steps_within_backward:
            fill_with_zeros(roles.optimizers, roles.models)
            wanted = reaches_inputs(root, roles.models)
        if self.passes.counts() and order is not None:
            if self.passes.void:
                order.pending = []
                self.passes.void = False
            order.pending.append(value)
        return wanted

    def on_zero_grad(self) -> None:
        """Note whether anything of what was back-propagated is left."""
        order, roles = self.order, self.run.roles
        if order is not None and roles is not None:
            self.passes.zeroed(order.pending, lambda: (roles.optimizer,))

    def on_step_start(self, optimizer: Optimizer, closure: bool) -> None:
        """Note that an optimizer is about to step: with a ``closure``, the round begins here."""
        if closure and self.run.without_loader and self.order is not None and self._round_over:
            self._pause()
        self.passes.begin_step()
        order, roles = self.order, self.run.roles
        main = roles is not None and self.run.loop.original(optimizer) is roles.optimizer
        if order is not None and main:
            order.lr = self.run.rates()

    def on_step_end(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped."""
        self.passes.end_step()
        if self.order is not None:
            optimizer = self.run.loop.original(optimizer)
            if not self.order.ended and self._is_of_another(optimizer):
                self._pass_by(self.order)
                return
            self._strayed = False
            self._finish(self.order, optimizer)
            self._round_over |= optimizer is self._last

    def _is_of_another(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer is at work in another training than the one that is audited.

        It holds nothing of the network, and was made after the audit had begun, as in the next of
        several trainings, or was given a batch by a loader of its own, as in an ensemble. Not where
        every round has a new one, as with copies that learn a task each.
        """
        run, roles = self.run, self.run.roles
        assert roles is not None
        if not run.optimizer_lasts:
            return False
        elsewhere = self._fed is not None and run.loop.original(self._fed) is not run.train_loader
        if optimizer in roles.stepped or (optimizer in roles.optimizers and not elsewhere):
            return False
        mine = {id(p) for p in roles.model.parameters()}
        return not any(id(p) in mine for group in optimizer.param_groups for p in group["params"])

    def _pass_by(self, order: StepRequest) -> None:
        """Another training took a step in place of the audited one.

        Raises:
            Restart: it does so again and again: the script has left the audited training behind.
        """
        run = self.run
        self._strayed = True
        order.pending = []
        if self._fed is not None and run.loop.original(self._fed) is not run.train_loader:
            run.loop.others[id(self._fed)] = self._fed
            order.handed = 0
        order.strayed += 1
        if order.strayed > ASTRAY and not (run.nests_training or run.fruitless):
            order.restarts = True
            raise Restart

    def on_scaler_step(self) -> None:
        """Note that a gradient scaler stepped, or skipped a step."""
        strayed, self._strayed = self._strayed, False
        if strayed:
            return
        if self.order is not None and not self.order.attempts and self.run.roles is not None:
            self._finish(self.order, self.run.roles.optimizer)
            self._round_over = True

    def _finish(self, order: StepRequest, optimizer: Optimizer) -> None:
        """Write down the loss of the step that was taken: the main optimizer's goes before."""
        assert self.run.roles is not None
        order.attempts += 1
        self.run.fruitless = 0
        # Trainings within the audited one's steps: adversarial examples, codes that are looked for.
        self.run.nests_training |= bool(order.strayed) and not order.epoch_ended
        self.passes.void = False
        if optimizer is self.run.roles.optimizer and not order.ended:
            if _CUDA.is_initialized():
                torch.cuda.synchronize()
            order.ended = time.perf_counter()
            order.roots = order.pending or order.roots
            self.run.optimizer_lasts = True
        elif order.pending and not order.ended:
            order.roots = order.pending
        order.pending = []


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
