"""What the parent asks of the child process, and what the child says back, one JSON line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from nnaudit.report import Environment, Kind, Location, Model, Overview, Result, TargetInfo
from nnaudit.settings import Settings

PICTURES = "taking the pictures of the data"
"""The stage that fills the report's overview."""

RANKS = "running the script in several processes"
"""The stage that watches the ranks."""

PLUGIN = "PLUGIN"
"""The code under which plug-ins that could not be loaded are reported, each by its name."""


class Job(Model):
    """One child's work: a target, the settings, and what an earlier child died of.

    Attributes:
        path: the target file.
        module: the name under which it is run, as ``python -m`` does; empty for a file.
        arguments: what follows ``--`` on the command line.
        form: how to take the file, None to tell from its text.
        remaining: codes still to ask, None for all that the settings select.
        known_fatal: probes and stages during which an earlier child died, with the reason. They are
            not tried again.
        elapsed: seconds that earlier children used of the budget.
        began: when this child was started, by the monotonic clock that processes share; None for
            when it comes to its job.
        inspect: only say what the target is.
        battery: only say which checks the settings select; there is no target.
        scratch: a folder for what the program writes.
        keep: a folder for a copy of it, empty for none.
    """

    path: str
    module: str = ""
    arguments: tuple[str, ...] = ()
    form: Literal["module", "script"] | None = None
    settings: Settings
    threads: int | None = None
    remaining: tuple[str, ...] | None = None
    known_fatal: dict[str, str] = Field(default_factory=dict)
    elapsed: float = 0.0
    began: float | None = None
    inspect: bool = False
    battery: bool = False
    scratch: str = ""
    keep: str = ""


class Question(Model):
    """A selected check, described for a parent that must not import it."""

    code: str
    name: str
    family: str
    kind: Kind
    question: str
    explanation: dict[str, str] = Field(default_factory=dict)
    url: str = ""
    consequence_of: tuple[str, ...] = ()


class Started(Model):
    """The target is loaded: what it is, where it runs, and what will be asked.

    ``remarks`` are sentences about the source that its author should know: a comment for nnaudit
    that cannot be understood.
    """

    event: Literal["started"] = "started"
    target: TargetInfo
    environment: Environment
    questions: tuple[Question, ...]
    remarks: tuple[str, ...] = ()


class Listed(Model):
    """These are the checks that the settings select; a plug-in that cannot be loaded is one too."""

    event: Literal["listed"] = "listed"
    questions: tuple[Question, ...]


class Asking(Model):
    """A check begins."""

    event: Literal["asking"] = "asking"
    code: str


class Measuring(Model):
    """A shared measurement begins (``begins``) or has ended."""

    event: Literal["measuring"] = "measuring"
    probe: str
    begins: bool


class Answered(Model):
    """A check ended with this result."""

    event: Literal["answered"] = "answered"
    result: Result


class Crashed(Model):
    """The user's code raised in the very first training step."""

    event: Literal["crashed"] = "crashed"
    message: str
    location: Location | None = None
    traceback: str = ""


class Pictured(Model):
    """The pictures of data and weights are taken."""

    event: Literal["pictured"] = "pictured"
    overview: Overview


class Refused(Model):
    """The audit cannot be done at all."""

    event: Literal["refused"] = "refused"
    message: str
    detail: str = ""
    exit_code: int


class Finished(Model):
    """Everything was asked; ``steps`` optimizer steps were taken."""

    event: Literal["finished"] = "finished"
    steps: int


class Protected(Model):
    """The program is about to start, and this protects the user's files; ``why`` not more does."""

    event: Literal["protected"] = "protected"
    level: str
    why: str = ""


class Ended(Model):
    """The program and all that it started have ended: the last event of a child.

    Attributes:
        code: its exit code, or minus the number of the signal that killed it.
        why: why nnaudit ended it; empty where it ended by itself.
        files: how many files it wrote, each once.
        names: the first of them.
        kept: the folder that holds copies of them.
    """

    event: Literal["ended"] = "ended"
    code: int
    why: str = ""
    files: int = 0
    names: tuple[str, ...] = ()
    kept: str = ""


Event = Annotated[
    Protected
    | Started
    | Listed
    | Asking
    | Measuring
    | Answered
    | Crashed
    | Pictured
    | Refused
    | Finished
    | Ended,
    Field(discriminator="event"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)

Emit = Callable[[Event], None]
"""Says what happens."""

Work = Callable[[Job, Emit], None]
"""What a child does for a job; raises whatever ends the audit."""
