"""What other programs take hold of: shells, pre-commit, GitHub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

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
    assert set(re.findall(r"--[a-z][a-z-]+", script)) <= known
    assert set(re.findall(r"\bTARGETS|ARGUMENTS|BASELINE|FOLDER\b", script)) == set(
        action["runs"]["steps"][1]["env"]
    )


STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" > words.txt
echo "::error file=train.py,line=3::shuffled"
echo "# report" > "$FOLDER/report.md"
exit 1
"""


def test_the_step_of_the_action(tmp_path: Path) -> None:
    """Runs it as GitHub does, with a program in nnaudit's place that says how it was called."""
    program = tmp_path / "bin" / "nnaudit"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "github-action"],
        cwd=tmp_path,
        env={
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "TARGETS": "train.py $(touch stolen)",
            "ARGUMENTS": "--preset quick",
            "BASELINE": "old.json",
            "FOLDER": "out",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("::error file=train.py,line=3::")
    assert (tmp_path / "summary.md").read_text() == "# report\n"
    assert not (tmp_path / "stolen").exists()
    words = (tmp_path / "words.txt").read_text().splitlines()
    assert words[:7] == [
        "check",
        "train.py",
        "$(touch",
        "stolen)",
        "--preset",
        "quick",
        "--baseline",
    ]
    assert "sarif:out/report.sarif" in words


def test_contributors_hooks_run_what_is_there() -> None:
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (source,) = settings["repos"]
    assert source["repo"] == "local"
    for hook in source["hooks"]:
        re.compile(hook.get("files", ""))
        scripts = [word for word in hook["entry"].split() if word.startswith("scripts/")]
        tools = [word for word in hook["entry"].split() if word.startswith(".venv/bin/")]
        assert all((ROOT / script).is_file() for script in scripts)
        assert tools or scripts, hook["id"]


def test_issue_forms_ask_for_something_each_under_a_name_of_its_own() -> None:
    yaml = pytest.importorskip("yaml")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert content["name"] and content["description"]
        asked = [part for part in content["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in asked}) == len(asked)
        assert any(part.get("validations", {}).get("required") for part in asked)
