"""Reads a report that was saved as JSON, to render it again without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nnaudit._version import __version__
from nnaudit.errors import UsageError
from nnaudit.report import SCHEMA_VERSION, Report, Reports


class ReportFileError(UsageError):
    """A file cannot be read as a report; the message is one sentence for the user."""


def load(path: Path | str) -> list[Report]:
    """Return the reports in the file at ``path``, of one target or of several.

    Raises:
        ReportFileError: the file cannot be read, or is no report of this schema version.
    """
    document = _read(Path(path))
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ReportFileError(f"{path} is not an nnaudit report: it has no schema_version.")
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise ReportFileError(
            f"{path} has schema version {version!r}, this nnaudit reads version {SCHEMA_VERSION}."
        )
    try:
        if "reports" in document:
            return list(Reports.model_validate(document).reports)
        return [Report.model_validate(document)]
    except ValidationError as error:
        raise ReportFileError(f"{path} {_complaint(error)}.") from None


def _read(path: Path) -> Any:
    try:
        # Bytes, because json finds out whether PowerShell wrote UTF-16 or a byte-order mark.
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ReportFileError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ReportFileError(f"{path} is not JSON: {error}.") from None


def _complaint(error: ValidationError) -> str:
    """Say what is wrong; a field that is only unknown was written by a later nnaudit."""
    kinds = {detail["type"] for detail in error.errors()}
    if kinds == {"extra_forbidden"}:
        return f"was written by a later nnaudit than this {__version__}: {_first(error)}"
    return f"is not an nnaudit report: {_first(error)}"


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}{more}"
