"""Renderers: pure functions that turn reports into text. None of them imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnaudit.report import Report
    from nnaudit.reports.base import Options, Renderer


def _from(module: str) -> Renderer:
    """Return the renderer of ``module``, which is imported when a report is written."""

    def render(reports: Sequence[Report], options: Options) -> str:
        text: str = importlib.import_module(f"nnaudit.reports.{module}").render(reports, options)
        return text

    return render


#: Every output format by the name the user gives it. A new format is one entry here.
FORMATS: dict[str, Renderer] = {
    "text": _from("terminal"),
    "concise": _from("concise"),
    "json": _from("json_"),
    "html": _from("html"),
    "markdown": _from("markdown"),
    "junit": _from("junit"),
    "sarif": _from("sarif"),
    "github": _from("github"),
    "gitlab": _from("gitlab"),
    "badge": _from("badge"),
}

SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".md": "markdown",
    ".sarif": "sarif",
    ".txt": "text",
    ".xml": "junit",
}
"""The formats by the suffix of a file."""


def format_of(path: PurePath) -> str | None:
    """Return the format that the suffix of ``path`` stands for; None where it stands for none."""
    return SUFFIXES.get(path.suffix.lower())
