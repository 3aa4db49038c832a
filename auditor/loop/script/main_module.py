"""Being the main program: what a script finds under python, and nothing of ours."""

from __future__ import annotations

import builtins
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def main_module(name: str, path: Path) -> types.ModuleType:
    """Return an empty module as Python makes it for the file at ``path``, to be executed in."""
    main = types.ModuleType(name)
    main.__dict__.update(__file__=str(path), __builtins__=builtins, __cached__=None)
    return main


@contextmanager
def as_main(main: types.ModuleType, path: Path, argv: list[str], start: Path) -> Iterator[None]:
    """Make ``main`` the main module, as ``python path argv`` would, with its own modules anew."""
    folder = path.parent
    saved_argv, saved_path, saved_folder = sys.argv, list(sys.path), Path.cwd()
    mine = {
        name: module
        for name, module in list(sys.modules.items())
        if name in ("__main__", main.__name__) or _is_beside(module, folder)
    }
    for name in mine:
        del sys.modules[name]
    sys.modules["__main__"] = sys.modules[main.__name__] = main
    sys.argv = [str(path), *argv]
    sys.path.insert(0, str(folder))
    os.chdir(start)
    try:
        yield
    finally:
        os.chdir(saved_folder)
        sys.argv = saved_argv
        sys.path[:] = saved_path
        for name, module in list(sys.modules.items()):
            if module is main or _is_beside(module, folder):
                del sys.modules[name]
        sys.modules.update(mine)


def _is_beside(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return (
        isinstance(file, str)
        # Normalised: of what was found by way of "../..", the folder is only the beginning.
        and os.path.normpath(file).startswith(f"{folder}/")
        and "site-packages" not in file
        and not getattr(module, "__name__", "").startswith("nnaudit")
    )
