"""What a check receives: the loop, the shared measurements, the seed and the clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from nnaudit.errors import FIRST_STEP, NnauditError, OutOfBudgetError
from nnaudit.loop.base import Loop, Needs
from nnaudit.ranks.record import Ranks
from nnaudit.state.snapshot import Snapshot

T = TypeVar("T")


class UndeclaredProbeError(RuntimeError):
    """A check or probe asked for a probe that its ``probes`` does not name."""


class KnownFatalError(NnauditError):
    """A measurement that killed the process when it was tried before, and is not tried again."""

    exit_code = 4


@dataclass
class Clock:
    """The time an audit may take. ``budget`` is in seconds; None means no limit."""

    budget: float | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the audit began."""
        return time.perf_counter() - self.started

    @property
    def remaining(self) -> float:
        """Seconds left; infinity when there is no limit."""
        return float("inf") if self.budget is None else self.budget - self.elapsed

    def check(self) -> None:
        """Raise when the time is used up.

        Raises:
            OutOfBudgetError: nothing is left of the budget.
        """
        if self.remaining <= 0:
            raise OutOfBudgetError(f"the budget of {self.budget:g} s is used up; raise --budget")


class Audit:
    """The context in which probes measure and checks decide.

    Attributes:
        loop: the user's training.
        seed: what every random choice of the audit derives from.
        clock: the time left.
        options: ``thresholds."CODE"`` of the configuration, by code.
        ranks: what was seen of a run of several processes; None where one process is audited.
        broken: the codes of exact checks that have failed by now: what others find may follow.

    ``elapsed`` seconds of the ``budget`` are used up already.

    A probe whose result is handed over in ``measured`` is not measured: so tests ask a check about
    a measurement of their own making.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        seed: int = 0,
        budget: float | None = None,
        elapsed: float = 0.0,
        options: Mapping[str, Mapping[str, float]] | None = None,
        known_fatal: Mapping[str, str] | None = None,
        measured: Mapping[type[Probe[Any]], Any] | None = None,
        on_measure: Callable[[str, bool], None] = lambda probe, begins: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.loop = loop
        self.ranks = ranks
        self.seed = seed
        self.clock = Clock(budget, time.perf_counter() - elapsed)
        self.options = dict(options or {})
        self.broken: set[str] = set()
        self._start: tuple[tuple[int, ...], Snapshot] | None = None
        self._lethal = dict(known_fatal or {})
        self._on_measure = on_measure
        self._measured: dict[type[Probe[Any]], Any] = dict(measured or {})
        self._failed: dict[type[Probe[Any]], tuple[Exception, TracebackType | None]] = {}
        self._allowed: tuple[type[Probe[Any]], ...] | None = None

    def lacks(self, need: Needs) -> str:
        """Return why ``need`` is not offered, or an empty string when it is."""
        if need is not Needs.RANKS:
            return self.loop.lacks(need)
        return "" if self.ranks is not None else "one process is audited (see --nproc-per-node)"

    def probe(self, probe: type[Probe[T]]) -> T:
        """Return what ``probe`` measured, measuring it first where nobody has.

        Raises:
            UndeclaredProbeError: whoever asks has not declared it.
            Exception: whatever the measurement raised, again for every check that asks.
        """
        if self._allowed is not None and probe not in self._allowed:
            raise UndeclaredProbeError(
                f"{probe.__name__} is used without being declared in `probes`"
            )
        self._measure(probe)
        if probe in self._failed:
            error, trace = self._failed[probe]
            # Raising it again must not lengthen its traceback.
            raise error.with_traceback(trace)
        measured: T = self._measured[probe]
        return measured

    def _measure(self, probe: type[Probe[Any]]) -> None:
        if probe in self._measured or probe in self._failed:
            return
        self.clock.check()
        try:
            with (
                self.asking(probe.probes),
                self.measuring(probe.__name__),
                self.isolated(),
            ):
                self._measured[probe] = probe().measure(self)
        except OutOfBudgetError:
            raise
        except Exception as error:
            self._failed[probe] = error, error.__traceback__

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Put everything back, when the block ends, as it was when the first such block began.

        All measurements and checks start from the same state, so it is kept once: a copy of a large
        network for each of them would cost as much as many steps. Blocks must not be nested.
        """
        subjects = self.loop.subjects
        parts = tuple(id(part) for kind in vars(subjects).values() for part in kind)
        if self._start is None or self._start[0] != parts:
            self._start = parts, Snapshot.take(subjects)
        try:
            yield
        finally:
            self._start[1].restore()

    def require_steps(self) -> None:
        """Raise when training steps are known to kill the process.

        Raises:
            LethalError: the first training step did.
        """
        if FIRST_STEP in self._lethal:
            raise KnownFatalError(self._lethal[FIRST_STEP])

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Announce the measurement ``name`` for the time of the block.

        Raises:
            LethalError: it killed the process before.
        """
        if name in self._lethal:
            raise KnownFatalError(self._lethal[name])
        self._on_measure(name, True)
        try:
            yield
        finally:
            self._on_measure(name, False)

    @contextmanager
    def asking(self, allowed: tuple[type[Probe[Any]], ...]) -> Iterator[None]:
        """Measure the ``allowed`` probes, then let nothing else be asked for in the block."""
        outer, self._allowed = self._allowed, None
        try:
            for probe in allowed:
                self._measure(probe)
            self._allowed = allowed
            yield
        finally:
            self._allowed = outer


class Probe(ABC, Generic[T]):
    """A measurement. Its result is shared by all checks that declare it, and must not be changed.

    A probe starts from the state in which the target was handed over, and may do to the loop what
    it likes: the runner restores it afterwards. It may ask only for the probes it declares in
    ``probes``, which are measured before it.
    """

    probes: ClassVar[tuple[type[Probe[Any]], ...]] = ()
    steps: ClassVar[int] = 20
    """About how many steps of training it takes, or the time of as many, at the most.

    What takes few is asked first, so that a slow program gets these answers whatever its budget.
    """

    @abstractmethod
    def measure(self, audit: Audit) -> T:
        """Take the measurement.

        Raises:
            UserCodeError: the user's code raised.
            OutOfBudgetError: the time is used up.
        """
