"""The audit itself: from a loop and settings to a stream of events, in or out of process."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from nnaudit.checks.base import Check
from nnaudit.checks.registry import Registry
from nnaudit.context import Audit
from nnaudit.engine import suppression
from nnaudit.engine.job import (
    PICTURES,
    Answered,
    Asking,
    Crashed,
    Event,
    Finished,
    Listed,
    Measuring,
    Pictured,
    Question,
    Started,
)
from nnaudit.engine.runner import plugin_errors, run_checks
from nnaudit.errors import FIRST_STEP, UnfitError, UsageError, UserCodeError, describe
from nnaudit.loop.base import Loop, Needs
from nnaudit.overview.pictures import overview_of
from nnaudit.packages import version_of
from nnaudit.ranks.record import Ranks
from nnaudit.report import (
    Environment,
    Kind,
    Location,
    Overview,
    Part,
    Result,
    Section,
    Status,
    TargetInfo,
    Text,
)
from nnaudit.settings import Settings
from nnaudit.state.files import protection

NO_SANDBOX = "none: audited in the caller's own process"
"""What an environment says of an audit in process."""

_PICTURE_SECONDS = 5.0
"""What must be left of the budget for the pictures to take a few steps."""


def device_for(name: str) -> torch.device:
    """Return the device that ``name`` asks for; ``auto`` is the GPU where there is one.

    Raises:
        UsageError: this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)
    device = torch.device(name)
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if accelerator is None or accelerator.type != device.type or (device.index or 0) >= count:
        has = f"{count} {accelerator.type} device(s)" if accelerator else "no accelerator"
        raise UsageError(f"--device {name}: this machine has {has}; use --device auto")
    return torch.device(device.type, device.index or 0)


def environment_of(device: torch.device) -> Environment:
    """Describe the machine and the versions."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=version_of("torchvision"),
        numpy=np.__version__,
        platform=platform.platform(),
        device=str(device),
        device_name=name,
        threads=torch.get_num_threads(),
        sandbox=guard.label if (guard := protection()) else NO_SANDBOX,
    )


def selected(registry: Registry, settings: Settings) -> tuple[type[Check], ...]:
    """Return the checks the settings ask for.

    Raises:
        UsageError: a selector names nothing, or a table an unknown check or option; no check could
            be loaded.
    """
    if not registry.checks:
        why = "; ".join(f"{plugin.name}: {plugin.reason}" for plugin in registry.broken)
        raise UsageError(
            f"no check could be loaded ({why or 'none is registered'}): reinstall nnaudit"
        )
    for name, options in settings.thresholds.items():
        with _said_of(f'thresholds."{name}"'):
            check = registry.find(name)
        for option in options:
            if option not in check.options:
                known = ", ".join(check.options) or "none"
                raise UsageError(
                    f"thresholds.{check.code}: unknown option {option!r}; known: {known}"
                )
    for pattern, selectors in settings.per_module_ignores.items():
        with _said_of(f'per-module-ignores."{pattern}"'):
            registry.select(selectors)
    quick = settings.preset == "quick"
    battery = registry.select(settings.select, settings.ignore, settings.extend_select, quick=quick)
    if settings.nproc_per_node is None and not settings.select:
        # What is between processes is no question where there is one; by name it can be asked.
        named = registry.select(settings.extend_select) if settings.extend_select else ()
        battery = tuple(c for c in battery if Needs.RANKS not in c.needs or c in named)
    if not battery:
        raise UsageError("no check is left to run: --ignore removes everything that --select names")
    return battery


@contextmanager
def _said_of(setting: str) -> Iterator[None]:
    """Name the setting that an error of the block is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{setting}: {error}") from None


