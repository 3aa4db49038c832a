"""The battery: one question per file, a folder per family."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnaudit.checks.base import Check

GROUP = "nnaudit.checks"
"""The group of entry points under which checks are registered, ours and plug-ins'."""


def builtin() -> list[type[Check]]:
    """Return nnaudit's own checks: every check class defined in this package's families.

    This is the object of the entry point ``nnaudit = "nnaudit.checks:builtin"`` of the group
    ``nnaudit.checks``; a plug-in registers a function of the same form.
    """
    from nnaudit.checks.base import Check

    found: list[type[Check]] = []
    for info in pkgutil.walk_packages(__path__, f"{__name__}."):
        module = importlib.import_module(info.name)
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and value.__module__ == info.name
            and issubclass(value, Check)
            and "code" in vars(value)
        ]
    return found
