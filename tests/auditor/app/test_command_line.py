"""How the words of a call are understood: a target or a command, ours or the script's."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from nnaudit.app import command_line
from nnaudit.app.command_line import ARGUMENTS, AuditCommand, AuditGroup, option, options


@click.group(cls=AuditGroup)
def program() -> None:
    """Do something."""


@program.command("check", cls=AuditCommand)
@click.argument("targets", nargs=-1)
@options(
    option("First", "--select", help="Choose."),
    option("Second", "--seed", type=int, help="Begin."),
)
@click.pass_context
def check(ctx: click.Context, targets: tuple[str, ...], select: str, seed: int) -> None:
    """Audit."""
    click.echo(f"{targets} {select} {seed} {ctx.meta.get(ARGUMENTS)}")


@program.command("explain")
def explain() -> None:
    """Explain."""
    click.echo("explained")


def run(*words: str) -> Result:
    return CliRunner().invoke(program, list(words), prog_name="program", catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "understood"),
    [
        (("a.py",), "('a.py',) None None None"),
        (("a.py", "b.py", "--seed", "3"), "('a.py', 'b.py') None 3 None"),
        (("--select", "X", "a.py"), "('a.py',) X None None"),
        (("check", "explain"), "('explain',) None None None"),
        (("a.py", "--", "--seed", "3", "--"), "('a.py',) None None ['--seed', '3', '--']"),
        (("--", "--seed", "3"), "() None None ['--seed', '3']"),
        ((), "() None None None"),
        (("explain",), "explained"),
    ],
)
def test_a_target_needs_no_command(words: tuple[str, ...], understood: str) -> None:
    assert run(*words).stdout.strip() == understood


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.py", "--epochs", "10"), "as in: program a.py -- --epochs 10"),
        (("a.py", "--epochs=10", "b"), "as in: program a.py -- --epochs=10"),
        (("--amp", "--seed", "1", "a.py"), "as in: program a.py -- --amp"),
        (("a.py", "--selct", "X"), "Did you mean --select?"),
        (("--epochs",), "No such option"),
        (("explan",), "Did you mean `program explain`?"),
    ],
)
def test_what_is_not_understood_is_told_with_what_is_meant(
    words: tuple[str, ...], said: str
) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_file_may_be_called_nearly_like_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("explan").touch()
    assert run("explan").stdout.startswith("('explan',)")


def test_the_help_lists_the_audits_options_by_section() -> None:
    for words in (("--help",), ("check", "--help")):
        shown = run(*words).stdout
        assert shown.index("First:") < shown.index("--select") < shown.index("Second:")
        assert shown.count("--help") == 1


def completions(known: list[click.shell_completion.CompletionItem]) -> list[str]:
    return [item.value for item in known]


def test_codes_complete_after_a_comma_too() -> None:
    ctx, param = click.Context(check), check.params[0]
    assert "DATA104" in completions(command_line.codes(ctx, param, "DATA10"))
    assert completions(command_line.codes(ctx, param, "FIT,shuffl")) == ["FIT,shuffling"]
