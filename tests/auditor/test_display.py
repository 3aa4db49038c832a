"""The report as a notebook and Python code use it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from nnaudit.display import AuditReport
from nnaudit.reports.load import load

(FAILING,) = load(Path(__file__).parents[1] / "assets" / "failing-v1.json")
REPORT = AuditReport.of(FAILING)


def test_it_says_the_verdict_in_a_line_and_prints_the_terminal_report() -> None:
    assert repr(REPORT) == "<nnaudit report of train.py: 3 of 39 checks fail>"
    assert "FAIL DATA104 shuffling" in str(REPORT)
    assert "\x1b" not in str(REPORT)


def test_a_result_is_found_by_its_code() -> None:
    assert REPORT["DATA104"].name == "shuffling"
    assert [result.code for result in REPORT.failed] == ["DATA104", "LOSS101", "FIT101"]
    with pytest.raises(KeyError):
        _ = REPORT["DATA999"]


def test_a_notebook_shows_the_page_in_a_frame_that_runs_nothing() -> None:
    shown = REPORT._repr_html_()
    match = re.fullmatch(
        r'<iframe title="[^"]*" srcdoc="([^"]*)" sandbox="" [^<>]*></iframe>', shown
    )
    assert match
    assert "<title>3 of 39 checks fail: train (nnaudit)</title>" in unescape(match[1])


@pytest.mark.parametrize(
    ("name", "begins"),
    [("r.html", "<!DOCTYPE html>"), ("r.md", "<!-- nnaudit"), ("r.txt", "\u2717 train.py")],
)
def test_it_is_saved_in_the_format_of_the_suffix(tmp_path: Path, name: str, begins: str) -> None:
    assert REPORT.save(tmp_path / name).read_text("utf-8").startswith(begins)


def test_what_is_saved_as_json_is_the_whole_report(tmp_path: Path) -> None:
    path = REPORT.save(str(tmp_path / "r.json"))
    assert load(path) == [FAILING]
    assert json.loads(path.read_text())["schema_version"] == 1
    with pytest.raises(ValueError, match=r"\.docx"):
        REPORT.save("r.docx")
