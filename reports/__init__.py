"""Renderers: pure functions that turn reports into text. None of them imports torch."""

from __future__ import annotations

from nnaudit.reports import github, gitlab, html, json_, junit, markdown, sarif, terminal
from nnaudit.reports.base import Options, Renderer, Verbosity
from nnaudit.reports.load import ReportFileError, load

#: Every output format by the name the user gives it. A new format is one entry here.
FORMATS: dict[str, Renderer] = {
    "text": terminal.render,
    "json": json_.render,
    "html": html.render,
    "markdown": markdown.render,
    "junit": junit.render,
    "sarif": sarif.render,
    "github": github.render,
    "gitlab": gitlab.render,
}

__all__ = ["FORMATS", "Options", "Renderer", "ReportFileError", "Verbosity", "load"]
