"""The audits that are kept: where they lie, how many, and what is done with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nnaudit.app import runs
from nnaudit.app.cli import main
from nnaudit.errors import UsageError
from nnaudit.report import Report, Status
from nnaudit.reports.load import load

ASSETS = Path(__file__).parents[2] / "assets"
(FAILING,) = load(ASSETS / "failing-v1.json")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, in which we are, and a home with a cache of its own."""
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NNAUDIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def audit_of(path: str = "train.py", without: str = "") -> Report:
    target = FAILING.target.model_copy(update={"path": path})
    results = tuple(result for result in FAILING.results if result.code != without)
    return FAILING.model_copy(update={"target": target, "results": results})


def test_an_audit_lies_in_the_project_and_git_ignores_it(project: Path) -> None:
    kept = runs.keep(audit_of())
    assert kept is not None
    assert kept.page.is_relative_to(project / ".nnaudit")
    assert "<html" in kept.page.read_text()
    assert load(kept.json) == [audit_of()]
    assert (project / ".nnaudit" / ".gitignore").read_text() == "*\n"


def test_it_lies_there_wherever_in_the_project_we_are(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "src").mkdir()
    monkeypatch.chdir(project / "src")
    kept = runs.keep(audit_of("../train.py"))
    monkeypatch.chdir(project)
    assert [kept] == runs.history("train.py") == runs.history(str(project / "train.py"))


def test_two_files_of_one_name_share_nothing(project: Path) -> None:
    first, second = runs.keep(audit_of("a/train.py")), runs.keep(audit_of("b/train.py"))
    assert runs.history("a/train.py") == [first]
    assert runs.history("b/train.py") == [second]


def test_without_a_project_it_lies_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = runs.keep(audit_of())
    assert kept is not None
    assert kept.page.is_relative_to(tmp_path / "cache" / "nnaudit")
    assert not (tmp_path / ".nnaudit").exists()


def test_a_project_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, project: Path
) -> None:
    (project / ".nnaudit").write_text("a file is in the way")
    kept = runs.keep(audit_of())
    assert kept is not None
    assert kept.page.is_relative_to(tmp_path / "cache")
    assert runs.history("train.py") == [kept]


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, project: Path) -> None:
    (project / ".nnaudit").touch()
    (tmp_path / "cache").touch()
    assert runs.keep(audit_of()) is None
    assert runs.history("train.py") == []


def test_the_last_ten_are_kept_and_nothing_else_is_removed(project: Path) -> None:
    first = runs.keep(audit_of())
    assert first is not None
    own = first.folder / "my notes.txt"
    own.touch()
    for _ in range(runs.KEPT):
        runs.keep(audit_of())
    assert len(runs.history("train.py")) == runs.KEPT
    assert [file.name for file in first.folder.iterdir()] == [own.name]


def test_what_did_not_pass_is_asked_again() -> None:
    assert runs.unpassed("train.py") == ()
    runs.keep(audit_of())
    codes = runs.unpassed("train.py")
    assert {"DATA104", "LOSS101"} <= set(codes)
    statuses = {FAILING.result(code).status.value for code in codes}
    assert statuses <= {"fail", "warn", "error", "inconclusive"}


def test_the_last_audit_is_one_of_this_project_whoever_else_audits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = runs.keep(audit_of())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # no project: its audits lie in the cache of the user
    monkeypatch.setattr(runs, "project_of", lambda folder: None)
    with pytest.raises(UsageError, match="no audit was kept"):
        runs.latest()
    (elsewhere / "other.py").touch()
    there = runs.keep(audit_of("other.py"))
    assert runs.latest() == there
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("NNAUDIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert runs.latest() == here


def test_the_last_answer_of_each_check_counts_whichever_audit_asked_it() -> None:
    runs.keep(audit_of())
    mended = FAILING.result("DATA104").model_copy(update={"status": Status.PASS})
    target = FAILING.target.model_copy(update={"path": "train.py"})
    runs.keep(FAILING.model_copy(update={"target": target, "results": (mended,)}))
    codes = runs.unpassed("train.py")
    assert "LOSS101" in codes
    assert "DATA104" not in codes


def test_the_last_audit_is_shown_again() -> None:
    assert "no audit was kept" in run("report", "--last").stderr
    runs.keep(audit_of("a.py"))
    runs.keep(audit_of("b.py"))
    shown = run("report", "--last", "a.py", "--output-format", "json")
    assert json.loads(shown.stdout)["target"]["path"] == "a.py"
    assert "a.py: 3 of 39" in run("report", "--last", "a.py").stdout
    assert run("report").exit_code == 2


def test_two_audits_are_compared() -> None:
    assert run("diff").exit_code == 2
    runs.keep(audit_of(without="DATA104"))
    assert "only one audit" in run("diff").stderr
    runs.keep(audit_of())
    for words in ((), ("train.py",)):
        result = run("diff", *words)
        assert result.exit_code == 1
        assert "  new             DATA104 shuffling\n" in result.stdout
        assert "FAIL DATA104" in result.stdout
        assert "FAIL LOSS101" not in result.stdout
    assert run("diff", str(ASSETS / "failing-v1.json")).exit_code == 0


def test_last_failed_and_select_exclude_each_other() -> None:
    assert "--lf" in run("--lf", "--select", "DATA", "train.py").stderr


def test_an_unreadable_report_is_one_sentence() -> None:
    kept = runs.keep(audit_of())
    assert kept is not None
    kept.json.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        runs.unpassed("train.py")
