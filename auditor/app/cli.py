"""The command line: its commands and options. Never imports torch itself, a child process does."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nnaudit._version import __version__
from nnaudit.app.command_line import (
    ARGUMENTS,
    DEFAULT,
    AuditCommand,
    AuditGroup,
    SectionedCommand,
    codes,
    files,
    option,
    options,
    words,
)
from nnaudit.app.messages import FINDINGS, OK, USAGE, ErrorsAsSentences, stop
from nnaudit.reports import FORMATS

if TYPE_CHECKING:
    from nnaudit.app.output import Output
    from nnaudit.app.runs import Run
    from nnaudit.checks.catalog import Entry
    from nnaudit.report import Report

CHECKS, PROGRAM, FILES, REPORT, VERDICT = (
    "Which checks",
    "Your program",
    "Your files",
    "The report",
    "Exit code",
)
"""The sections of the audit's options."""

_WIDEST = 96
"""Columns of a page of documentation: longer lines are hard to read."""

_FORM = option(
    PROGRAM,
    "--as",
    "form",
    type=click.Choice(["module", "script"]),
    help="Take a file as a module or a script; its source decides by default.",
)
_LOOP = option(
    PROGRAM,
    "--loop",
    type=click.IntRange(1),
    metavar="N",
    help="Audit a script's N-th training loop; those before it run to their end.",
)
_SANDBOX = (
    option(
        FILES,
        "--sandbox",
        type=click.Choice(["auto", "kernel", "python", "off"]),
        help="What keeps your files as they are (auto: the best that this machine allows).",
    ),
    option(
        FILES,
        "--allow-write",
        multiple=True,
        metavar="PATH",
        help="Let the program write this file or folder for real; repeatable.",
    ),
)
_MODULE = option(
    PROGRAM,
    "-m",
    "--module",
    metavar="NAME",
    help="Audit a module of a package, as `python -m NAME` runs it.",
)
_RANKS = option(
    PROGRAM,
    "--nproc-per-node",
    type=click.IntRange(1),
    metavar="N",
    help="Start a script in N processes, as torchrun does, and ask the checks of DIST, too.",
)
_RENDERING = (
    option(
        REPORT,
        "--output-format",
        "formats",
        multiple=True,
        metavar="FORMAT[:PATH]",
        shell_complete=words(*FORMATS),
        help=f"{', '.join(FORMATS)}; repeatable.",
    ),
    option(
        REPORT,
        "-o",
        "--output-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the report here.",
    ),
    option(
        REPORT,
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        help="Colour on the terminal.",
    ),
    option(REPORT, "-q", "--quiet", is_flag=True, help="Only the verdict and what failed."),
)
_AUDIT = (
    option(
        CHECKS,
        "--select",
        multiple=True,
        metavar="CODES",
        shell_complete=codes,
        help="Run only these checks: codes, families or names.",
    ),
    option(
        CHECKS,
        "--ignore",
        multiple=True,
        metavar="CODES",
        shell_complete=codes,
        help="Skip these checks.",
    ),
    option(
        CHECKS,
        "--extend-select",
        multiple=True,
        metavar="CODES",
        shell_complete=codes,
        help="Run these checks, too.",
    ),
    option(
        CHECKS,
        "--lf",
        "--last-failed",
        "last_failed",
        is_flag=True,
        help="Run only what did not pass when it was last asked: failed, crashed, warned, "
        "inconclusive.",
    ),
    option(
        CHECKS,
        "--preset",
        type=click.Choice(["quick", "full"]),
        help="quick: only checks that train for no more than a few steps.",
    ),
    option(
        CHECKS,
        "--budget",
        metavar="TIME",
        help="Time limit per target: 60s, 2m. Checks that do not fit are inconclusive.",
    ),
    option(
        CHECKS, "--check-timeout", metavar="TIME", help="End a check that hangs for so long (300s)."
    ),
    option(CHECKS, "--seed", type=int, help="Seed of the audit (0)."),
    option(
        PROGRAM,
        "--device",
        metavar="NAME",
        shell_complete=words("auto", "cpu", "cuda", "cuda:0", "mps", "xpu"),
        help="auto, cpu, cuda, cuda:1, mps (auto: the GPU if there is one).",
    ),
    _MODULE,
    _FORM,
    _LOOP,
    _RANKS,
    option(
        PROGRAM,
        "-j",
        "--jobs",
        type=click.IntRange(1),
        default=1,
        help="Targets audited at once (1).",
    ),
    *_SANDBOX,
    option(
        FILES,
        "--keep-files",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Copy what the program wrote to this folder.",
    ),
    *_RENDERING,
    option(REPORT, "-v", "--verbose", is_flag=True, help="All details, and the program's output."),
    option(REPORT, "--view", is_flag=True, help="Open the HTML report in a browser."),
    option(
        VERDICT,
        "--baseline",
        type=click.Path(dir_okay=False, path_type=Path),
        help="An earlier JSON report to compare with: only new findings fail.",
    ),
    option(
        VERDICT,
        "--fail-on",
        type=click.Choice(["fail", "warn"]),
        help="The least severe finding that gives exit code 1 (fail).",
    ),
    option(VERDICT, "--exit-zero", is_flag=True, help="Exit with 0 even with findings."),
)
_SETTINGS = (
    "select",
    "ignore",
    "extend_select",
    "preset",
    "budget",
    "check_timeout",
    "seed",
    "device",
    "loop",
    "nproc_per_node",
    "sandbox",
    "fail_on",
)
"""The options that are settings, too, with at most one value."""


