"""What an audit says, as data: results, evidence, report.

Everything that reads an audit (terminal, HTML, JSON, pytest) reads these models and nothing
else. This module must not import torch, so that a report can be rendered without it.
"""

from __future__ import annotations

import math
import shlex
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

SCHEMA_VERSION: Final = 1


class Status(StrEnum):
    """A check's answer. Only ``PASS`` counts as a pass."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    NOTE = "note"
    INCONCLUSIVE = "inconclusive"
    SKIP = "skip"
    ERROR = "error"


ANSWERS = (Status.PASS, Status.NOTE, Status.WARN, Status.FAIL)
"""What answers a question; the others say why there is no answer."""

COUNTED = {"fail": (Status.FAIL,), "warn": (Status.FAIL, Status.WARN)}
"""What counts as a finding, by the setting ``fail_on``."""


class Change(StrEnum):
    """How a result differs from the same check's in an earlier report, the baseline.

    ``NEW`` is a finding where the baseline had none, or had it elsewhere. ``WORSE`` and ``MILDER``
    are findings whose severity changed. ``FIXED`` was a finding and is judged sound now;
    ``UNJUDGED`` was one and is not judged now. Results that were and are no finding have none.
    """

    NEW = "new"
    WORSE = "worse"
    MILDER = "milder"
    UNCHANGED = "unchanged"
    FIXED = "fixed"
    UNJUDGED = "unjudged"


class Kind(StrEnum):
    """How strong a check's evidence is.

    ``EXACT`` tests an invariant and may fail outright. ``STATISTICAL`` may fail only on
    replicated evidence at alpha 1e-4. ``JUDGEMENT`` warns or notes, it never fails.
    """

    EXACT = "exact"
    STATISTICAL = "statistical"
    JUDGEMENT = "judgement"


class Model(BaseModel):
    """Base of every model here: frozen, and an unknown field is an error.

    A lone surrogate, as Python puts into text that it could not decode, is written as its escape:
    no file and no pipe could take it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _encodable(cls, data: Any) -> Any:
        return _without_surrogates(data)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_without_surrogates(item) for item in value)
    return value


