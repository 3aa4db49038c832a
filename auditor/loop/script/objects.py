"""Objects of a framework that bring their own training loop, handed over in a file.

A ``transformers.Trainer`` trains by itself, a LightningModule by a Lightning Trainer: the file's
own, else one with the framework's defaults. The file is executed, the object is asked to train, and
its loop is taken hold of as a script's is: what is audited is the framework's own loop, with its
accumulation, clipping, precision and callbacks.

No framework is imported here: an object can be of one only where the file has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nnaudit.errors import user_code
from nnaudit.loop.script.overlay import Overlay
from nnaudit.report import Part
from nnaudit.state import files
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import definitions
from nnaudit.targets import target as targets
from nnaudit.targets.imports import imports_any

EPOCHS = 10
"""Epochs of the Lightning Trainer that stands in where the file has none."""

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names under which Lightning is installed; their classes are not the same."""

_HINTS = ("lightning", "pytorch_lightning", "transformers")

Training = tuple[Callable[[], Any], Part]
"""What starts the training, and whose loop it is."""


def trains_itself(path: Path) -> bool:
    """Whether the file at ``path`` may hand over an object with a loop of its own, and does.

    The file is executed to see, with what it writes diverted, if its text has reason to.

    Raises:
        TargetError: the file cannot be executed.
        UserCodeError: a factory in it raised.
    """
    tree = definitions.parse(path)
    names = definitions.top_level(tree)
    hinted = any(
        name in names for part in ("trainer", "datamodule") for name in definitions.NAMES[part]
    )
    if not hinted and not imports_any(tree, _HINTS):
        return False
    protecting = files.protected(lambda: Overlay(files.places_of(path)))
    with preserved(Subjects()), protecting as protection, protection.fresh():
        module = targets.imported(path)
        try:
            return training_of(module, path, "cpu") is not None
        finally:
            targets.forget(module)


def training_of(module: ModuleType, path: Path, device: str) -> Training | None:
    """Return how the objects in ``module``, the file at ``path`` executed, are trained.

    None where they are not a framework's, or come without data.

    Raises:
        UserCodeError: a factory raised.
    """
    if not any(name in sys.modules for name in ("transformers", *LIGHTNING)):
        return None
    parts, locations = targets.named_parts(module, path)
    trainer = _made(parts.get("trainer"), "the trainer")
    # Only now: `import transformers` imports its parts when they are first used.
    transformers = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if transformers is not None and isinstance(trainer, transformers):
        return trainer.train, Part(
            name="trainer",
            description=f"{type(trainer).__name__} of transformers: its own loop is audited",
            origin="user",
            location=locations.get("trainer"),
        )
    for package in LIGHTNING:
        framework = sys.modules.get(package)
        if framework is not None and hasattr(framework, "LightningModule"):
            found = _lightning(framework, trainer, parts, device)
            if found is not None:
                fit, own = found
                return fit, Part(
                    name="trainer",
                    description="Lightning's: its own loop is audited"
                    if own
                    else f"none: Lightning's with its defaults and {EPOCHS} epochs stands in",
                    origin="user" if own else "default",
                    location=locations.get("trainer") if own else None,
                )
    return None


def _lightning(
    framework: Any, trainer: Any, parts: dict[str, Any], device: str
) -> tuple[Callable[[], Any], bool] | None:
    """Return how the LightningModule in ``parts`` is fitted, and whether by a Trainer of theirs."""
    kind = framework.LightningModule
    model = parts.get("model")
    if isinstance(model, type) and not issubclass(model, kind):
        return None
    model = _made(model, "the model")
    if not isinstance(model, kind):
        return None
    data = _made(parts.get("datamodule"), "the data module")
    train = None if data is not None else _made(parts.get("train_loader"), "train_loader")
    val = None if data is not None else _made(parts.get("val_loader"), "val_loader")
    inside = type(model).train_dataloader is not kind.train_dataloader
    if data is None and train is None and not inside:
        return None
    own = isinstance(trainer, framework.Trainer)
    if not own:
        trainer = framework.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu" if device == "cpu" else "auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return lambda: trainer.fit(model, train, val, datamodule=data), own


def _made(part: Any, name: str) -> Any:
    """Return ``part``, or what it makes where it is a function or class that makes one."""
    makes = isinstance(part, type) or (callable(part) and hasattr(part, "__code__"))
    if not makes:
        return part
    with user_code(f"building {name}"):
        return part()
