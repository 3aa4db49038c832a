"""A report as Python code and notebooks use it: it shows, saves and looks up itself.

Must not import torch.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from nnaudit.report import Report, Result
from nnaudit.reports import FORMATS, format_of

HEIGHT = 640
"""Pixels of the frame in which a notebook shows the report; it scrolls inside."""


class AuditReport(Report):
    """A report with what a person needs of it in Python.

    ``print(report)`` writes the report of the terminal, a notebook shows the one with figures.
    """

    @staticmethod
    def of(report: Report) -> AuditReport:
        """Return ``report`` as one that shows itself."""
        fields = {name: getattr(report, name) for name in Report.model_fields}
        return AuditReport.model_construct(**fields)

    def __getitem__(self, code: str) -> Result:
        """Return the result of the check ``code``: ``report["DATA104"]``.

        Raises:
            KeyError: no selected check has that code.
        """
        return self.result(code)

    def save(self, path: str | Path) -> Path:
        """Write the report to ``path``, in the format of its suffix, and return the path.

        The suffixes are .html, .json, .md, .txt, .sarif and .xml (JUnit).

        Raises:
            ValueError: the suffix is none of these.
            OSError: the file cannot be written.
        """
        from nnaudit.reports.base import Options

        path = Path(path)
        file_format = format_of(path)
        if file_format is None:
            raise ValueError(f"{path}: no format has the suffix {path.suffix!r}")
        path.write_text(FORMATS[file_format]([self], Options()), encoding="utf-8")
        return path

    def __str__(self) -> str:
        """Return the report as the terminal shows it, without colours."""
        from nnaudit.reports.base import Options

        return FORMATS["text"]([self], Options()).rstrip("\n")

    def __repr__(self) -> str:
        """Return the verdict in a line."""
        from nnaudit.reports.outline import verdict

        return f"<nnaudit report of {self.target.label}: {verdict(self).headline}>"

    def _repr_html_(self) -> str:
        """Return the HTML report in a frame, so that its styles stay its own."""
        from nnaudit.reports.base import Options

        page = escape(FORMATS["html"]([self], Options()))
        return (
            f'<iframe title="{escape(repr(self))}" srcdoc="{page}" sandbox="" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )
