"""The events of the first few steps: what zeroed, made, clipped and used gradients, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Step
from nnaudit.loop.trace import Event, EventKind
from nnaudit.probes.first_steps import FirstSteps

STEPS = 4
"""Enough to see what every step does alike."""

ZEROED = "Not measured: gradients are zeroed between backward and the step (see STEP102)."
"""What checks of gradients at the step have to say then."""


@dataclass(frozen=True)
class TracedStep:
    """One step of the user's loop: what was measured and what happened in it."""

    step: Step
    events: tuple[Event, ...]

    def of(self, kind: EventKind) -> list[Event]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if event.kind is kind]


@dataclass(frozen=True)
class Trace:
    """What :class:`StepTrace` saw.

    Attributes:
        steps: consecutive steps, observed, on consecutive batches.
        batches: these batches.
    """

    steps: tuple[TracedStep, ...]
    batches: tuple[Any, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in order."""
        return tuple(event for traced in self.steps for event in traced.events)

    def own_loop(self) -> bool:
        """Whether some line of the user's, not nnaudit's, takes the optimizer's steps."""
        steps = [event for event in self.events if event.kind is EventKind.STEP]
        return any(event.location is not None for event in steps)


class StepTrace(Probe[Trace]):
    """A few observed steps with all their events: the first ones."""

    probes = (FirstSteps,)
    steps = 5

    def measure(self, audit: Audit) -> Trace:
        """Return the first :data:`STEPS` steps.

        Raises:
            UserCodeError: one of them raised.
        """
        first = audit.probe(FirstSteps)
        if len(first.steps) < STEPS:
            first.require()
        traced = map(TracedStep, first.steps[:STEPS], first.events)
        return Trace(tuple(traced), first.batches[:STEPS])


def zeroed_before_use(trace: Trace) -> list[Event]:
    """Return the steps that found nothing, if every step of that optimizer did.

    Backward had made gradients: they were zeroed in between.
    """
    empty: dict[int, list[Event]] = {}
    used: set[int] = set()
    made: dict[int, float] = {}
    for event in trace.events:
        if event.kind is EventKind.BACKWARD:
            made.update({i: norm or 0.0 for i, norm in enumerate(event.norms)})
        elif event.kind is EventKind.STEP and not event.closure:
            had, has = made.get(event.which), event.norms[event.which]
            if had is not None and had > 0.0 and not has:
                empty.setdefault(event.which, []).append(event)
            elif has:
                used.add(event.which)
    found = [steps for which, steps in empty.items() if which not in used and len(steps) > 1]
    return found[0] if found else []


def describe(events: tuple[Event, ...], optimizers: int) -> str:
    """Write events as a list for people, one line each, runs of equal ones counted."""
    lines: list[list[Any]] = []
    for event in events:
        name = event.kind.value
        if event.which >= 0 and optimizers > 1 and event.kind is not EventKind.SCHEDULE:
            name += f" (optimizer {event.which + 1})"
        if event.location is not None:
            name += f"  line {event.location.line}"
        if lines and lines[-1][0] == name:
            lines[-1][1] += 1
        else:
            lines.append([name, 1])
    return "\n".join(name + (f"  x {count}" if count > 1 else "") for name, count in lines)
