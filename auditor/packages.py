"""What is installed beside nnaudit. Must not import torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Return the version of ``package``; nothing where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
