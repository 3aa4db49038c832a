"""Executing a script, as often as the audit needs it to go on.

A script that comes to its end while the auditor still wants steps is executed again, up to its
training loop, where the objects of the first execution take the place of the new ones. Everything
here happens in the script's thread.
"""

from __future__ import annotations

import gc
import math
import types
from contextlib import ExitStack
from dataclasses import dataclass

from nnaudit.errors import RepeatError, TargetError, UnfitError, UserCodeError
from nnaudit.loop.base import seed_everything
from nnaudit.loop.script.channel import Close, Restart, Resume, StepRequest
from nnaudit.loop.script.discovery import Discovery
from nnaudit.loop.script.driver import Driver
from nnaudit.loop.script.evaluation import EvaluationLog
from nnaudit.loop.script.listener import Unwinding
from nnaudit.loop.script.main_module import as_main, main_module
from nnaudit.loop.script.objects import training_of
from nnaudit.loop.script.reseeding import quiet_imports, shifting
from nnaudit.loop.script.run import EndedError, Rerun, Run, Session, TrainingLoop
from nnaudit.loop.script.training_objects import Registers
from nnaudit.loop.script.untrained import untrained
from nnaudit.state.collector import older_objects_hidden
from nnaudit.state.libraries import beginning_anew
from nnaudit.state.snapshot import Snapshot, Subjects
from nnaudit.targets import callstack

FRUITLESS = 3
"""How often in a row a script that ended is run again and ends without another optimizer step."""

AGAIN = "the script ends again and again"


@dataclass
class Ended:
    """How an execution of the script came to its end by itself."""

    error: BaseException | None


