"""The user's files, while their code runs: what protects them, and what may be written for real.

Must not import torch: a child process is protected before anything else is loaded.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from nnaudit.state import trackers
from nnaudit.state.figures import never_shown
from nnaudit.state.libraries import ERRORS_AS_THEY_ARE
from nnaudit.state.namespaces import is_under

WINDOWS = {"MPLBACKEND": "Agg"}
"""Environment variables that keep libraries from opening windows, and from waiting for them."""

FIRST_LAYER = "files"
"""The folder in scratch that stands for ``/`` where patched functions keep the user's files."""

PROJECT_MARKS = (".git", "pyproject.toml")
"""What lies in the uppermost folder of a project."""

_DOWNLOADS = {
    "TORCH_HOME": ("hub",),
    "HF_HOME": ("hub", "datasets", "xet"),
    "HF_HUB_CACHE": ("",),
    "HF_DATASETS_CACHE": ("",),
}
"""By variable, the folders below the one that it names that a library made for its downloads."""

_FULL = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EOVERFLOW}


class Protection(Protocol):
    """What keeps the user's files as they are."""

    label: str

    def fresh(self) -> AbstractContextManager[None]:
        """Begin with the user's files as they are, for the time of a ``with``.

        Another execution of a script must not find the checkpoints and run folders of the first.
        """
        ...

    def refuses(self, path: str) -> bool:
        """Whether it is this that keeps the program from writing ``path``."""
        ...


class Unprotected:
    """Whatever is written is written for real."""

    label = "off"

    def fresh(self) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def refuses(self, path: str) -> bool:
        """Refuse nothing."""
        return False


_IN_FORCE: list[Protection] = []


def protection() -> Protection | None:
    """Return what protects the user's files in this process now."""
    return _IN_FORCE[-1] if _IN_FORCE else None


@contextmanager
def protected(
    make: Callable[[], AbstractContextManager[Protection]],
) -> Iterator[Protection]:
    """Protect the user's files for the time of a ``with``, by what ``make`` makes.

    Where something protects them already, that does. Experiment trackers are silenced, too.
    """
    if _IN_FORCE:
        yield _IN_FORCE[-1]
        return
    with make() as made, _silenced():
        _IN_FORCE.append(made)
        try:
            yield made
        finally:
            _IN_FORCE.remove(made)


def places_of(path: Path) -> tuple[str, ...]:
    """Return the folders that an audit of the file at ``path`` is about.

    They are the working folder, the file's own, and the projects that the two lie in.
    """
    found: list[Path] = []
    for folder in (Path.cwd(), path.resolve().parent):
        found += filter(None, (folder, project_of(folder)))
    return tuple(dict.fromkeys(str(folder) for folder in found))


def project_of(folder: Path) -> Path | None:
    """Return the project that ``folder`` lies in: the nearest folder with a mark of one."""
    above = (folder, *folder.parents)
    return next((f for f in above if any((f / mark).exists() for mark in PROJECT_MARKS)), None)


def download_caches(places: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that hold nothing but downloads, which it would be rude to repeat.

    They are ``~/.cache``, and what ``XDG_CACHE_HOME`` names or PyTorch and Hugging Face make where
    their variables point. One that holds the user's home or any of ``places`` is no cache, nor is
    one that a variable puts into one of them.
    """
    named = [os.environ.get("XDG_CACHE_HOME", "")]
    for variable, parts in _DOWNLOADS.items():
        if os.environ.get(variable):
            named += [f"{os.environ[variable]}/{part}" for part in parts]
    home = Path("~").expanduser()
    usual = f"{home}/.cache"
    taken = [os.path.realpath(place) for place in places]
    found = []
    for folder in filter(None, (usual, *named)):
        real = os.path.realpath(folder)
        holds = any(is_under(place, real) for place in (os.path.realpath(home), *taken))
        inside = folder != usual and any(is_under(real, place) for place in taken)
        if Path(real).is_dir() and not holds and not inside:
            found.append(real)
    return tuple(dict.fromkeys(found))


def outside(text: str, scratch: str) -> str:
    """Return ``text`` with the user's names in place of those in the tree below ``scratch``."""
    return text.replace(f"{scratch}/{FIRST_LAYER}/", "/") if scratch else text


def real(places: Iterable[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """Return what is written for real: caches of downloads, and what the user allowed."""
    return (*download_caches(places), *(os.path.realpath(path) for path in allowed))


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the time of a ``with``, or unset those that are None."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep trackers from sending, figures from being shown, errors from being swallowed."""
    quiet = trackers.environment(tempfile.gettempdir())
    with variables({**quiet, **WINDOWS, **ERRORS_AS_THEY_ARE}), never_shown():
        yield


def explained(error: BaseException) -> str:
    """Return what a user can do about ``error``, where it is the protection's doing."""
    if not isinstance(error, OSError) or not _IN_FORCE or isinstance(_IN_FORCE[-1], Unprotected):
        return ""
    name = str(Path(os.fsdecode(error.filename)).absolute()) if error.filename else "PATH"
    if error.errno in _FULL:
        why = "it does not fit into the scratch folder that nnaudit lets the program write to"
    elif error.errno in _REFUSED and error.filename and _IN_FORCE[-1].refuses(name):
        why = "nnaudit refused to write the file for real"
    else:
        return ""
    return f" ({why}; --allow-write {name} allows it)"
