"""``nnaudit fix``: what the last audit found, mended in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nnaudit.app import cli, fixing, runs
from nnaudit.report import Location, Source
from nnaudit.reports.load import load

pytest.importorskip("libcst")

ASSETS = Path(__file__).parents[2] / "assets"
(FAILING,) = load(ASSETS / "failing-v1.json")
PROGRAM = "import torch\n\ndata = load()\nloader = DataLoader(data, 64)\n\nmain()\n"


@pytest.fixture(autouse=True)
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose last audit found that line 4 does not shuffle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNAUDIT_CACHE", str(tmp_path / "cache"))
    Path("train.py").write_bytes(PROGRAM.replace("\n", "\r\n").encode())
    source = Source(first=2, lines=tuple(PROGRAM.splitlines()[1:6]))
    results = tuple(
        result.model_copy(update={"location": Location(file="train.py", line=4), "source": source})
        if result.code == "DATA104"
        else result
        for result in FAILING.results
    )
    runs.keep(FAILING.model_copy(update={"results": results}))


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["fix", *words], catch_exceptions=False)


def test_the_change_is_shown_and_nothing_is_written() -> None:
    before = Path("train.py").read_bytes()
    shown = run("DATA104").stdout
    assert "-loader = DataLoader(data, 64)" in shown
    assert "+loader = DataLoader(data, 64, shuffle=True)" in shown
    assert Path("train.py").read_bytes() == before


def test_when_applied_the_check_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(cli, "_audit", lambda ctx, paths, options: asked.append((paths, options)))
    assert run("data104", "train.py", "--apply").exit_code == 0
    assert Path("train.py").read_bytes().count(b"64, shuffle=True)\r\n") == 1
    ((paths, options),) = asked
    assert paths == ("train.py",)
    assert isinstance(options, dict)
    assert options["select"] == ("data104",)


def test_what_was_run_by_name_is_asked_again_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = load(runs.latest(None).json)
    target = kept.target.model_copy(update={"module": "package.train"})
    runs.keep(kept.model_copy(update={"target": target}))
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "_audit", lambda ctx, paths, options: asked.append(options))
    assert run("DATA104", "--apply").exit_code == 0
    assert asked[0]["module"] == "package.train"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("FIT101",), "names no line for FIT101"),
        (("DATA104", "other.py"), "no audit of other.py was kept"),
    ],
)
def test_without_a_certain_fix_nothing_is_changed(words: tuple[str, ...], said: str) -> None:
    result = run(*words, "--apply")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_file_that_changed_since_is_audited_first() -> None:
    Path("train.py").write_text(PROGRAM.replace("data = load()", "data = read()"))
    assert "has changed since the audit" in run("DATA104").stderr


def test_lines_that_only_moved_are_found_where_they_are_now() -> None:
    Path("train.py").write_text("import os\n\n" + PROGRAM)
    assert "+loader = DataLoader(data, 64, shuffle=True)" in run("DATA104").stdout
    twice = PROGRAM + PROGRAM
    Path("train.py").write_text("\n" + twice)
    assert "has changed since the audit" in run("DATA104").stderr


def test_an_audit_of_other_checks_in_between_does_not_hide_the_finding() -> None:
    others = tuple(r for r in FAILING.results if r.code != "DATA104")
    runs.keep(FAILING.model_copy(update={"results": others}))
    assert "shuffle=True" in run("DATA104", "train.py").stdout


def test_a_check_may_be_named_and_an_unknown_one_is_told() -> None:
    assert "shuffle=True" in run("shuffling").stdout
    assert "did you mean DATA" in run("DATA1049").stderr


def test_findings_that_one_line_mends_are_known_without_writing() -> None:
    (report,) = load(runs.latest().json)
    assert fixing.certain([report]) == ["DATA104"]
    Path("train.py").unlink()
    assert fixing.certain([report]) == []


def test_the_checks_that_have_a_fix_are_listed_once() -> None:
    from nnaudit.fixes import FIXES

    assert tuple(FIXES) == fixing.CODES


def test_a_file_that_libcst_cannot_read_has_no_fix() -> None:
    Path("train.py").write_text(PROGRAM + "a b c\n")
    assert "cannot read the file" in run("DATA104").stderr
    assert fixing.certain(load(runs.latest().json)) == []
