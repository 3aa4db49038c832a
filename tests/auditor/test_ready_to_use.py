"""What other programs take hold of: shells, pre-commit, GitHub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from programs import LOOP, SOURCE

from nnaudit.app.cli import main

ROOT = Path(__file__).resolve().parents[2]


def completions(*words: str) -> set[str]:
    complete = ShellComplete(main, {}, "nnaudit", "_NNAUDIT_COMPLETE")
    found = complete.get_completions(list(words[:-1]), words[-1])
    return {item.value if item.type == "plain" else f"<{item.type}>" for item in found}


def test_the_first_word_completes_to_commands_and_files() -> None:
    assert {"check", "report", "rule", "config", "<file>"} <= completions("")
    assert completions("ru") == {"rule", "<file>"}


def test_options_and_codes_complete_before_a_target() -> None:
    assert "--select" in completions("--sel")
    assert "DATA104" in completions("--select", "DATA1")
    assert "shuffling" in completions("rule", "shuf")
    assert completions("train.py", "--output-format", "js") == {"json"}


def test_a_target_may_stand_where_a_command_may() -> None:
    assert "--select" in completions("train.py", "--sel")
    assert completions("train.py", "--preset", "") == {"quick", "full"}
    assert "<file>" in completions("check", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("nnaudit")],
        env={**os.environ, "_NNAUDIT_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "not supported" in done.stderr:
        pytest.skip(done.stderr)  # click asks bash for its version
    assert "_NNAUDIT_COMPLETE" in done.stdout


def options_of_check() -> set[str]:
    command = main.commands["check"]
    return {word for part in command.params for word in part.opts if isinstance(part, click.Option)}


def test_hooks_and_action_use_options_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    known = options_of_check()
    for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text()):
        program, *words = hook["entry"].split()
        assert program == "nnaudit"
        assert {word for word in words if word.startswith("-")} <= known
        assert not hook["pass_filenames"]
        assert "pre-commit" not in hook["stages"]
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    for step in action["runs"]["steps"]:
        assert "inputs." not in step["run"], "an input must not become part of a command"
    script = (ROOT / "scripts" / "github-action").read_text()
    assert set(re.findall(r"(?<= )--[a-z][a-z-]+", script)) <= known
    assert set(re.findall(r"\bTARGETS|ARGUMENTS|BASELINE|FOLDER\b", script)) == set(
        action["runs"]["steps"][1]["env"]
    )


STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" > words.txt
exit 1
"""


def run_action(folder: Path, nnaudit: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the action's step as GitHub does, with the program ``nnaudit``."""
    return subprocess.run(
        ["bash", ROOT / "scripts" / "github-action"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{nnaudit.parent}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "FOLDER": "out",
            **inputs,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A program in nnaudit's place that says how it was called."""
    program = tmp_path / "bin" / "nnaudit"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    (program.parent / "python").symlink_to(sys.executable)
    return program


def test_the_action_passes_words_on_and_expands_nothing(tmp_path: Path, stub: Path) -> None:
    done = run_action(
        tmp_path,
        stub,
        TARGETS="train.py $(touch stolen) *",
        ARGUMENTS="--preset quick -- --name 'two words' --select",
        BASELINE="old.json",
    )
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "stolen").exists()
    words = (tmp_path / "words.txt").read_text().splitlines()
    ours, script = words[: words.index("--")], words[words.index("--") + 1 :]
    assert ours[:9] == [
        "check", "train.py", "$(touch", "stolen)", "*", "--preset", "quick", "--baseline",
        "old.json",
    ]  # fmt: skip
    assert "sarif:out/report.sarif" in ours
    assert script == ["--name", "two words", "--select"]


def test_the_action_refuses_a_quotation_that_does_not_end(tmp_path: Path, stub: Path) -> None:
    done = run_action(tmp_path, stub, TARGETS="train.py", ARGUMENTS="--name 'two words")
    assert done.returncode == 2
    assert not (tmp_path / "words.txt").exists()


@pytest.mark.slow
def test_the_action_audits_a_script_with_options_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        f"import sys\n\nassert sys.argv[1:] == ['a b']\n{SOURCE}{LOOP}"
    )
    done = run_action(
        tmp_path,
        Path(sys.executable).with_name("nnaudit"),
        TARGETS="train.py",
        ARGUMENTS="--select DATA101 -- 'a b'",
    )
    assert done.returncode == 0, done.stderr
    assert "nnaudit: train.py" in done.stdout
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "out" / "report.md").read_text()
    present = {file.name for file in (tmp_path / "out").iterdir()}
    assert present == {"badge.json", "report.md", "report.html", "report.json", "report.sarif"}


def test_hadolint_finds_nothing_in_the_container_file() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