class Execution:
    """Executes a script for one run, in the calling thread."""

    def __init__(self, session: Session, seed: int, *, keeps_files: bool = False) -> None:
        self.run = Run(session, seed)
        self.session = session
        self._keeps_files = keeps_files
        self._dead: BaseException | None = None
        self._before: Snapshot | None = None

    def execute(self) -> None:
        """Run the script until the auditor is done with it.

        Raises:
            UserCodeError: the script crashed before its first optimizer step.
            TargetError: it ended without one.
        """
        self.session.runs.append(self.run)
        try:
            with older_objects_hidden():
                self._execute()
        finally:
            self.session.runs.remove(self.run)

    def _execute(self) -> None:
        discovery, ended = self._once()
        if ended is not None and not discovery.found and discovery.waiting_since is not None:
            # It was in vain: what has trained without a loader was all there is.
            self.session.without_loader = True
            discovery, ended = self._anew()
        if (scout := discovery.scout) is not None:
            self.session.loop, self.session.is_students = scout.loop, scout.found_student
            discovery, ended = self._anew()
        if ended is not None and not discovery.found:
            raise untrained(discovery, ended.error)
        if ended is not None and not self.run.handed_over:
            # Taking hold of the script failed, inside its own loop: nobody waits for it.
            name = self.session.path.name
            raise ended.error or TargetError(f"{name} kept running after nnaudit took control")
        while ended is not None and self._wait_after(ended):
            _, ended = self._once()

    def _anew(self) -> tuple[Discovery, Ended | None]:
        """Execute the script once more, as if it had not been: control was not taken of it."""
        self.run.registers, self.run.evaluated = Registers(), EvaluationLog()
        return self._once()

    def _once(self) -> tuple[Discovery, Ended | None]:
        """Execute the script once; return how it ended, None where it was unwound."""
        session, run, taps = self.session, self.run, self.session.taps
        session.executions += 1
        run.loop = TrainingLoop()
        path, heard = session.path, taps.active_listener
        main = main_module(path.stem if session.objects else "__main__", path)
        run.variables = vars(main)
        with ExitStack() as stack:
            if session.executions > 1 and not self._keeps_files:
                stack.enter_context(session.protection.fresh())
            if session.executions > 1:
                stack.enter_context(beginning_anew())
            stack.enter_context(as_main(main, session.invoked))
            stack.enter_context(quiet_imports(path.parent))
            shift = (run.seed - session.seed) % 2**32
            stack.enter_context(
                shifting(shift, lambda: run.registers.empty, lambda: heard() is not None)
            )
            stack.callback(gc.collect)
            stack.callback(setattr, taps, "listener", taps.listener)
            calls = stack.enter_context(ExitStack())
            calls.enter_context(taps.calls())
            discovery = Discovery(run, calls)
            run.state = discovery
            stack.callback(lambda: run.state.leave() if run.state is not None else None)
            seed_everything(run.seed)
            session.temporary.begin()
            taps.listener = discovery
            error: BaseException | None = None
            try:
                execute = callstack.run if run.rerun is None else callstack.run_again
                session.invoked.execute(main, execute)
                if session.objects:
                    execute(self._train_objects, main)
            except KeyboardInterrupt:
                raise
            except SystemExit as exit_:
                error = exit_ if exit_.code else None
            except BaseException as raised:
                error = raised
            return discovery, None if isinstance(run.state, Unwinding) else Ended(error)

    def _train_objects(self, module: types.ModuleType) -> None:
        """Start the training of the object that the executed file hands over.

        Raises:
            TargetError: it does not hand over one this time.
        """
        found = training_of(module, self.session.path, self.session.device)
        if found is None:
            raise TargetError(
                f"{self.session.path.name} does not define the same objects every time"
            )
        start, self.session.trainer = found
        start()

    # --- the script has ended ---------------------------------------------------------------------

    def _wait_after(self, ended: Ended) -> bool:
        """The script ended by itself: serve the auditor until it wants a step, or is done.

        Returns whether the script is to be executed again.
        """
        order = self._unfinished(ended)
        self.run.restore_modes()
        if order is not None and not self._settle(order, ended):
            # It ended for want of another round of its loop: that round begins a new execution.
            self._prepare_rerun(order)
            return True
        while True:
            command = self.session.commands.listen()
            if isinstance(command, Close):
                return False
            if not isinstance(command, Resume):
                self.session.carry_out(command)
            elif self._dead is not None or self.run.fruitless >= FRUITLESS:
                self._refuse(command.request, self._dead or EndedError(AGAIN))
            else:
                self._prepare_rerun(command.request)
                return True

    def _unfinished(self, ended: Ended) -> StepRequest | None:
        """Return the order during which the script came to its end; nobody listens from now on."""
        run = self.run
        self.session.taps.listener = None
        state, run.state = run.state, None
        if run.rerun is not None:
            # It was executed again and did not get as far as the first time.
            name = self.session.path.name
            self._dead = (
                EndedError(f"{name} could not be restarted after it ended")
                if ended.error is None
                else RepeatError(f"running {name} again", ended.error)
            )
            order: StepRequest | None = run.rerun.order
            run.rerun = None
            return order
        assert isinstance(state, Driver)
        self._before = state.before
        order, state.order = state.order, None
        return order

    def _settle(self, order: StepRequest, ended: Ended) -> bool:
        """Answer the one who waits for the order during which the script came to its end.

        Returns False where there is no answer: the step has not been tried.
        """
        run = self.run
        if self._dead is not None:
            self._refuse(order, self._dead)
        elif ended.error is not None and not self._gives_way(order, ended.error):
            run.fruitless = 0
            self._refuse(order, _failure(order, ended.error))
        elif order.attempts:
            self.session.commands.answer(order, order.error)
        elif run.fruitless >= FRUITLESS:
            self._refuse(order, EndedError(AGAIN))
        else:
            return False
        return True

    def _gives_way(self, order: StepRequest, error: BaseException) -> bool:
        """Whether the script failed over what the audit has changed, and will not change again.

        It took a step, or is to try once more: an error that it owes to the audit is not its own.
        """
        run, session = self.run, self.session
        if isinstance(error, Restart):
            order.restarts, order.deadline = False, math.inf
            return True
        if order.shortened and not session.validates_whole:
            session.validates_whole = True
            order.ends_epoch = order.epoch_ended
            return True
        if order.past_loader_end and not (order.attempts or run.stops_at_loader_end):
            run.stops_at_loader_end, self._before = True, order.backup
            return True
        return False

    def _refuse(self, order: StepRequest, error: BaseException) -> None:
        order.error = error
        self.session.commands.answer(order, error)

    def _prepare_rerun(self, order: StepRequest) -> None:
        run = self.run
        assert run.roles is not None
        run.reruns += 1
        run.fruitless += 1
        order.restart()
        run.rerun = Rerun(
            order,
            run.registers,
            run.roles.helpers,
            (run.train_loader, run.val_loader),
            Snapshot.take(Subjects()),
            self._before,
        )
        run.registers = Registers()


def _failure(order: StepRequest, error: BaseException) -> UserCodeError:
    """Return what the auditor is told of a step in which the script raised ``error``."""
    failure = (
        UnfitError("running on a batch in place of its own", error)
        if order.reshaped
        else UserCodeError("running the training step", error)
    )
    if order.observation is not None:
        failure.observation = order.observation  # type: ignore[attr-defined]
    return failure
