import json
from pathlib import Path

import pytest

from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options
from nnaudit.reports.load import ReportFileError, load

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.mark.parametrize(("name", "targets"), [("report-v1.json", 1), ("reports-v1.json", 2)])
def test_old_report_files_can_still_be_read_and_rendered(name, targets):
    """These files are never rewritten: they are what users have saved."""
    reports = load(ASSETS / name)
    assert len(reports) == targets
    for form, render in FORMATS.items():
        assert ("2 fail" if form == "badge" else "LOSS101") in render(reports, Options())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON: Expecting value"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not an nnaudit report: it has no schema_version"),
        ('{"a": 1}', "is not an nnaudit report: it has no schema_version"),
        ('{"schema_version": 2}', "has schema version 2, this nnaudit reads version 1"),
        ('{"schema_version": 1}', "tool: Field required (and 4 more)"),
        ('{"schema_version": 1, "reports": 3}', "reports: Input should be a valid tuple"),
    ],
)
def test_what_is_no_report_is_refused_in_one_sentence(tmp_path, text, complaint):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ReportFileError) as caught:
        load(path)
    message = str(caught.value)
    assert complaint in message
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message


def test_a_report_of_a_later_version_says_so(tmp_path):
    document = json.loads((ASSETS / "report-v1.json").read_text(encoding="utf-8"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document | {"mood": "good"}), encoding="utf-8")
    with pytest.raises(ReportFileError, match=r"written by a later nnaudit than this .*: mood: "):
        load(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00", b"<!DOCTYPE html>", b"\xff\xfe\x00"])
def test_another_kind_of_file_is_no_json(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ReportFileError, match=r"run\.json is not JSON: .*\.$"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ReportFileError, match=r"gone.json cannot be read: No such file"):
        load(tmp_path / "gone.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_powershell_writes_can_be_read(tmp_path, encoding):
    document = json.loads((ASSETS / "report-v1.json").read_text(encoding="utf-8"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document), encoding=encoding)
    assert load(str(path))[0].target.name == "train.py"
