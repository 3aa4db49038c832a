"""What click lacks: a command that need not be named, a script's own words, options by section."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

ARGUMENTS = "nnaudit.arguments"
"""Where click's context keeps the words after ``--``, which are the user's script's."""

DEFAULT = "check"
"""The command that is meant where none is named."""


class SectionedOption(click.Option):
    """An option that the help lists under the heading ``section``."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        """Take ``section`` and whatever :class:`click.Option` takes."""
        super().__init__(*args, **kwargs)
        self.section = section


def option(section: str, *names: str, **attributes: Any) -> Callable[..., Any]:
    """Return the decorator that adds an option under the heading ``section``."""
    return click.option(*names, cls=SectionedOption, section=section, **attributes)


def options(*added: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator that adds several options, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(added):
            command = add(command)
        return command

    return decorate


class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order they are written."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list for each section."""
        _write_sections(self.get_params(ctx), ctx, formatter)


def _write_sections(
    params: Iterable[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
            sections.setdefault(getattr(param, "section", "Options"), []).append(record)
    for title, records in sections.items():
        with formatter.section(title):
            formatter.write_dl(records)


class AuditCommand(SectionedCommand):
    """A command about a script that has options of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say of an unknown option that it may be the script's, and where it must stand then."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (script := next((word for word in words if word.endswith(".py")), "")) == "":
                raise
            if error.possibilities:
                hint = f"Did you mean {error.possibilities[0]}? Options of the script go after --."
            else:
                call = shlex.join([*_command(ctx), script, "--", *_with_value(error, words)])
                hint = f"The script's own options go after --, as in: {call}"
            raise click.UsageError(f"No such option {error.option_name}. {hint}", ctx) from None


def _command(ctx: click.Context) -> list[str]:
    words = ctx.command_path.split()
    return words[:-1] if words[-1] == DEFAULT else words


def _with_value(error: click.NoSuchOption, words: list[str]) -> list[str]:
    """Return the unknown option as it was written, and the word after it unless that is one."""
    at = next((i for i, word in enumerate(words) if word.startswith(error.option_name)), None)
    if at is None:
        return [error.option_name]  # one of several letters, as in -qx
    return [words[at], *(word for word in words[at + 1 : at + 2] if not word.startswith("-"))]


class AuditGroup(click.Group):
    """Commands of which one need not be named: ``nnaudit FILE`` is ``nnaudit check FILE``.

    The words after ``--`` are the script's, whatever they are: no command parses them.
    """

    @property
    def default(self) -> click.Command:
        """The command that is meant where none is named."""
        return self.commands[DEFAULT]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command first unless a command is, and keep what follows ``--``."""
        if "--" in args:
            split = args.index("--")
            args, ctx.meta[ARGUMENTS] = args[:split], args[split + 1 :]
        own = {word for param in self.get_params(ctx) for word in param.opts}
        # A shell that completes the first word is offered all that may stand there.
        if args[:1] and args[0] not in self.commands and args[0] not in own:
            self._refuse_misspelt(ctx, args[0])
            args = [DEFAULT, *args]
        elif not args and not ctx.resilient_parsing:
            args = [DEFAULT]
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Take the group's words; what is wrong with them is said with nothing hidden in it."""
        with _nothing_hidden():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, which takes its own words."""
        with _nothing_hidden():
            return super().invoke(ctx)

    def _refuse_misspelt(self, ctx: click.Context, word: str) -> None:
        """Tell a command that was mistyped from a target.

        Raises:
            click.UsageError: there is no such file, and a command is called nearly so.
        """
        near = difflib.get_close_matches(word, self.commands, n=1, cutoff=0.7)
        if near and not ctx.resilient_parsing and not Path(word).exists():
            meant = f"{ctx.command_path} {near[0]}"
            raise click.UsageError(
                f"{word!r} is neither a file nor a command. Did you mean `{meant}`?", ctx
            )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order they are written in, which is that of their use."""
        return list(self.commands)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Say how a target is audited; the commands are listed below."""
        return ["[TARGET ...] [OPTIONS] [-- SCRIPT OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the default command's options, then the group's own."""
        self.format_commands(ctx, formatter)
        _write_sections([*self.default.params, *self.get_params(ctx)], ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer commands, the default command's options, and files: a target may stand here."""
        with click.Context(self.default, info_name=DEFAULT, parent=ctx) as inner:
            options = self.default.shell_complete(inner, incomplete)
        found = [*super().shell_complete(ctx, incomplete), *options]
        return [*{item.value: item for item in found}.values(), *complete_file(incomplete)]


@contextmanager
def _nothing_hidden() -> Iterator[None]:
    """Quote words of the command line so that no terminal obeys them."""
    try:
        yield
    except click.UsageError as error:
        from nnaudit.reports.text import visible

        said = error.format_message()
        if visible(said) == said:
            raise
        raise click.UsageError(visible(said), error.ctx) from None


def complete_file(incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a file's name."""
    return [CompletionItem(incomplete, type="file")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete to files, as ``shell_complete`` of an argument."""
    return complete_file(incomplete)


def codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete to codes, families and names of checks; the last of a comma-separated list."""
    from nnaudit.checks.catalog import catalog

    before, comma, word = incomplete.rpartition(",")
    known: dict[str, str] = {}
    for entry in catalog():
        known[entry.family] = f"all checks of the family {entry.family}"
        known[entry.code] = known[entry.name] = entry.question
    return [
        CompletionItem(f"{before}{comma}{name}", help=question)
        for name, question in known.items()
        if name.lower().startswith(word.lower())
    ]


def words(*known: str) -> Callable[..., list[CompletionItem]]:
    """Return a ``shell_complete`` that offers ``known``."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(word) for word in known if word.startswith(incomplete)]

    return complete