@click.group(
    cls=AuditGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="nnaudit %(version)s")
def main() -> None:
    """Audit a neural network's training program before the long run.

    \b
    nnaudit train.py                      audit any training script, as it is
    nnaudit train.py -- --epochs 10       give the script its own options
    nnaudit                               audit the targets of [tool.nnaudit] in pyproject.toml

    It takes real training steps on the real device and answers precise questions: is the data
    shuffled, does a seed reproduce the run, is the first loss as expected, can a tiny subset be
    overfitted, ... Plain loops, Lightning and the transformers Trainer are understood. A target
    may also be a file that defines build_model(), train_loader() and, if it has them, loss_fn,
    build_optimizer, val_loader; `nnaudit init` writes one to fill in.

    \b
    Exit codes: 0 clean; 1 findings; 2 usage, or a target that cannot be loaded;
    3 a bug in nnaudit; 4 the user's code crashed or ran out of budget before a verdict.
    """


@main.command(DEFAULT, cls=AuditCommand, short_help="Audit targets: may be left out.")
@click.argument("targets", nargs=-1, shell_complete=files)
@options(*_AUDIT)
@click.pass_context
def check(ctx: click.Context, /, targets: tuple[str, ...], **chosen: Any) -> None:
    """Audit TARGETS; `nnaudit train.py` is short for `nnaudit check train.py`.

    Without TARGETS, audit those that [tool.nnaudit] in pyproject.toml names. What follows `--` are
    the script's own options: nnaudit train.py -- --epochs 10.
    """
    with ErrorsAsSentences():
        _audit(ctx, targets, chosen)


def _audit(ctx: click.Context, paths: tuple[str, ...], options: dict[str, Any]) -> None:
    from nnaudit import config
    from nnaudit.app import launch, runs
    from nnaudit.app.audits import Call, audit_all
    from nnaudit.app.module_name import file_of
    from nnaudit.app.output import Growing, Output
    from nnaudit.processes.child import Interruption

    flags = {key: _flat(options[key]) for key in _SETTINGS}
    if (launched := launch.processes()) is not None:
        flags["nproc_per_node"] = flags["nproc_per_node"] or launched
    settings = config.load({**flags, "allow_write": options["allow_write"]})
    chosen: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in paths]
    if options["module"]:
        if paths:
            stop(f"name either a file or -m {options['module']}, not both", USAGE)
        chosen = [(file_of(options["module"]), ())]
    chosen = chosen or [config.target_of(text) for text in settings.targets]
    arguments = ctx.meta.get(ARGUMENTS, [])
    call = Call(
        targets=tuple((path, (*own, *arguments)) for path, own in chosen),
        settings=settings,
        module=options["module"] or "",
        form=options["form"],
        keep_files=options["keep_files"],
        jobs=options["jobs"],
        verbose=options["verbose"],
        compared=_baseline(options["baseline"]),
        only_unpassed=options["last_failed"],
    )
    if options["last_failed"] and options["select"]:
        stop("--lf chooses the checks, and so does --select: give one of them", USAGE)
    if not call.targets:
        stop(
            "no target: name a training script, as in `nnaudit train.py`, or name targets under "
            "[tool.nnaudit] in pyproject.toml; `nnaudit --help` says more",
            USAGE,
        )
    output = Output.parse(
        options["formats"],
        options["output_file"],
        color=options["color"],
        quiet=options["quiet"],
        verbose=options["verbose"],
        fail_on=settings.fail_on,
        sources=[path for path, _ in call.targets],
    )
    with Interruption() as interruption:
        reports, code = audit_all(replace(call, note=Growing(output).take), interruption)
        kept = [runs.keep(report) for report in reports]  # whoever reads stdout may close it
        output.write(reports)
        if output.is_for_a_person:
            _offer_fixes(reports)
        _show_pages(output, kept, view=options["view"])
    sys.exit(OK if options["exit_zero"] and code == FINDINGS else code)