def run_audit(
    loop: Loop,
    settings: Settings,
    emit: Callable[[Event], None],
    *,
    remaining: tuple[str, ...] | None = None,
    known_fatal: dict[str, str] | None = None,
    elapsed: float = 0.0,
    ranks: Ranks | None = None,
    parts: tuple[Part, ...] = (),
) -> None:
    """Audit ``loop`` and emit everything that happens.

    ``ranks`` is what was seen of a run of several processes, ``parts`` describe the target beside
    what the loop says of itself.

    Raises:
        NnauditError: the audit cannot be done.
    """
    known_fatal = known_fatal or {}
    registry = Registry.load()
    battery = selected(registry, settings)
    audit = Audit(
        loop,
        seed=settings.seed,
        budget=settings.budget,
        elapsed=elapsed,
        options={registry.find(name).code: o for name, o in settings.thresholds.items()},
        known_fatal=known_fatal,
        on_measure=lambda probe, begins: emit(Measuring(probe=probe, begins=begins)),
        ranks=ranks,
    )
    # To say what the script validates with takes some of its steps: they are of the budget, too.
    opening = started(loop, battery, parts)
    emit(opening.model_copy(update={"remarks": _remarks(opening.target, registry)}))
    if remaining is None:
        for result in plugin_errors(registry.broken):
            emit(Answered(result=result))
    _try_first_step(audit, emit, known_fatal)
    asked = [check for check in battery if remaining is None or check.code in remaining]
    for result in run_checks(asked, audit, on_start=lambda c: emit(Asking(code=c.code))):
        judged = suppression.applied(result, settings.per_module_ignores, _places(loop, result))
        emit(Answered(result=judged))
        if judged.kind is Kind.EXACT and judged.status is Status.FAIL and not judged.suppressed:
            audit.broken.add(judged.code)
    if PICTURES not in known_fatal and audit.clock.remaining > 0:
        with audit.measuring(PICTURES), audit.isolated():
            train = FIRST_STEP not in known_fatal and audit.clock.remaining > _PICTURE_SECONDS
            emit(Pictured(overview=_pictures(loop, train=train)))
    emit(Finished(steps=loop.steps_taken))


def _pictures(loop: Loop, *, train: bool) -> Overview:
    """Picture the data; what cannot be pictured costs the pictures, not the answers."""
    try:
        return overview_of(loop, train=train)
    except Exception as error:
        text = f"Creating them raised {describe(error)}. No check depends on them."
        trace = Text(title="Traceback", text=traceback.format_exc())
        section = Section(title="The figures could not be created", text=text, evidence=(trace,))
        return Overview(sections=(section,))


def listed(settings: Settings) -> Listed:
    """Return the checks that the settings select, and the plug-ins that cannot be loaded.

    Raises:
        UsageError: a setting names something unknown.
    """
    registry = Registry.load()
    broken = tuple(
        Question(
            code=error.code,
            name=error.name,
            family=error.family,
            kind=error.kind,
            question=error.message,
        )
        for error in plugin_errors(registry.broken)
    )
    return Listed(questions=(*(_question(c) for c in selected(registry, settings)), *broken))


def started(loop: Loop, battery: tuple[type[Check], ...], parts: tuple[Part, ...] = ()) -> Started:
    """Return the event that opens an audit."""
    target = loop.info()
    return Started(
        target=target.model_copy(update={"parts": (*target.parts, *parts)}),
        environment=environment_of(loop.device),
        questions=tuple(_question(check) for check in battery),
    )


def _places(loop: Loop, result: Result) -> tuple[Location, ...]:
    """Return every line of the user's source that ``result`` is about."""
    modules = dict(loop.model.named_modules())
    owners = result.modules if len(result.modules) > 1 else ()
    found = [result.location, *(loop.locate(_holder(name, modules)) for name in owners)]
    return tuple(dict.fromkeys(place for place in found if place is not None))


def _holder(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    """Return the innermost module that a module's or parameter's name lies in."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


def _remarks(target: TargetInfo, registry: Registry) -> tuple[str, ...]:
    """Say which comments for nnaudit in the target's files name no check."""
    files = {target.path, *(part.location.file for part in target.parts if part.location)}
    said = []
    for file in sorted(files - {""}):
        for comment in suppression.comments_in(file):
            where = f"{file}:{comment.line}"
            if not comment.selectors:
                said.append(f"{where}: the comment names no check: write ignore[CODE] reason")
            for selector in comment.selectors:
                try:
                    registry.select([selector])
                except UsageError as error:
                    said.append(f"{where}: {error}")
    return tuple(said)


def _try_first_step(
    audit: Audit, emit: Callable[[Event], None], known_fatal: dict[str, str]
) -> None:
    """Take one step, so that a program that cannot be trained is told so once, in one sentence."""
    loop = audit.loop
    if FIRST_STEP in known_fatal or loop.lacks(Needs.STEPS):
        return
    try:
        with audit.measuring(FIRST_STEP), audit.isolated():
            loop.step(next(iter(loop.batches())))
    except UnfitError:
        return  # nnaudit's batch does not fit, as each check that gives it one will say
    except UserCodeError as error:
        emit(Crashed(message=str(error), location=error.location, traceback=error.traceback))


def _question(check: type[Check]) -> Question:
    return Question(
        code=check.code,
        name=check.name,
        family=check.family(),
        kind=check.kind,
        question=check.documentation()["question"],
        explanation=check.explanation(),
        url=check.address(),
        consequence_of=check.consequence_of,
    )


def limit_threads(threads: int | None) -> None:
    """Give torch ``threads`` threads, where a number is given."""
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
