"""Settings: flags, then ``NNAUDIT_*`` variables, then ``[tool.nnaudit]``, then defaults.

Must not import torch: the command line reads settings before it starts anything.
"""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nnaudit.errors import UsageError
from nnaudit.settings import Settings, words


@dataclass(frozen=True)
class Layer:
    """What one source says of the settings."""

    source: str
    values: Mapping[str, Any]


COMMAND_LINE = "the command line"


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    given_by: str = COMMAND_LINE,
    start: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in force for a run started in the folder ``start``.

    ``flags`` holds what ``given_by`` named, None for what it did not.

    Raises:
        UsageError: a source cannot be read, or holds an unknown key or a wrong value; the message
            names the source and, for a key, the nearest valid one.
    """
    merged: dict[str, Any] = {}
    for layer in layers(flags, given_by=given_by, start=start, environment=environment):
        merged |= layer.values
    return Settings(**merged)


def layers(
    flags: Mapping[str, Any] | None = None,
    *,
    given_by: str = COMMAND_LINE,
    start: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Layer, ...]:
    """Return what each source says, the weakest first; see :func:`load`."""
    start = start or working_folder()
    file, table = _pyproject(start)
    table = _underscored(table)
    variables = _variables(os.environ if environment is None else environment)
    named = {key: value for key, value in (flags or {}).items() if value not in (None, ())}
    found = (
        Layer(f"{file}, [tool.nnaudit]", table),
        Layer("the environment", variables),
        Layer(given_by, named),
    )
    for layer in found:
        _validate(layer.source, layer.values)
    if "targets" in table:
        table["targets"] = [_from(start, file.parent, name) for name in words(table["targets"])]
    return found


def working_folder() -> Path:
    """Return the folder that this process is in.

    Raises:
        UsageError: it has been removed.
    """
    try:
        return Path.cwd()
    except OSError:
        raise UsageError(
            "the working folder no longer exists: change to one that does, as with `cd ~`"
        ) from None


def _from(start: Path, folder: Path, name: str) -> str:
    """Say from ``start`` what ``name`` says from ``folder``, where the file that names it lies."""
    path, dashes, arguments = name.partition(" -- ")
    if folder.resolve() == start.resolve() or Path(path).is_absolute():
        return name
    return f"{os.path.relpath(folder / path, start)}{dashes}{arguments}"


def target_of(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the file that one of :attr:`Settings.targets` names, and its script's own words.

    Raises:
        UsageError: the words cannot be told apart, for want of a quotation mark.
    """
    path, _, arguments = text.partition(" -- ")
    try:
        return path.strip(), tuple(shlex.split(arguments))
    except ValueError as error:
        raise UsageError(f"targets = {text!r}: {error}") from None


def origin(key: str, found: Iterable[Layer]) -> str:
    """Return where the setting ``key`` comes from, in words."""
    name = f"NNAUDIT_{key.upper()}"
    sources = [layer.source for layer in found if key in layer.values] or ["default"]
    return sources[-1].replace("the environment", name)


def _validate(source: str, layer: Mapping[str, Any]) -> None:
    for key in layer:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise UsageError(f"{source}: unknown key {key.replace('_', '-')!r}{hint}")
    try:
        Settings(**layer)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{source}: {key} = {first['input']!r}: {reason}") from None


def _pyproject(start: Path) -> tuple[Path, dict[str, Any]]:
    """Return the nearest pyproject.toml upwards that has a [tool.nnaudit] table, and that table."""
    for folder in (start, *start.resolve().parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from None
        except RecursionError:
            raise UsageError(f"{file} cannot be read: its values are nested too deeply") from None
        tool = content.get("tool", {})
        if not isinstance(tool, dict):
            raise UsageError(f"{file}: tool must be a table, as in [tool.nnaudit]")
        table = tool.get("nnaudit")
        if table is not None:
            if not isinstance(table, dict):
                raise UsageError(f"{file}: tool.nnaudit must be a table")
            return file, table
    return start / "pyproject.toml", {}


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


_NOT_SETTINGS = frozenset({"NNAUDIT_CACHE"})


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix("NNAUDIT_").lower(): value
        for name, value in environment.items()
        if name.startswith("NNAUDIT_") and name not in _NOT_SETTINGS
    }
