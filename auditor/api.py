"""The Python form: ``nnaudit.audit(model=..., train_loader=..., ...)``."""

from __future__ import annotations

import difflib
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit import config
from nnaudit.checks.registry import Registry
from nnaudit.display import AuditReport
from nnaudit.engine import session as engine
from nnaudit.engine.job import Event, Job
from nnaudit.engine.record import Record, RefusedError
from nnaudit.errors import TargetError, UsageError
from nnaudit.loop.base import Loop
from nnaudit.loop.direct import DirectLoop
from nnaudit.processes import supervisor
from nnaudit.processes.forked import forked
from nnaudit.settings import Settings
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets.target import Target


def _refuse_misspelt(settings: Iterable[str]) -> None:
    """Tell a parameter of :func:`audit` that was mistyped from a setting.

    Raises:
        UsageError: a keyword is no setting, and nearly a parameter.
    """
    for key in set(settings) - set(Settings.model_fields):
        if near := difflib.get_close_matches(key, inspect.signature(audit).parameters, n=1):
            raise UsageError(f"audit() has no parameter {key!r}: did you mean {near[0]}?")


def audit(
    model: nn.Module | Callable[..., nn.Module] | Target,
    train_loader: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Any = None,
    *,
    val_loader: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    scheduler: Any = None,
    training_step: Callable[..., Tensor] | None = None,
    name: str = "model",
    isolate: bool = True,
    **settings: Any,
) -> AuditReport:
    """Audit a model and its training, and leave everything as it was.

    The parts are those of :class:`nnaudit.Target`; factories are best, since some checks need the
    run to start anew. ``settings`` are the keys of ``[tool.nnaudit]``: ``select``, ``ignore``,
    ``preset``, ``budget``, ``seed``, ``device`` (default: where the model is), ...

    The audit runs in a child process, a fork of this one, on its own copy of the objects: what the
    code writes to files is not written for real, and where it kills the process, that costs a
    check. A fork has one thread, and no GPU: where there is a GPU, on other systems than Linux, and
    with ``isolate=False``, the audit runs in this process and puts back what it changed. The
    report's environment says which it was.

    Raises:
        TargetError: the parts cannot be audited.
        UsageError: a setting is unknown or wrong.
        NnauditError: a factory or loader raised while the target was put together; its
            ``exit_code`` is 4.
    """
    target = (
        model
        if isinstance(model, Target)
        else Target(
            model=model,
            train_loader=train_loader,
            val_loader=val_loader,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            training_step=training_step,
            name=name,
        )
    )
    _refuse_misspelt(settings)
    chosen = config.load({"device": _device_of(target), **settings}, given_by="audit()")
    why_not = _bound_to_this_process(target) if isolate else "isolate=False"
    if not why_not:
        return _audited_in_a_child(target, chosen)
    with _looped(target, chosen) as loop:
        report = audit_loop(loop, chosen)
    where = f"{engine.NO_SANDBOX} ({why_not})"
    environment = report.environment.model_copy(update={"sandbox": where})
    return report.model_copy(update={"environment": environment})


def _bound_to_this_process(target: Target) -> str:
    """Return why a fork of this process could not audit ``target``; nothing where it can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no safe fork"
    if torch.accelerator.current_accelerator(check_available=True) is not None:
        return "an accelerator cannot be used in a fork"
    loaders = (target.train_loader, target.val_loader)
    if any(getattr(loader, "_iterator", None) is not None for loader in loaders):
        return "a loader's persistent workers belong to it"
    return ""


def _audited_in_a_child(target: Target, settings: Settings) -> AuditReport:
    """Audit ``target`` in forks of this process.

    Raises:
        TargetError: it cannot be audited.
        UsageError: a setting names something that there is not.
        RefusedError: its code raised, or ended the process, before a question could be asked.
    """
    # Asked here as well: what a child says of wrong settings comes back as a sentence only.
    engine.selected(Registry.load(), settings)
    engine.device_for(settings.device)

    def work(job: Job, emit: Callable[[Event], None]) -> None:
        # OpenMP's threads are not there in a fork, and it waits for them for ever.
        engine.limit_threads(1)
        with _looped(target, settings) as loop:
            engine.run_audit(
                loop,
                settings,
                emit,
                remaining=job.remaining,
                known_fatal=job.known_fatal,
                elapsed=job.elapsed,
            )

    with _shown(target.name) as show:
        try:
            job = Job(path=target.name, settings=settings)
            report, record = supervisor.audit(job, on_event=show, start=forked(work))
        except RefusedError as error:
            if error.exit_code == TargetError.exit_code:
                raise TargetError(str(error)) from None
            raise
    _warn_of(record)
    return AuditReport.of(report)


@contextmanager
def _looped(target: Target, settings: Settings) -> Iterator[Loop]:
    """Yield the loop over ``target``, and leave its objects as they were.

    Raises:
        NnauditError: there can be none.
    """
    with preserved(Subjects(models=_modules(target.model, target.loss))):
        loop = DirectLoop(target, engine.device_for(settings.device), settings.seed)
        _refuse_one_with_its_own_loop(loop.model, target)
        yield loop


def _refuse_one_with_its_own_loop(model: nn.Module, target: Target) -> None:
    """A LightningModule's forward and a default loss are not what its Trainer trains it with.

    Raises:
        TargetError: ``model`` is one, and nothing says how it is to be trained instead.
    """
    own = any(cls.__name__ == "LightningModule" for cls in type(model).__mro__)
    if own and target.loss is None and target.training_step is None:
        raise TargetError(
            f"{type(model).__name__} is a LightningModule, and its loop is Lightning's: run "
            "`nnaudit FILE` on a file that names it (model) and its data (train_loader or "
            "datamodule), with its trainer if there is one; or pass loss and optimizer, or "
            "training_step, to have it trained without Lightning"
        )


def audit_loop(loop: Loop, settings: Settings) -> AuditReport:
    """Audit ``loop`` in this process; a notebook shows how far it has come.

    Raises:
        NnauditError: the audit cannot be done.
    """
    began, record = time.perf_counter(), Record()
    with preserved(loop.subjects), _shown(loop.name) as show:

        def take(event: Event) -> None:
            record.take(event)
            show(event, record)

        engine.run_audit(loop, settings, take)
    _warn_of(record)
    seconds = time.perf_counter() - began
    return AuditReport.of(record.report(loop.name, settings, seconds=seconds))


def _warn_of(record: Record) -> None:
    for remark in record.remarks:
        warnings.warn(remark, stacklevel=3)


@contextmanager
def _shown(title: str) -> Iterator[Callable[[Event, Record], None]]:
    """Yield what shows the events of an audit: a bar in a notebook, nothing elsewhere."""
    if "ipykernel" not in sys.modules:
        yield lambda event, record: None
        return
    from nnaudit.progress import Progress

    with Progress(title) as progress:
        yield progress.take


def _device_of(target: Target) -> str | None:
    """Stay where an existing model is; a factory's goes to the best device there is."""
    if not isinstance(target.model, nn.Module):
        return None
    device = next((p.device for p in target.model.parameters()), None)
    return None if device is None or device.type == "meta" else str(device)


def _modules(*candidates: Any) -> tuple[nn.Module, ...]:
    return tuple(candidate for candidate in candidates if isinstance(candidate, nn.Module))
