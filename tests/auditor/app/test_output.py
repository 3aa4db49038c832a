"""Where reports go: files, devices, the files that GitHub names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nnaudit.app import output
from nnaudit.app.output import ROOTS, SUMMARY, Destination, Growing, Output
from nnaudit.report import Report
from nnaudit.reports import FORMATS, SUFFIXES
from nnaudit.reports.load import load

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(autouse=True)
def no_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be GitHub's own."""
    monkeypatch.chdir(tmp_path)
    for name in (*ROOTS, SUMMARY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def reports() -> list[Report]:
    return load(ASSETS / "failing-v1.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_files_ending_chooses_its_format(suffix: str) -> None:
    path = Path(f"report{suffix.upper()}")
    assert Output.parse([], path).destinations == (Destination(SUFFIXES[suffix], path),)
    assert SUFFIXES[suffix] in FORMATS


def test_several_formats_go_to_several_files(reports: list[Report]) -> None:
    Output.parse(["html:a.html", "sarif:b.sarif", "junit:c.xml"], None).write(reports)
    assert Path("a.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(Path("b.sarif").read_text())["version"] == "2.1.0"
    assert Path("c.xml").read_text().startswith("<?xml")


def test_github_gets_a_summary_of_the_job(
    reports: list[Report], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("summary.md").write_text("before\n")
    monkeypatch.setenv(SUMMARY, "summary.md")
    Output.parse(["github"], None).write(reports)
    assert capsys.readouterr().out.startswith("::error file=train.py,line=98,")
    assert Path("summary.md").read_text().startswith("before\n<!-- nnaudit report -->\n")
    Output.parse(["json:run.json"], None).write(reports)
    assert Path("summary.md").read_text().count("nnaudit report -->") == 1


@pytest.mark.parametrize("variable", ROOTS)
def test_files_are_named_from_the_root_of_the_repository(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "repository" / "models"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert Output.parse([], None).options.folder == ""
    (here.parent / ".git").mkdir()
    assert Output.parse([], None).options.folder == "models"
    monkeypatch.setenv(variable, str(tmp_path))
    assert Output.parse([], None).options.folder == "repository/models"


def test_a_device_is_written_to_and_a_link_stays_one(reports: list[Report]) -> None:
    Path("real.json").write_text("")
    Path("link.json").symlink_to("real.json")
    Output.parse([], Path("link.json")).write(reports)
    assert Path("link.json").is_symlink()
    assert load("real.json") == reports

    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        Output.parse([f"github:/dev/fd/{writing}"], None).write(reports)
        os.close(writing)
        assert pipe.read().startswith("::error")


def test_the_json_grows_as_answers_come(
    reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Output.parse(["json:run.json", "html:run.html"], None)
    growing = Growing(asked)
    empty = reports[0].model_copy(update={"results": reports[0].results[:1]})
    growing.take(1, lambda: empty)
    assert [len(report.results) for report in load(Path("run.json"))] == [1]
    growing.take(0, lambda: reports[0])
    assert len(load(Path("run.json"))) == 1, "written a moment ago"
    monkeypatch.setattr(output, "WRITE_EVERY", 0.0)
    growing.take(1, lambda: reports[0])
    found = [report.results for report in load(Path("run.json"))]
    assert found == [reports[0].results] * 2
    assert not Path("run.html").exists()
