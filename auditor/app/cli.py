"""The command line. Never imports torch itself: a child process does, where it is needed."""

from __future__ import annotations

import inspect
import json
import os
import sys
import textwrap
import traceback
import webbrowser
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click
from click.shell_completion import CompletionItem

from nnaudit._version import __version__

if TYPE_CHECKING:
    from nnaudit.app.child import Interruption
    from nnaudit.engine.job import Job
    from nnaudit.engine.record import Record
    from nnaudit.report import Report
    from nnaudit.settings import Settings

OK, FINDINGS, USAGE, OWN_FAULT, USER_CRASH = range(5)
"""Exit codes: clean; findings; usage or unusable target; bug in nnaudit; user's code crashed."""


ARGUMENTS = "nnaudit.arguments"
"""Where click's context keeps the words after ``--``, which are the user's script's."""


_format_option = click.option(
    "--output-format",
    "formats",
    multiple=True,
    metavar="FORMAT[:PATH]",
    help="text, json, html, markdown, junit, sarif, github, gitlab; repeatable.",
)
_file_option = click.option(
    "-o",
    "--output-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report here.",
)


def _sandbox_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how the user's files are kept."""
    for option in (
        click.option(
            "--allow-write",
            multiple=True,
            metavar="PATH",
            help="Let the program write this file or folder for real; repeatable.",
        ),
        click.option(
            "--sandbox",
            type=click.Choice(["auto", "kernel", "python", "off"]),
            help="What keeps your files as they are (auto: the best that this machine allows).",
        ),
    ):
        command = option(command)
    return command