def _offer_fixes(reports: Sequence[Report]) -> None:
    """Name the findings that one changed line mends."""
    from nnaudit.app.fixing import certain

    if found := certain(reports):
        others = f"; there is one for {', '.join(found[1:])}, too" if found[1:] else ""
        click.echo(f"`nnaudit fix {found[0]}` shows a line that mends it{others}", err=True)


def _show_pages(output: Output, kept: Sequence[Run | None], *, view: bool) -> None:
    """Say where the HTML report lies, if a person reads the terminal, and open it if asked to."""
    pages = [output.page] if output.page else [run.page for run in kept if run]
    for page in pages:
        if output.page or output.is_for_a_person:
            click.echo(f"HTML report with figures: {_short(page)}", err=True)
        if view:
            import webbrowser

            webbrowser.open(page.resolve().as_uri())


def _short(path: Path) -> Path:
    """Return ``path`` as it is written from here, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _baseline(file: Path | None) -> Callable[[Report], Report]:
    """Return what compares a report with the one in ``file``; without a file, nothing changes.

    Raises:
        UsageError: ``file`` is no report.
    """
    if file is None:
        return lambda report: report
    from nnaudit.app.baseline import compare
    from nnaudit.reports.load import load

    old = load(file)
    return lambda report: compare([report], old, str(file))[0]


def _flat(value: Any) -> Any:
    """Join what a repeatable option collected; each item may be a comma-separated list."""
    return ",".join(value) or None if isinstance(value, tuple) else value


@main.command("report", cls=SectionedCommand, short_help="Show a report again, in any format.")
@click.argument("file", required=False, metavar="FILE|TARGET", shell_complete=files)
@click.option("--last", is_flag=True, help="The last audit of TARGET, or of any target here.")
@options(*_RENDERING)
@option(REPORT, "-v", "--verbose", is_flag=True, help="All details.")
@option(REPORT, "--view", is_flag=True, help="Open the HTML report of the last audit in a browser.")
@option(
    REPORT,
    "--baseline",
    type=click.Path(dir_okay=False, path_type=Path),
    help="An earlier JSON report to compare with.",
)
def report_command(
    file: str | None, last: bool, view: bool, baseline: Path | None, **chosen: Any
) -> None:
    """Render the saved JSON report FILE again, in any format, or with --last an audit just made."""
    with ErrorsAsSentences():
        from nnaudit.app import runs
        from nnaudit.app.output import Output
        from nnaudit.reports.load import load

        if file is None and not last:
            stop("name a JSON report, or --last for the last audit", USAGE)
        output = Output.parse(chosen.pop("formats"), chosen.pop("output_file"), **chosen)
        compared = _baseline(baseline)
        run = runs.latest(file) if last else None
        reports = load(run.json if run else Path(str(file)))
        output.write([compared(report) for report in reports])
        if run is not None:
            _show_pages(output, [run], view=view)


@main.command(cls=SectionedCommand, short_help="Say what changed between two audits.")
@click.argument("old", required=False, shell_complete=files)
@click.argument("new", required=False, shell_complete=files)
@options(*_RENDERING)
def diff(old: str | None, new: str | None, **chosen: Any) -> None:
    """Say what changed from the JSON report OLD to NEW: findings, times, measured numbers.

    OLD and NEW are JSON reports. Without NEW, it is the last audit; without OLD, the one of the
    same target before that. OLD may also be the target, whose last two audits are compared then.
    The exit code is 1 where something new fails.
    """
    with ErrorsAsSentences():
        from nnaudit.app import runs
        from nnaudit.app.baseline import compare
        from nnaudit.app.output import Output
        from nnaudit.reports.load import load
        from nnaudit.reports.terminal import render_changes

        output = Output.parse(chosen.pop("formats"), chosen.pop("output_file"), **chosen)
        before, after = runs.pair(old, new)
        reports = compare(load(after), load(before), str(_short(before)))
        output.write(reports, text=render_changes)
        news = any(result.is_new for report in reports for result in report.failed)
        sys.exit(FINDINGS if news else OK)


@main.command(short_help="Mend a finding in your source.")
@click.argument("code", shell_complete=codes)
@click.argument("target", required=False, shell_complete=files)
@click.option("--diff", "_show", is_flag=True, help="Show the change (the default).")
@click.option("--apply", "apply", is_flag=True, help="Make the change, and ask the check again.")
def fix(code: str, target: str | None, _show: bool, apply: bool) -> None:
    """Mend what the last audit found by CODE, where one change of a line is certain to.

    The change is shown as a diff; --apply makes it and runs the check again. There is one for
    DATA104 (shuffle=True), DIST103 (set_epoch), LOSS101 (an activation too many), NORM102
    (bias=False), STEP102 (zero_grad) and STEP104 (unscale_), where a single place fits.
    """
    with ErrorsAsSentences():
        from nnaudit.app import fixing

        found = fixing.find(code, target)
        click.echo(found.diff, nl=False)
        if apply:
            found.apply()
            audited = found.report.target
            named = ["-m", audited.module] if audited.module else [audited.path]
            main([*named, "--select", code, "--", *audited.arguments], prog_name="nnaudit")


@main.command(short_help="Explain a check.")
@click.argument("selector", required=False, metavar="CODE|NAME", shell_complete=codes)
@click.option("--all", "everything", is_flag=True, help="List all checks, one per line.")
def rule(selector: str | None, everything: bool) -> None:
    """Explain a check: why it matters, how it decides, how to fix what it finds."""
    with ErrorsAsSentences():
        from nnaudit.checks.catalog import catalog, find

        if everything or selector is None:
            for known in catalog():
                click.echo(f"{known.code:8} {known.name:24}  {known.kind:12} {known.question}")
            return
        try:
            found = find(selector)
        except LookupError as error:
            stop(str(error.args[0]), USAGE)
        click.echo(_explained(found))


def _explained(check: Entry) -> str:
    sections = {name: text for name, text in check.documentation.items() if name != "question"}
    head = f"{check.code} {check.name} ({check.kind})\n\n{_folded(check.question, '')}"
    body = "\n\n".join(f"{name}:\n{_prose(text)}" for name, text in sections.items())
    values = "".join(f"\n    {name} = {value:g}" for name, value in check.options.items())
    table = (
        f'\n\nOptions, under [tool.nnaudit.thresholds."{check.code}"]:{values}' if values else ""
    )
    return f"{head}\n\n{body}{table}"


def _prose(text: str) -> str:
    """Return a section of a check's documentation as wide as the terminal, indented."""
    from nnaudit.reports.text import paragraphs

    return "\n".join(_folded(line, "    - " if item else "    ") for item, line in paragraphs(text))


