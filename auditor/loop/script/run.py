"""One run of a script: what is known of it, shared by those who take turns over it.

:class:`~nnaudit.loop.script.execution.Execution` executes the script, as often as the audit needs
it. Within an execution the run is in one of three states, and each is the listener for as long as
it lasts: :class:`~nnaudit.loop.script.discovery.Discovery` watches until the training loop is
found, :class:`~nnaudit.loop.script.driver.Driver` gives the script what the auditor wants from then
on, and :class:`~nnaudit.loop.script.listener.Unwinding` lets it end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from nnaudit.errors import NnauditError
from nnaudit.loop.direct import StepCount
from nnaudit.loop.script.channel import CommandChannel, Invoke, Launch, StepRequest
from nnaudit.loop.script.evaluation import EvaluationLog
from nnaudit.loop.script.main_module import Invocation
from nnaudit.loop.script.patches import Listener, Patches
from nnaudit.loop.script.planned_run import PlannedRun
from nnaudit.loop.script.temporary_folders import TemporaryFolders
from nnaudit.loop.script.training_objects import Registers, TrainingObjects
from nnaudit.loop.script.variables import ScriptVariables
from nnaudit.report import Location, Part
from nnaudit.state.files import Protection
from nnaudit.state.snapshot import Snapshot, Subjects
from nnaudit.targets.source import source_of


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
        invoked: how it is started.
        temporary: what names its temporary folders.
        objects: the file does not train when it is run, but hands over an object that does: it is
            executed as a module, and :func:`objects.training_of` says what follows.
        trainer: whose loop it is then.
        loop: which of the script's training loops to audit, from 1; None for the first, or, in a
            script that speaks of loaders, the first that has one.
        is_students: ``loop`` was chosen, for its network learns from one that was trained before.
        without_loader: the loop that is audited has none; None until the first run has come to it.
        executions: how often the script was executed.
        validates_whole: its validation is never cut short, for it failed when it was.
    """

    invoked: Invocation
    seed: int
    taps: Patches
    protection: Protection
    commands: CommandChannel
    on_first: Callable[[Run], None]
    temporary: TemporaryFolders
    device: str = "cpu"
    objects: bool = False
    trainer: Part | None = None
    loop: int | None = None
    is_students: bool = False
    without_loader: bool | None = None
    executions: int = 0
    validates_whole: bool = False
    count: StepCount = field(default_factory=StepCount)
    runs: list[Run] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Its file."""
        return self.invoked.path

    @cached_property
    def speaks_of_loaders(self) -> bool:
        """Whether the script's own text leads to expect a training loader."""
        return "loader" in source_of(self.path).text.lower()

    def carry_out(self, command: Invoke | Launch) -> None:
        """Call a function, or run the script anew on top of this run, in the script's thread."""
        try:
            if isinstance(command, Invoke):
                self.commands.answer(command.function())
            else:
                command.execution.execute()
                self.commands.answer()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.commands.answer(None, error)


class State(Listener, Protocol):
    """A run's listener while its script is in one of the three states."""

    @property
    def starting(self) -> bool:
        """The script has not come to its training loop."""

    def leave(self) -> None:
        """Take away what listens in the script's thread."""


@dataclass
class TrainingLoop:
    """How the training loop goes round, as far as the present execution of the script has shown.

    Attributes:
        without_loader: the script draws its batches without a loader.
        ends_epoch: the optimizer steps after the loader has ended, not in between.
        redraws: every batch is the first of an iterator of its own.
        counted: a framework counts its batches.
        is_cycled: ``itertools.cycle`` keeps the batches that it got from the loader; None before
            the first one.
        frozen: by loader, the batch that stands in for all of one that is read along with the
            training loader; and the loader, lest its id becomes another's.
        others: loaders of the same data that other networks of the script are trained with.
        alias: the object of the first execution for the id of each that this one has made.
        aliased: the latter, to keep the ids theirs.
    """

    without_loader: bool = False
    ends_epoch: bool = False
    redraws: bool = False
    counted: bool = False
    is_cycled: bool | None = None
    frozen: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    others: dict[int, Any] = field(default_factory=dict)
    alias: dict[int, Any] = field(default_factory=dict)
    aliased: list[Any] = field(default_factory=list)

    def original(self, thing: Any) -> Any:
        """Return what ``thing`` stands for: itself, or its counterpart of the first execution."""
        return self.alias.get(id(thing), thing)


@dataclass
class Rerun:
    """What an execution of the script that follows an ended one has to take over.

    Attributes:
        order: the step that is waiting to be taken.
        registers, helpers, loaders: what the first execution made.
        process: random numbers and flags as they were when it ended.
        before: the state to go back to before the step, where something failed after it.
    """

    order: StepRequest
    registers: Registers
    helpers: tuple[Any, ...]
    loaders: tuple[Any, Any]
    process: Snapshot
    before: Snapshot | None


