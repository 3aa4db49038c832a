"""What is installed beside nnaudit. Must not import torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, version


def version_of(package: str) -> str:
    """Return the version of ``package``; nothing where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def project_url(package: str, label: str) -> str:
    """Return the address that ``package`` gives under ``label``; nothing where it gives none."""
    try:
        given = metadata(package).get_all("Project-URL") or ()
    except PackageNotFoundError:
        return ""
    named = dict(entry.split(", ", 1) for entry in given if ", " in entry)
    return str(named.get(label, "")).rstrip("/")