def _float_to_json(value: float | str) -> float | str:
    """JSON has no NaN or infinity: write them as the strings ``nan``, ``inf``, ``-inf``.

    Of a union with ``str``, old releases of pydantic try this first for strings, too.
    """
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def _float_from_json(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Number = Annotated[
    float,
    BeforeValidator(_float_from_json),
    PlainSerializer(_float_to_json, return_type=float | str, when_used="json"),
]


class Numbers(Model):
    """Named quantities, printed as a short list.

    ``noise`` tells of some of them how far chance alone carries them: one standard error, from the
    batches or rows they are means of. Those are compared with a baseline.
    """

    type: Literal["numbers"] = "numbers"
    title: str
    values: dict[str, Number | str]
    noise: dict[str, Number] = Field(default_factory=dict)


class Series(Model):
    """One line of a :class:`Curve`."""

    name: str
    x: tuple[Number, ...]
    y: tuple[Number, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x and {len(self.y)} y")
        return self


class Curve(Model):
    """One or more lines over a common x axis, with optional horizontal thresholds.

    ``shares`` are numbers between 0 and 1 that are written as per cents. ``bars`` are distributions
    over equal bins whose middles are ``x``, drawn beside each other. ``remark`` says what the
    picture shows.
    """

    type: Literal["curve"] = "curve"
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    thresholds: dict[str, Number] = Field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    shares: bool = False
    bars: bool = False
    remark: str = ""


class Histogram(Model):
    """Counts per bin; ``edges`` has one element more than ``counts``."""

    type: Literal["histogram"] = "histogram"
    title: str
    x_label: str
    edges: tuple[Number, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _one_edge_more(self) -> Self:
        if self.edges and len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges around {len(self.counts)} counts")
        return self


class Image(Model):
    """One picture: PNG bytes in base64, with a caption."""

    png: str
    caption: str


class Images(Model):
    """A grid of small pictures."""

    type: Literal["images"] = "images"
    title: str
    images: tuple[Image, ...]


class Table(Model):
    """Rows of cells under named columns."""

    type: Literal["table"] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Number | str, ...], ...]


class Text(Model):
    """Verbatim text: a traceback, a program's output, decoded tokens."""

    type: Literal["text"] = "text"
    title: str
    text: str


Evidence = Annotated[
    Numbers | Curve | Histogram | Images | Table | Text, Field(discriminator="type")
]


class Location(Model):
    """A line of the user's source."""

    file: str
    line: int


class Source(Model):
    """The lines of the user's source around a result's location, as they were when it was found.

    ``first`` is the number of the first of them.
    """

    first: int
    lines: tuple[str, ...]


class Result(Model):
    """A check's answer, complete in itself.

    ``measured`` and ``threshold`` are phrases for a person ("0.98 of neighbours share a label").
    ``cause`` is the code of a failed check of which this failure is the consequence, or of one
    that crashed in the same way. ``crash`` says, for an ``error``, whose code it was that crashed.
    ``source`` holds the lines around ``location``, for findings whose file can be read.
    ``explanation`` holds, for findings, why the check asks and how it decides, by section of its
    documentation; ``url`` is the address of that documentation, where there is one.
    ``module`` is the first module that the answer is about, ``modules`` are all, where there are
    several. ``suppressed`` is the reason why the user does not want to act on this finding: it is
    listed, and counts in no verdict; ``suppressed_by`` says whether a comment in the source or the
    settings do so.
    ``change`` and ``before``, the earlier status, compare it with a baseline where one was given.
    ``steps`` counts the optimizer steps and ``seconds`` the time spent for this check alone.
    """

    code: str
    name: str
    family: str
    kind: Kind
    question: str = ""
    status: Status
    message: str
    measured: str = ""
    threshold: str = ""
    evidence: tuple[Evidence, ...] = ()
    location: Location | None = None
    source: Source | None = None
    explanation: dict[str, str] = Field(default_factory=dict)
    url: str = ""
    module: str = ""
    modules: tuple[str, ...] = ()
    fix: str = ""
    cause: str = ""
    crash: Literal["", "user", "nnaudit"] = ""
    suppressed: str = ""
    suppressed_by: Literal["", "source", "settings"] = ""
    change: Change | None = None
    before: Status | None = None
    steps: int = 0
    seconds: Number = 0.0

    def __repr__(self) -> str:
        """Its first words: all of it would fill pages."""
        return f"<{self.code} {self.name}: {self.status}>"

    @property
    def is_new(self) -> bool:
        """Whether it may fail a build: it is new or more severe, or there was no baseline."""
        return self.change in (None, Change.NEW, Change.WORSE)


class Tool(Model):
    """Which nnaudit wrote the report, how it was called, and when (ISO 8601, UTC)."""

    name: str = "nnaudit"
    version: str
    command: str = ""
    seed: int
    preset: str
    budget: Number | None = None
    created: str = ""


class Environment(Model):
    """The machine and the versions that matter to a number in the report.

    ``sandbox`` says what kept the user's files as they were.
    """

    python: str = ""
    torch: str = ""
    torchvision: str = ""
    numpy: str = ""
    platform: str = ""
    device: str = ""
    device_name: str = ""
    threads: int = 0
    sandbox: str = ""


class Part(Model):
    """One piece of the target: what it is, where it came from, what its absence disables."""

    name: str
    description: str
    origin: Literal["user", "default", "absent"]
    location: Location | None = None
    disables: tuple[str, ...] = ()


OTHER_LOOPS = "other loops"
"""The part that says what else a script trains, which is not audited."""


class TargetInfo(Model):
    """What was audited and how it was found.

    ``module`` is the name by which it was run, with ``-m``; ``arguments`` are the words that a
    script was given.
    """

    name: str
    path: str = ""
    module: str = ""
    arguments: tuple[str, ...] = ()
    form: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def other_loops(self) -> str:
        """What else the script trains, which was not audited; empty where nothing is known."""
        return next((part.description for part in self.parts if part.name == OTHER_LOOPS), "")

    @property
    def label(self) -> str:
        """What tells it from other targets: its path, else its name, and its arguments."""
        words = f" -- {shlex.join(self.arguments)}" if self.arguments else ""
        return (self.path or self.name) + words


class Section(Model):
    """A titled group of pictures in the "look at your data" part."""

    title: str
    text: str = ""
    evidence: tuple[Evidence, ...] = ()


class Overview(Model):
    """Pictures that answer no question and show what the network is fed and made of."""

    sections: tuple[Section, ...] = ()


class Slower(Model):
    """A check, or the whole audit, that took longer than in the baseline beyond timing noise."""

    name: str
    before: Number
    now: Number


class Moved(Model):
    """A measured number that differs from the baseline's by more than both of their noises."""

    name: str
    before: Number
    before_noise: Number
    now: Number
    now_noise: Number


class Comparison(Model):
    """What the comparison with a baseline says beside the changes of single results.

    ``unasked`` names findings of the baseline whose checks were not run this time. ``moved`` are
    numbers whose noise is known and that changed by more. ``remark`` says what limits the
    comparison, such as times taken on another machine.
    """

    file: str
    created: str = ""
    version: str = ""
    unasked: tuple[str, ...] = ()
    slower: tuple[Slower, ...] = ()
    moved: tuple[Moved, ...] = ()
    remark: str = ""


class Totals(Model):
    """How many results have each status, and what the audit cost.

    A suppressed finding is counted as ``suppressed`` and not by its status.
    """

    passed: int = 0
    fail: int = 0
    warn: int = 0
    note: int = 0
    inconclusive: int = 0
    skip: int = 0
    error: int = 0
    suppressed: int = 0
    steps: int = 0
    seconds: Number = 0.0


class Report(Model):
    """The whole audit of one target."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tool: Tool
    environment: Environment
    target: TargetInfo
    results: tuple[Result, ...]
    overview: Overview = Overview()
    totals: Totals
    baseline: Comparison | None = None

    @property
    def failed(self) -> tuple[Result, ...]:
        """The results with status ``fail`` that are not suppressed, in battery order."""
        return self.with_status(Status.FAIL)

    @property
    def suppressed(self) -> tuple[Result, ...]:
        """The findings that the user suppressed, in battery order."""
        return tuple(result for result in self.results if result.suppressed)

    @property
    def answered(self) -> int:
        """How many checks came to an answer, whatever it is; suppressed findings included."""
        return sum(result.status in ANSWERS for result in self.results)

    @property
    def applicable(self) -> int:
        """How many checks apply to the target: all that were not skipped."""
        return sum(result.status is not Status.SKIP for result in self.results)

    @property
    def mostly_unanswered(self) -> bool:
        """Whether fewer than half of the checks that apply came to an answer: no verdict."""
        return 2 * self.answered < self.applicable

    def with_status(self, *statuses: Status) -> tuple[Result, ...]:
        """Return the results with one of ``statuses``, in battery order, none suppressed."""
        return tuple(
            result for result in self.results if result.status in statuses and not result.suppressed
        )

    def result(self, code: str) -> Result:
        """Return the result of the check ``code``.

        Raises:
            KeyError: no selected check has that code.
        """
        for result in self.results:
            if result.code == code:
                return result
        raise KeyError(code)


class Reports(Model):
    """Several targets' reports in one file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    reports: tuple[Report, ...]


def totals_of(results: tuple[Result, ...], *, steps: int, seconds: float) -> Totals:
    """Count ``results`` by status; ``steps`` and ``seconds`` are the whole audit's."""
    counts = dict.fromkeys(Status, 0)
    for result in results:
        counts[result.status] += not result.suppressed
    named = {status.value: n for status, n in counts.items() if status is not Status.PASS}
    return Totals(
        passed=counts[Status.PASS],
        suppressed=sum(bool(result.suppressed) for result in results),
        steps=steps,
        seconds=seconds,
        **named,
    )