class Run:
    """One run of a script.

    Attributes:
        state: who listens to the script; None while it is not being executed.
        loop: how its training loop goes round.
        roles: who is who, once control was taken.
        variables: the global ones of its file, in its latest execution.
        evaluated: what it evaluates its network on, until its validation was found.
        validation_known: its validation was looked for, and is ``val_loader`` if there is one.
        training_at: the user's line at which the run is led: where it asks for a batch, or steps.
        phase: the number of the training loop that is audited, among those that the script came to.
        elsewhere: what else its text trains by, and where; see :func:`loop_tracker.elsewhere`.
        in_rounds: the audited loop makes an optimizer itself: only its first round is audited.
        rerun: what an execution that is not the first has to take over, until it has.
        reruns: how often the script had to be run again because it ended.
        fruitless: how often in a row it was run again without another optimizer step.
        rates_rise: the script raises its learning rate by itself, to a height that is not known.
        counts_batches: what its training loop does depends on how many batches there have been.
        stops_at_loader_end: its epochs end with the loader: it counts, or failed in a longer one.
        optimizer_lasts: the audited optimizer has stepped for the auditor.
        nests_training: other trainings take place within the audited one's steps.
        handed_over: the auditor has, or had, control.
        modes: whether each module was in train mode when the script set off on its latest order.
    """

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.seed = seed
        self.state: State | None = None
        self.loop = TrainingLoop()
        self.registers = Registers()
        self.counters = ScriptVariables()
        self.roles: TrainingObjects | None = None
        self.train_loader: Any = None
        self.val_loader: Any = None
        self.variables: dict[str, Any] = {}
        self.evaluated = EvaluationLog()
        self.validation_known = False
        self.training_at: Location | None = None
        self.planned_epochs = 0
        self.span = PlannedRun()
        self.phase = 1
        self.elsewhere: dict[str, tuple[int, ...]] = {}
        self.in_rounds = False
        self.rerun: Rerun | None = None
        self.reruns = 0
        self.fruitless = 0
        self.rates_rise = False
        self.counts_batches = self.stops_at_loader_end = False
        self.optimizer_lasts = self.nests_training = False
        self.handed_over = False
        self.modes: list[tuple[nn.Module, bool]] = []

    def note_modes(self) -> None:
        """Note in which mode the script trains its networks on."""
        assert self.roles is not None
        modules = (m for model in self.roles.models for m in model.modules())
        self.modes = [(module, module.training) for module in modules]

    def restore_modes(self) -> None:
        """Put the networks into the modes in which the script trained them.

        One that has ended has left them in those of its last validation, in which no step is taken.
        """
        for module, training in self.modes:
            module.training = training

    @property
    def starting(self) -> bool:
        """Whether the script has not come to its training loop, or not yet come to it again."""
        return self.state is not None and self.state.starting

    @property
    def without_loader(self) -> bool:
        """Whether the script draws its batches without a loader."""
        return self.loop.without_loader

    @property
    def ends_epoch(self) -> bool:
        """Whether the optimizer steps after the loader has ended, not in between."""
        return self.loop.ends_epoch

    @property
    def has_epochs(self) -> bool:
        """Whether the script can be told that its loader has ended, and begins another epoch.

        Not where it has no loader, ends its epochs itself, has batches in flight, counts them by a
        framework, begins anew for every batch, or goes round by ``itertools.cycle``, which asks its
        loader only once.
        """
        roles, loop = self.roles, self.loop
        special = loop.without_loader or loop.ends_epoch or loop.counted or loop.redraws
        return not (roles is None or roles.lookahead or special or loop.is_cycled)

    @property
    def subjects(self) -> Subjects:
        """Everything a step may change, once control was taken."""
        roles = self.roles
        assert roles is not None
        return Subjects(
            models=roles.models,
            optimizers=roles.optimizers,
            schedulers=roles.schedulers,
            scalers=roles.scalers,
            loaders=tuple(x for x in (self.train_loader, self.val_loader) if x is not None),
            extras=(self.counters.values, *roles.helpers),
        )

    @property
    def lasting(self) -> Subjects:
        """What a step may change, without variables: those of an epoch's function end with it."""
        return replace(self.subjects, extras=self.roles.helpers if self.roles is not None else ())

    def rates(self) -> tuple[float, ...]:
        """Return the learning rate of every parameter group."""
        assert self.roles is not None
        return tuple(float(g["lr"]) for o in self.roles.optimizers for g in o.param_groups)

    def is_same(self, module: nn.Module, other: nn.Module) -> bool:
        """Whether the two are one, or one has taken the other's place in a later execution."""
        return self.loop.original(module) is other
