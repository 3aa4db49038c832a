"""The Python form: ``nnaudit.audit(model=..., train_loader=..., ...)``."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nnaudit import config
from nnaudit.display import AuditReport
from nnaudit.engine import session as engine
from nnaudit.engine.job import Event
from nnaudit.engine.record import Record
from nnaudit.errors import TargetError
from nnaudit.loop.base import Loop
from nnaudit.loop.direct import DirectLoop
from nnaudit.settings import Settings
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets.target import Target


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
    **settings: Any,
) -> AuditReport:
    """Audit a model and its training in this process, and leave everything as it was.

    The parts are those of :class:`nnaudit.Target`; factories are best, since some checks need the
    run to start anew. ``settings`` are the keys of ``[tool.nnaudit]``: ``select``, ``ignore``,
    ``preset``, ``budget``, ``seed``, ``device`` (default: where the model is), ...

    Raises:
        TargetError: the parts cannot be audited.
        UsageError: a setting is unknown or wrong.
        UserCodeError: a factory or loader raised while the target was put together.
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
    chosen = config.load({"device": _device_of(target), **settings})
    with preserved(Subjects(models=_modules(target.model, target.loss))):
        loop = DirectLoop(target, engine.device_for(chosen.device), chosen.seed)
        _refuse_one_with_its_own_loop(loop.model, target)
        return audit_loop(loop, chosen)


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
    for remark in record.remarks:
        warnings.warn(remark, stacklevel=2)
    seconds = time.perf_counter() - began
    return AuditReport.of(record.report(loop.name, settings, seconds=seconds))


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
