"""``nnaudit fix``: what the last audit found, mended in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nnaudit.app import cli, runs
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
    Path("train.py").write_text("\n" + PROGRAM)
    assert "has changed since the audit" in run("DATA104").stderr
