"""Whatever the command line is given, it says one sentence and ends with the exit code for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nnaudit.app import cli
from nnaudit.app.cli import main

MODEL = "import torch\nmodel = torch.nn.Linear(2, 2)\n"


def said(*words: str) -> tuple[int, str]:
    """The exit code and what is said on stderr, which must be a single line."""
    done = CliRunner().invoke(main, list(words))
    assert isinstance(done.exception, (SystemExit, type(None))), done.exception
    assert len(done.stderr.splitlines()) == 1
    return done.exit_code, done.stderr.strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


@pytest.mark.parametrize("time", ["99999999999h", "0s", "-1s", "1e400s"])
def test_a_duration_that_cannot_be_waited_for(here: Path, time: str) -> None:
    code, text = said("net.py", "--check-timeout", time)
    assert code == 2
    assert "duration" in text and time in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("tool = 5", "tool must be a table"),
        ("[tool]\nnnaudit = 5", "tool.nnaudit must be a table"),
        ("[tool.nnaudit]\nselect = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[tool.nnaudit.thresholds.DATA110]\nimbalance = inf", "finite"),
        ("[tool.nnaudit.thresholds.DATA110]\nimbalance = nan", "finite"),
    ],
    ids=["tool", "table", "deep", "inf", "nan"],
)
def test_a_hostile_pyproject(here: Path, content: str, reason: str) -> None:
    (here / "pyproject.toml").write_text(content)
    code, text = said("config")
    assert code == 2
    assert "pyproject.toml" in text and reason in text


def test_a_working_folder_that_is_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, text = said("config")
    assert (code, "no longer exists" in text) == (2, True)


@pytest.mark.parametrize("name", ["net.py", "other.py", "pyproject.toml"])
def test_a_report_never_replaces_what_a_person_wrote(here: Path, name: str) -> None:
    file = here / name
    file.write_text(before := file.read_text() if file.exists() else "# mine\n")
    code, text = said("net.py", "-o", name)
    assert code == 2
    assert f"{name} would be overwritten" in text
    assert file.read_text() == before


def test_a_link_to_the_target_is_the_target(here: Path) -> None:
    (here / "report.html").symlink_to("net.py")
    code, _ = said("net.py", "-o", "report.html")
    assert code == 2
    assert (here / "net.py").read_text() == MODEL


def test_what_goes_to_stderr_cannot_steer_a_terminal_or_a_log(here: Path) -> None:
    _, text = said("report", "\x1b]0;owned\x07\n::error::x")
    assert "\x1b" not in text and "\x07" not in text
    assert text.startswith("nnaudit: ")


def test_an_unforeseen_error_is_one_sentence(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "_audit", fails)
    code, text = said("net.py")
    assert code == 3
    assert "bug in nnaudit: ZeroDivisionError: division by zero" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output() -> None:
    done = run("config", stdout="/dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["nnaudit: No space left on device"]


def test_nobody_reads_standard_output() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("config", stdout=writing)
    assert (done.returncode, done.stderr) == (0, "")


def run(*words: str, stdout: str | int) -> subprocess.CompletedProcess[str]:
    file = os.open(stdout, os.O_WRONLY) if isinstance(stdout, str) else stdout
    try:
        return subprocess.run(
            [sys.executable, "-m", "nnaudit", *words],
            stdout=file, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(file)