def _folded(text: str, head: str) -> str:
    """Return ``text`` after ``head``, folded to the terminal or to what reads well."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return textwrap.fill(
        text,
        max(width, 2 * len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


@main.command("target", cls=AuditCommand, short_help="Show what is found in a file.")
@click.argument("file", shell_complete=files, required=False)
@click.option("--device", default="cpu", metavar="NAME", help="Device to build the model on (cpu).")
@options(_MODULE, _FORM, _LOOP, *_SANDBOX)
@click.pass_context
def target_command(
    ctx: click.Context,
    /,
    file: str | None,
    module: str | None,
    device: str,
    form: Literal["module", "script"] | None,
    loop: int | None,
    sandbox: str | None,
    allow_write: tuple[str, ...],
) -> None:
    """Show which model, data, loss, ... were found in FILE, and what is skipped without each."""
    with ErrorsAsSentences():
        from nnaudit import config
        from nnaudit.app.module_name import file_of
        from nnaudit.engine.job import Job
        from nnaudit.engine.record import RefusedError
        from nnaudit.processes import supervisor

        if (file is None) == (module is None):
            stop("name a file, or a module by -m, as in `nnaudit target train.py`", USAGE)
        path = file or file_of(module or "")
        arguments = tuple(ctx.meta.get(ARGUMENTS, ()))
        settings = config.load(
            {"device": device, "loop": loop, "sandbox": sandbox, "allow_write": allow_write}
        )
        job = Job(path=path, module=module or "", arguments=arguments, form=form, settings=settings)
        try:
            started = supervisor.inspect(job)
        except RefusedError as error:
            stop(str(error), error.exit_code)
        click.echo(
            f"{started.target.name} ({started.target.form} form, on {started.environment.device})"
        )
        click.echo(f"  your files are protected by: {started.environment.sandbox}")
        for part in started.target.parts:
            place = part.location
            where = f"  {_short(Path(place.file))}:{place.line}" if place else ""
            origin = {"user": "yours", "default": "default", "absent": "missing"}[part.origin]
            disabled = f"; without it: no {', '.join(part.disables)}" if part.disables else ""
            click.echo(f"  {part.name:14} {origin:8} {part.description}{where}{disabled}")


@main.command("config", short_help="Show the settings in force.")
@click.option(
    "--schema", is_flag=True, help="Print the JSON schema of [tool.nnaudit], for editors."
)
def config_command(schema: bool) -> None:
    """Show the settings in force in this folder, and where each comes from."""
    with ErrorsAsSentences():
        if schema:
            from nnaudit.app.schema import schema_text

            click.echo(schema_text(), nl=False)
            return
        from nnaudit import config

        found = config.layers()
        for key, value in config.load().model_dump().items():
            shown = f"{key.replace('_', '-')} = {_toml(value)}"
            click.echo(f"{shown:32} # {config.origin(key, found)}")


def _toml(value: Any) -> str:
    """Write a setting as pyproject.toml would; what is not set is an empty string there."""
    if isinstance(value, dict):
        pairs = ", ".join(f'"{key}" = {_toml(inner)}' for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps("" if value is None else value)


@main.command(short_help="Show what this machine allows.")
@options(*_SANDBOX)
@click.option("--device", metavar="NAME", help="Device to look for (auto).")
def doctor(device: str | None, sandbox: str | None, allow_write: tuple[str, ...]) -> None:
    """Show what an audit would find on this machine, and what each gap means."""
    with ErrorsAsSentences():
        from nnaudit import config
        from nnaudit.app.doctor import examine, lines

        flags = {"device": device, "sandbox": sandbox, "allow_write": allow_write}
        found = examine(config.load(flags))
        for line in lines(found, min(shutil.get_terminal_size().columns, 100)):
            click.echo(line)
        works = all(finding.name != "audit" for finding in found)
        click.echo("An audit can run here." if works else "No audit can run here.")
        sys.exit(OK if works else USAGE)


@main.command(short_help="Write a target to fill in.")
@click.argument(
    "file", default="nnaudit_target.py", type=click.Path(dir_okay=False, path_type=Path)
)
def init(file: Path) -> None:
    """Write a commented target FILE to fill in (nnaudit_target.py)."""
    from importlib.resources import files

    if file.exists():
        stop(f"{file} exists already: name another file, as in `nnaudit init my_target.py`", USAGE)
    try:
        file.write_text(
            files("nnaudit.app").joinpath("templates", "target.py.txt").read_text("utf-8"), "utf-8"
        )
    except OSError as error:
        stop(f"{file} cannot be written: {error.strerror}", USAGE)
    click.echo(f"Wrote {file}. It runs as it is: `nnaudit {file}`; put your own model and data in.")


if __name__ == "__main__":
    main()