class DefaultGroup(click.Group):
    """A group in which ``nnaudit FILE`` means ``nnaudit check FILE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``check`` first unless the first word is a command, and keep what follows ``--``."""
        if "--" in args:
            split = args.index("--")
            args, ctx.meta[ARGUMENTS] = args[:split], args[split + 1 :]
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version", "-h"):
            args = ["check", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer files too: a target may stand where a command may."""
        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="file")]


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@click.group(
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    subcommand_metavar="TARGET | COMMAND ...",
)
@click.version_option(__version__, message="nnaudit %(version)s")
def main() -> None:
    """Audit a neural network's training program before the long run.

    nnaudit TARGET takes real training steps on the real device and answers precise questions: is
    the data shuffled, does a seed reproduce the run, is the first loss as expected, can a tiny
    subset be overfitted, ... TARGET is a training script, unmodified, or a Python file that defines
    build_model(), train_loader() and, if it has them, loss_fn, build_optimizer, val_loader;
    `nnaudit init` writes one to fill in.

    \b
    Exit codes: 0 clean; 1 findings; 2 usage, or a target that cannot be loaded;
    3 a bug in nnaudit; 4 the user's code crashed or ran out of budget before a verdict.
    """


@main.command()
@click.argument("targets", nargs=-1, shell_complete=_files)
@click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    help="Run only these checks: codes, families or names.",
)
@click.option("--ignore", multiple=True, metavar="CODES", help="Skip these checks.")
@click.option("--extend-select", multiple=True, metavar="CODES", help="Run these checks, too.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "full"]),
    help="quick: only checks that train for no more than a few steps.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Time limit per target: 60s, 2m. Checks that do not fit are inconclusive.",
)
@click.option("--check-timeout", metavar="TIME", help="End a check that hangs for so long (300s).")
@click.option("--seed", type=int, help="Seed of the audit (0).")
@click.option(
    "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (auto: the GPU if there is one)."
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["module", "script"]),
    help="Audit a file as module or script; its source decides by default.",
)
@click.option(
    "--loop",
    type=click.IntRange(1),
    metavar="N",
    help="Audit a script's N-th training loop; those before it run to their end.",
)
@click.option(
    "--nproc-per-node",
    type=click.IntRange(1),
    metavar="N",
    help="Start a script in N processes, as torchrun does, and ask the checks of DIST, too.",
)
@_sandbox_options
@click.option(
    "--keep-files",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Copy what the program wrote to this folder.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, help="Targets audited at once (1)."
)
@_format_option
@_file_option
@click.option(
    "--baseline",
    type=click.Path(dir_okay=False, path_type=Path),
    help="An earlier JSON report to compare with: only new findings fail.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["fail", "warn"]),
    help="The least severe finding that gives exit code 1 (fail).",
)
@click.option("--exit-zero", is_flag=True, help="Exit with 0 even with findings.")
@click.option("--view", is_flag=True, help="Open the HTML report in a browser.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour on the terminal.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the verdict and what failed.")
@click.option("-v", "--verbose", is_flag=True, help="All details, and the program's own output.")
@click.pass_context
def check(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Audit TARGETS (the default command)."""
    with _sentences():
        _check(list(targets), ctx.meta.get(ARGUMENTS, []), options)


def _check(paths: list[str], arguments: list[str], options: dict[str, Any]) -> None:
    from nnaudit import config
    from nnaudit.app import launch
    from nnaudit.app.child import Interruption
    from nnaudit.app.output import Output

    keys = (
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
    flags = {key: _flat(options[key]) for key in keys}
    if (launched := launch.processes()) is not None:
        flags["nproc_per_node"] = flags["nproc_per_node"] or launched
    settings = config.load({**flags, "allow_write": options["allow_write"]})
    chosen: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in paths]
    chosen = chosen or [config.target_of(text) for text in settings.targets]
    targets = [(path, (*own, *arguments)) for path, own in chosen]
    if not targets:
        _stop("no target: name a Python file, as in `nnaudit train.py`", USAGE)
    output = Output.parse(
        options["formats"],
        options["output_file"],
        color=options["color"],
        quiet=options["quiet"],
        verbose=options["verbose"],
        fail_on=settings.fail_on,
        sources=[path for path, _ in targets],
    )
    options["before"] = _baseline(options["baseline"])
    with Interruption() as interruption:
        reports, code = _audit_all(targets, settings, options, interruption)
        output.write(reports)
    if reports and (page := output.page(reports)) is not None:
        click.echo(f"HTML report with figures: {page}", err=True)
        if options["view"]:
            webbrowser.open(page.resolve().as_uri())
    sys.exit(OK if options["exit_zero"] and code == FINDINGS else code)


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


def _audit_all(
    targets: list[tuple[str, tuple[str, ...]]],
    settings: Settings,
    options: dict[str, Any],
    interruption: Interruption,
) -> tuple[list[Report], int]:
    """Audit every target; return the reports there are, in order, and the worst exit code.

    A target is a file and the words that its script is given.
    """
    from concurrent.futures import ThreadPoolExecutor

    from nnaudit.engine.job import Job

    jobs = min(options["jobs"], len(targets))
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def audit_one(target: tuple[str, tuple[str, ...]]) -> tuple[Report | None, int]:
        path, arguments = target
        job = Job(
            path=path,
            arguments=arguments,
            form=options["form"],
            settings=settings,
            threads=threads,
            keep=str(options["keep_files"] or ""),
        )
        return _audit_one(job, options["before"], interruption, options["verbose"], bar=jobs == 1)

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(audit_one, targets))
    reports = [report for report, _ in outcomes if report is not None]
    if interruption.signal:
        return reports, interruption.exit_code
    return reports, _worst([code for _, code in outcomes])


def _worst(codes: list[int]) -> int:
    """A target that could not be audited outweighs findings: it must not look like an answer."""
    return max(codes, key=(OK, FINDINGS, USER_CRASH, USAGE, OWN_FAULT).index)


def _audit_one(
    job: Job,
    compared: Callable[[Report], Report],
    interruption: Interruption,
    verbose: bool,
    *,
    bar: bool,
) -> tuple[Report | None, int]:
    import shlex

    from nnaudit.app import supervisor
    from nnaudit.app.progress import Progress
    from nnaudit.engine.record import RefusedError
    from nnaudit.reports.text import one_line

    progress: Any = Progress(job.path) if bar else nullcontext()
    try:
        with progress as shown:
            report, record = supervisor.audit(
                job,
                command=shlex.join(["nnaudit", *sys.argv[1:]]),
                on_event=shown.take if shown else lambda event, record: None,
                interruption=interruption,
            )
    except RefusedError as error:
        _tell(str(error))
        if error.detail and (verbose or error.exit_code == USER_CRASH):
            _quote(error.detail)
        return None, error.exit_code
    for remark in filter(None, (record.protection_remark, *record.remarks)):
        _tell(remark)
    if verbose and record.output:
        click.echo(f"--- output of {one_line(job.path)}", err=True)
        _quote(record.output)
        click.echo("---", err=True)
    report = compared(report)
    return report, _exit_code(report, record, job.settings)


