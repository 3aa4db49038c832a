"""nnaudit: audits a neural network's training program before the long run.

Importing this package is cheap: torch is imported when something that needs it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnaudit._version import __version__

if TYPE_CHECKING:
    from nnaudit.api import audit as audit
    from nnaudit.app.pytest_warning import NnauditWarning as NnauditWarning
    from nnaudit.checks.base import Check as Check
    from nnaudit.report import Report as Report
    from nnaudit.targets.target import Target as Target
    from nnaudit.targets.target import target as target

_HOMES = {
    "audit": "nnaudit.api",
    "NnauditWarning": "nnaudit.app.pytest_warning",
    "Check": "nnaudit.checks.base",
    "Report": "nnaudit.report",
    "Target": "nnaudit.targets.target",
    "target": "nnaudit.targets.target",
}

__all__ = ["Check", "NnauditWarning", "Report", "Target", "__version__", "audit", "target"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nnaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
