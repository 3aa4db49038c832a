"""What every text format makes of one real audit that failed, kept so that a change is seen."""

from pathlib import Path

import pytest

from nnaudit.app.baseline import compare
from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options
from nnaudit.reports.load import load

ASSETS = Path(__file__).parents[1] / "assets"
SNAPSHOTS = {
    "text": "failing-v1.txt",
    "concise": "failing-v1.concise.txt",
    "markdown": "failing-v1.md",
    "junit": "failing-v1.xml",
    "sarif": "failing-v1.sarif",
    "github": "failing-v1.github.txt",
    "gitlab": "failing-v1.gitlab.json",
}


#: A badge is no report: it holds the verdict and nothing else.
REPORTS = [name for name in FORMATS if name != "badge"]


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_real_report_is_written_as_it_was(name):
    """Rewrite with: nnaudit report tests/assets/failing-v1.json --output-format NAME:FILE."""
    expected = (ASSETS / SNAPSHOTS[name]).read_text(encoding="utf-8")
    assert FORMATS[name](load(ASSETS / "failing-v1.json"), Options()) == expected


@pytest.mark.parametrize("name", [name for name in REPORTS if name != "json"])
def test_every_format_tells_the_comparison_with_a_baseline(name, make_report, make_result):
    old = make_report(make_result("A101", "fail"), make_result("B101", "fail"))
    new = make_report(make_result("A101"), make_result("B101", "fail"), make_result("C101", "warn"))
    text = FORMATS[name](compare([new], [old], "old.json"), Options())
    assert "unchanged since the baseline" in text
    if name != "gitlab":  # it is a list of findings and nothing else
        assert "A101" in text
        assert "fixed" in text
        assert "old.json" in text


@pytest.mark.parametrize("name", REPORTS)
def test_every_format_lists_what_is_suppressed_with_its_reason(name, make_report, make_result):
    hidden = make_result("A101", "fail", suppressed="The embedding is frozen on purpose.")
    text = FORMATS[name]([make_report(hidden, make_result("B101"))], Options())
    assert "A101" in text
    assert "The embedding is frozen on purpose." in text


@pytest.mark.parametrize("name", REPORTS)
def test_every_format_names_a_consequence_with_its_cause(name, make_report, make_result):
    cause = make_result("A101", "fail", name="cause")
    follows = make_result("B101", "fail", name="consequence", cause="A101")
    text = FORMATS[name]([make_report(cause, follows)], Options())
    assert "B101" in text
    if name == "gitlab":
        assert text.count('"check_name"') == 1
    if name == "github":
        assert text.count("::error ") == 1
    if name == "sarif":
        assert text.count('"ruleIndex"') == 1
    if name == "junit":
        assert "Follows from A101" in text