def _exit_code(report: Report, record: Record, settings: Settings) -> int:
    from nnaudit.report import Status

    findings = {"fail": (Status.FAIL,), "warn": (Status.FAIL, Status.WARN)}[settings.fail_on]
    crash = _crash_sentence(record)
    if crash:
        _tell(crash)
    if any(result.is_new for result in report.with_status(*findings)):
        return FINDINGS
    crashes = {result.crash for result in report.with_status(Status.ERROR) if result.is_new}
    if "nnaudit" in crashes:
        return OWN_FAULT
    if crashes or crash or _no_verdict(report):
        return USER_CRASH
    return OK


def _crash_sentence(record: Record) -> str:
    """Say how the first training step failed; nothing when it did not."""
    from nnaudit.errors import FIRST_STEP

    if record.crashed is not None:
        where = record.crashed.location
        place = f"{where.file}:{where.line}: " if where else ""
        return f"{place}your code raised {record.crashed.message}"
    return record.known_fatal.get(FIRST_STEP, "")


def _no_verdict(report: Report) -> bool:
    """Whether too few checks came to an answer, as when the budget was too small for most."""
    return report.mostly_unanswered


@main.command("report")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_format_option
@_file_option
@click.option(
    "--baseline",
    type=click.Path(dir_okay=False, path_type=Path),
    help="An earlier JSON report to compare with.",
)
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto")
@click.option("-q", "--quiet", is_flag=True, help="Only the verdict and what failed.")
@click.option("-v", "--verbose", is_flag=True, help="All details.")
def report_command(
    file: Path,
    formats: tuple[str, ...],
    output_file: Path | None,
    baseline: Path | None,
    color: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Render the saved JSON report FILE again, in any format."""
    with _sentences():
        from nnaudit.app.output import Output
        from nnaudit.reports.load import load

        output = Output.parse(formats, output_file, color=color, quiet=quiet, verbose=verbose)
        compared = _baseline(baseline)
        output.write([compared(report) for report in load(file)])


@main.command()
@click.argument("selector", required=False, metavar="CODE|NAME")
@click.option("--all", "everything", is_flag=True, help="List all checks, one per line.")
def rule(selector: str | None, everything: bool) -> None:
    """Explain a check: why it matters, how it decides, how to fix what it finds."""
    with _sentences():
        from nnaudit.checks.registry import Registry

        registry = Registry.load()
        if everything or selector is None:
            for known in registry.checks:
                question = " ".join(known.documentation()["question"].split())
                click.echo(f"{known.code:8} {known.name:24}  {known.kind.value:12} {question}")
            return
        click.echo(_explained(registry.find(selector)))


def _explained(found: Any) -> str:
    sections = found.documentation()
    head = f"{found.code} {found.name} ({found.kind.value})\n\n{sections.pop('question')}"
    body = "\n\n".join(f"{name}:\n{_indented(text)}" for name, text in sections.items())
    options = "".join(f"\n    {name} = {value:g}" for name, value in found.options.items())
    table = (
        f'\n\nOptions, under [tool.nnaudit.thresholds."{found.code}"]:{options}' if options else ""
    )
    return f"{head}\n\n{body}{table}"


def _indented(text: str) -> str:
    return textwrap.indent(inspect.cleandoc(text), "    ")


@main.command("target")
@click.argument("file", shell_complete=_files)
@click.option("--device", default="cpu", metavar="NAME", help="Device to build the model on (cpu).")
@click.option(
    "--as",
    "form",
    type=click.Choice(["module", "script"]),
    help="Load the file as module or script.",
)
@click.option(
    "--loop",
    type=click.IntRange(1),
    metavar="N",
    help="Use a script's N-th training loop; those before it run to their end.",
)
@_sandbox_options
@click.pass_context
def target_command(
    ctx: click.Context,
    /,
    file: str,
    device: str,
    form: Literal["module", "script"] | None,
    loop: int | None,
    sandbox: str | None,
    allow_write: tuple[str, ...],
) -> None:
    """Show which model, data, loss, ... were found in FILE, and what is skipped without each."""
    with _sentences():
        from nnaudit import config
        from nnaudit.app import supervisor
        from nnaudit.engine.job import Job
        from nnaudit.engine.record import RefusedError

        arguments = tuple(ctx.meta.get(ARGUMENTS, ()))
        settings = config.load(
            {"device": device, "loop": loop, "sandbox": sandbox, "allow_write": allow_write}
        )
        job = Job(path=file, arguments=arguments, form=form, settings=settings)
        try:
            started = supervisor.inspect(job)
        except RefusedError as error:
            _stop(str(error), error.exit_code)
        click.echo(
            f"{started.target.name} ({started.target.form} form, on {started.environment.device})"
        )
        click.echo(f"  your files are protected by: {started.environment.sandbox}")
        for part in started.target.parts:
            where = f"  {part.location.file}:{part.location.line}" if part.location else ""
            origin = {"user": "yours", "default": "default", "absent": "missing"}[part.origin]
            disabled = f"; without it: no {', '.join(part.disables)}" if part.disables else ""
            click.echo(f"  {part.name:14} {origin:8} {part.description}{where}{disabled}")


@main.command("config")
def config_command() -> None:
    """Show the settings in force in this folder, and where each comes from."""
    with _sentences():
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


@main.command()
@click.argument(
    "file", default="nnaudit_target.py", type=click.Path(dir_okay=False, path_type=Path)
)
def init(file: Path) -> None:
    """Write a commented target FILE to fill in (nnaudit_target.py)."""
    from importlib.resources import files

    if file.exists():
        _stop(f"{file} exists already: name another file, as in `nnaudit init my_target.py`", USAGE)
    try:
        file.write_text(
            files("nnaudit.app").joinpath("templates", "target.py.txt").read_text("utf-8"), "utf-8"
        )
    except OSError as error:
        _stop(f"{file} cannot be written: {error.strerror}", USAGE)
    click.echo(f"Wrote {file}. It runs as it is: `nnaudit {file}`; put your own model and data in.")


class _sentences:  # noqa: N801
    """Turn every error into one sentence on stderr and the exit code that it stands for."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from nnaudit.errors import NnauditError, describe

        if isinstance(error, NnauditError):
            _stop(str(error), error.exit_code)
        if isinstance(error, BrokenPipeError):
            _without_reader()
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            _stop(f"{where}{error.strerror or error}", USAGE)
        if isinstance(error, Exception) and not isinstance(error, click.ClickException):
            *_, last = traceback.extract_tb(error.__traceback__)
            place = f"{Path(last.filename).name}:{last.lineno}"
            _stop(f"bug in nnaudit: {describe(error)} at {place}; please report it", OWN_FAULT)


def _without_reader() -> NoReturn:
    """End quietly: nobody reads standard output any more, as when it goes to ``head``."""
    # What is still in the buffer would be written, and raise, as Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(OK)


def _tell(message: str) -> None:
    """Say ``message`` on stderr, with nothing in it that a terminal or a CI log would obey."""
    from nnaudit.reports.text import one_line

    click.echo(f"nnaudit: {one_line(message)}", err=True)


def _quote(text: str) -> None:
    """Show on stderr what a program under audit has written, indented.

    So no line of it is one that a CI log obeys: ``::error::`` counts at a line's beginning only.
    """
    from nnaudit.reports.text import TEXT_LIMIT, visible

    for line in visible(text.rstrip(), TEXT_LIMIT).splitlines():
        click.echo(f"  {line}", err=True)


def _stop(message: str, code: int) -> NoReturn:
    _tell(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
