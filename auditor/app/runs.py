"""The last audits of each target, kept to be looked at, compared and continued.

They lie in ``.nnaudit``, beside the project's pyproject.toml or .git, which git ignores; in the
user's cache where there is no project or it cannot be written; in ``NNAUDIT_CACHE`` where that is
set. Each target has a folder there, each audit of it one in that. The parent process writes them
when the audit is over. Must not import torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from nnaudit.app.output import write
from nnaudit.errors import UsageError
from nnaudit.report import Report, Result, Status
from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options
from nnaudit.reports.load import load
from nnaudit.state.files import project_of

KEPT = 10
"""Audits that are kept of each target."""

FOLDER = ".nnaudit"

_AGAIN = (Status.FAIL, Status.ERROR, Status.WARN, Status.INCONCLUSIVE)

_STAMP = "%Y-%m-%dT%H-%M-%S"
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?")


@dataclass(frozen=True, order=True)
class Run:
    """One audit that was kept. Runs of a target sort by their time."""

    name: str
    folder: Path

    @property
    def json(self) -> Path:
        """The report as data."""
        return self.folder / "report.json"

    @property
    def page(self) -> Path:
        """The report as one HTML file."""
        return self.folder / "report.html"


def keep(report: Report) -> Run | None:
    """Write ``report`` where the audits of its target are kept, and drop the oldest of too many.

    Returns None where no place can be written, which is no reason to fail an audit.
    """
    for base in _bases():
        with suppress(OSError, UsageError):
            folder = base / _folder_name(report.target.path or report.target.name)
            folder.mkdir(parents=True, exist_ok=True)
            _ignore(base)
            run = _new_run(folder)
            for name, path in (("json", run.json), ("html", run.page)):
                write(path, FORMATS[name]([report], Options()))
            for old in sorted(_runs_in(folder))[:-KEPT]:
                _remove(old)
            return run
    return None


def history(target: str) -> list[Run]:
    """Return the audits of the file ``target`` that were kept, the latest last."""
    return sorted(run for base in _bases() for run in _runs_in(base / _folder_name(target)))


def latest(target: str | None = None) -> Run:
    """Return the last audit of ``target``; without one, of any target of this project.

    Raises:
        UsageError: none was kept.
    """
    found = history(target) if target is not None else _of_this_project()
    if not found:
        of = f" of {target}" if target else ""
        raise UsageError(f"no audit{of} was kept: run `nnaudit {target or 'train.py'}` first")
    return max(found)


def _of_this_project() -> list[Run]:
    """Return the audits that lie in the project; in the cache of all projects, those from here."""
    for base in _bases():
        folders = _folders_in(base)
        if base == _shared():
            here = {_folder_name(str(file)) for file in Path.cwd().iterdir() if file.is_file()}
            folders = [folder for folder in folders if folder.name in here]
        if found := [run for folder in folders for run in _runs_in(folder)]:
            return found
    return []


def pair(old: str | None, new: str | None) -> tuple[Path, Path]:
    """Return the two JSON reports that are meant: an earlier and a later one.

    Without ``new``, the later one is the last audit; without ``old`` the earlier is the audit of
    the same target before it. ``old`` may be a target: then these are its last two audits.

    Raises:
        UsageError: fewer audits were kept.
    """
    if old is not None and new is not None:
        return Path(old), Path(new)
    if old is not None and old.endswith(".json"):
        return Path(old), latest().json
    run = latest(old)
    *earlier, _ = before(run)
    if not earlier:
        raise UsageError("only one audit of this target was kept: there is nothing to compare")
    return earlier[-1].json, run.json


def before(run: Run) -> list[Run]:
    """Return the audits of a target up to ``run``, that one last."""
    return [other for other in sorted(_runs_in(run.folder.parent)) if other <= run]


def unpassed(target: str) -> tuple[str, ...]:
    """Return the checks of ``target`` whose last answer was no pass; what is skipped passed.

    An audit may have asked a few only, so each check's answer is that of the last audit that asked
    it.

    Raises:
        UsageError: what was kept is no report.
    """
    last: dict[str, Result] = {}
    for run in history(target):
        for report in load(run.json):
            last.update({result.code: result for result in report.results})
    return tuple(
        code for code, result in last.items() if result.status in _AGAIN and not result.suppressed
    )


def _bases() -> Iterator[Path]:
    """Yield the places for runs, the preferred first."""
    if chosen := os.environ.get("NNAUDIT_CACHE"):
        yield Path(chosen)
        return
    with suppress(OSError):  # the working folder may be gone
        if (project := project_of(Path.cwd())) is not None:
            yield project / FOLDER
    if (shared := _shared()) is not None:
        yield shared


def _shared() -> Path | None:
    """Return the user's cache, where audits of all projects lie; None where there is no home."""
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "nnaudit"
    return None


def _folder_name(target: str) -> str:
    """Return a name that no two files share: their own, and a digest of where they lie."""
    path = Path(target).absolute()
    digest = hashlib.sha256(os.fsencode(os.path.normpath(path))).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:60]}-{digest}"


def _ignore(base: Path) -> None:
    """Have git ignore all that lies here."""
    file = base / ".gitignore"
    if base.name == FOLDER and not file.exists():
        file.write_text("*\n", encoding="utf-8")


def _new_run(folder: Path) -> Run:
    """Make a folder for one more run; two may end in the same second."""
    stamp = datetime.now(UTC).strftime(_STAMP)
    for number in count():
        name = f"{stamp}.{number}" if number else stamp
        with suppress(FileExistsError):
            (folder / name).mkdir()
            return Run(name, folder / name)
    raise AssertionError("count() has no end")


def _runs_in(folder: Path) -> list[Run]:
    found = [Run(inner.name, inner) for inner in _folders_in(folder) if _NAME.fullmatch(inner.name)]
    return [run for run in found if run.json.is_file()]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [inner for inner in folder.iterdir() if inner.is_dir()]
    except OSError:
        return []


def _remove(run: Run) -> None:
    """Remove what we wrote, and the folder if nobody put anything else there."""
    with suppress(OSError):
        run.json.unlink(missing_ok=True)
        run.page.unlink(missing_ok=True)
        run.folder.rmdir()
