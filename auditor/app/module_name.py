"""Where the module that ``python -m NAME`` would run lies, found without running anything."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from nnaudit.errors import UsageError


def file_of(module: str) -> str:
    """Return the file that ``python -m module`` runs, by a short path if it lies in this folder.

    The packages above it are not imported, as Python itself would do: the user's code runs in a
    child process only.

    Raises:
        UsageError: there is no such module, or it is not a file of Python source.
    """
    spec = _spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec(f"{module}.__main__")
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError(
            f"-m {module}: no such module of Python source in this folder or among the installed "
            "ones; name it as after `python -m`, with dots and without .py"
        )
    file = Path(spec.origin)
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _spec(module: str) -> ModuleSpec | None:
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, path) if path is not None and part else None
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        path = None if locations is None else list(locations)
    return spec
