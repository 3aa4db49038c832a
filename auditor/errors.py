"""The errors nnaudit raises on purpose, each with the exit code it leads to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from nnaudit.report import Location

FIRST_STEP = "the first training step"
"""The stage in which the audit tries whether the target can be trained at all: what fails there is
told as the crash that it is."""


class NnauditError(Exception):
    """A problem that one sentence explains: what, where, what to do."""

    exit_code = 2


class UsageError(NnauditError):
    """A flag, a configuration key or a check code that does not exist or makes no sense."""


class TargetError(NnauditError):
    """The target cannot be loaded: missing, not Python, without a model."""


class BrokenTargetError(TargetError):
    """The user's code raised while the target was loaded: as in a script, before its first step."""

    exit_code = 4


class NeverStepsError(TargetError):
    """The program made an optimizer and called backward(), and the optimizer took no step."""


class UserCodeError(NnauditError):
    """The user's code raised while nnaudit ran it; ``original`` is what it raised."""

    exit_code = 4

    def __init__(self, doing: str, original: BaseException) -> None:
        """``doing`` completes "<exception> while ...", e.g. "computing the loss"."""
        self.doing = doing
        self.original = original
        super().__init__(f"{describe(original)} while {doing}")

    @property
    def location(self) -> Location | None:
        """The innermost line of the traceback that is the user's own."""
        return user_location(self.original)

    @property
    def module(self) -> Any:
        """The innermost module that was being called, as torch's own frames tell; None outside."""
        frames = [frame for frame, _ in traceback.walk_tb(self.original.__traceback__)]
        called = [f.f_locals.get("self") for f in frames if f.f_code.co_name == "_call_impl"]
        return called[-1] if called else None

    @property
    def traceback(self) -> str:
        """The traceback of the original error, without nnaudit's frames."""
        return user_traceback(self.original)


class UnfitError(UserCodeError):
    """The user's code raised over what nnaudit put in place of its own, and is not to blame."""


class RepeatError(UserCodeError):
    """The user's program raised when it was executed again, as it did not the first time.

    What it, or a library, remembers in the process keeps it from that, and is not to blame.
    """


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises in the block into a :class:`UserCodeError`."""
    try:
        yield
    except (NnauditError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeError(doing, error) from error


class OutOfBudgetError(NnauditError):
    """The time given with ``--budget`` is used up."""

    exit_code = 4


EXPLAIN: list[Callable[[BaseException], str]] = []
"""What adds to the description of an error that nnaudit has a part in; empty text otherwise."""


def describe(error: BaseException) -> str:
    """Return ``error`` as ``Type: first line of its message``, with what :data:`EXPLAIN` adds."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text + "".join(explain(error) for explain in EXPLAIN)


_PACKAGE = Path(__file__).resolve().parent
_OURS = (_PACKAGE, _PACKAGE.parent / "checks", _PACKAGE.parent / "reports")


@cache
def is_ours(filename: str) -> bool:
    """Whether ``filename`` is nnaudit's own source."""
    path = Path(filename)
    return any(path.is_relative_to(folder) for folder in _OURS)


def is_library(filename: str) -> bool:
    """Whether ``filename`` is an installed library's or Python's own source."""
    return (
        "site-packages" in filename
        or "dist-packages" in filename
        or filename.startswith("<")
        or f"{Path(traceback.__file__).parent}" in filename
    )


@cache
def is_user(filename: str) -> bool:
    """Whether ``filename`` is neither nnaudit's nor a library's source.

    Asked for every frame on the stack at every call of a loss function, hence remembered.
    """
    return not is_ours(filename) and not is_library(filename)


def user_location(error: BaseException) -> Location | None:
    """Return the innermost user frame of ``error``'s traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return Location(file=error.filename, line=error.lineno or 1)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user(f.filename)]
    return Location(file=frames[-1].filename, line=frames[-1].lineno or 1) if frames else None


def raised(what: object, at: Location | None) -> str:
    """Say ``what`` the user's code raised, and where."""
    place = f"{at.file}:{at.line}: " if at else ""
    return f"{place}your code raised {what}"


def user_traceback(error: BaseException) -> str:
    """Return ``error``'s traceback as text, with nnaudit's own frames left out."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_ours(f.filename)]
    head = ["Traceback (most recent call last):\n"] if frames else []
    lines = [*head, *traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines)
