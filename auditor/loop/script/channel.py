"""Two threads of which one runs: the script's, which does as it is told, and the auditor's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.observer import Observer
from nnaudit.state.snapshot import Snapshot


class Unwind(BaseException):
    """Ends a run from inside its script; nothing that catches exceptions should catch it."""


class Restart(BaseException):
    """Ends an execution of the script, which is then executed again to go on with the audit."""


@dataclass
class Call:
    """One call of an outermost module, with copies of what it was given.

    Attributes:
        module: as it was called, wrappers and all.
        output: what it returned, detached; None when it raised.
        recent: the batches that the script had been given by then, each after the id of its
            loader, the newest first.
        grad: gradients were wanted of it: without, it is no part of the training step.
        autocast: of each kind of device, whether and to what the call was cast.
        given: the tensors themselves, no copies: being held, they keep their place in memory.
    """

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    recent: tuple[tuple[int, Any], ...] = ()
    grad: bool = True
    autocast: tuple[tuple[str, bool, Any], ...] = ()
    given: tuple[Tensor, ...] = ()


@dataclass
class StepRequest:
    """One optimizer step that the auditor wants, and what became of it.

    Attributes:
        batch: what the script is to be given; None to leave it what it draws itself.
        observer: listens in the script's thread.
        modes: the auditor's function modes, which count in the script's thread too.
        watch: record the calls of outermost modules.
        ends_epoch: tell the script first that its training loader has no more batches.
        epoch_ended: it was told so.
        dry: gradients are zero instead of being computed: only what came before them is wanted.
        evaluates: note what the script evaluates its network on meanwhile.
        restarts: end this execution of the script first, and take the step in another.
        deadline: when to end this execution, where the script is not training then.
        train: the mode that modules are put into whenever they are called; None for the script's.
        handed: how many times the script was given the batch.
        reshaped: the batch has other shapes than what the script has drawn itself.
        attempts: optimizer steps taken or skipped.
        strayed: steps that other trainings took meanwhile.
        backup: the state before it, where the epoch has just grown longer than the loader.
        past_loader_end: the epoch is longer than the loader.
        shortened: a pass over a loader without gradients was cut short while the script took it.
        roots: what was back-propagated for the main optimizer's step.
        lr: the learning rates it was taken with.
    """

    batch: Any
    observer: Observer | None = None
    modes: tuple[TorchFunctionMode, ...] = ()
    watch: bool = False
    ends_epoch: bool = False
    epoch_ended: bool = False
    dry: bool = False
    evaluates: bool = False
    restarts: bool = False
    deadline: float = math.inf
    train: bool | None = None
    handed: int = 0
    reshaped: bool = False
    attempts: int = 0
    strayed: int = 0
    backup: Snapshot | None = None
    past_loader_end: bool = False
    shortened: bool = False
    pending: list[Tensor] = field(default_factory=list)
    roots: list[Tensor] = field(default_factory=list)
    lr: tuple[float, ...] = ()
    started: float = 0.0
    ended: float = 0.0
    calls: list[Call] = field(default_factory=list)
    error: BaseException | None = None

    def restart(self) -> None:
        """Forget what has happened."""
        self.handed = self.attempts = self.strayed = 0
        self.reshaped = self.shortened = False
        self.pending, self.roots, self.calls = [], [], []
        self.ended = 0.0

    @property
    def gives_up(self) -> bool:
        """Whether the execution of the script in which it is being done is to end."""
        return self.restarts or time.perf_counter() > self.deadline

    @property
    def observation(self) -> Observation | None:
        """What the observer saw."""
        return self.observer.observation if self.observer is not None else None

    @property
    def loss_calls(self) -> tuple[LossCall, ...]:
        """The loss functions that the observer saw called."""
        return tuple(self.observation.loss_calls) if self.observation is not None else ()


@dataclass(frozen=True)
class Resume:
    """Let the script run until it has done ``request``."""

    request: StepRequest


@dataclass(frozen=True)
class Invoke:
    """Call ``function`` in the script's thread."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Launch:
    """Begin ``execution`` on top of the paused script; its run is the answer, once it is led."""

    execution: Any


@dataclass(frozen=True)
class Close:
    """Unwind the innermost run."""


Command = Resume | Invoke | Launch | Close


class CommandChannel:
    """Whoever asks waits for the answer; whoever has answered waits to be asked.

    Attributes:
        over: nobody listens any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def ask(self, command: Command) -> Any:
        """Hand control to the script's thread and return its answer, or raise its error.

        Raises:
            RuntimeError: the script's thread is done; closing what it has closed is no error.
        """
        if self.over:
            if isinstance(command, Close):
                return None
            raise RuntimeError("the script is not running any more")
        self._commands.put(command)
        value, error = self._answers.get()
        if error is not None:
            raise error
        return value

    def tell(self, command: Command) -> None:
        """Give a last command, to which there is no answer."""
        self._commands.put(command)

    def listen(self) -> Command:
        """Wait for the next command."""
        return self._commands.get()

    def answer(self, value: Any = None, error: BaseException | None = None) -> None:
        """Hand control back."""
        self._answers.put((value, error))
