"""Being the main program: what a script finds under python, and nothing of ours."""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from nnaudit.targets import callstack
from nnaudit.targets.set_order import compiled


def main_module(name: str, path: Path) -> types.ModuleType:
    """Return an empty module as Python makes it for the file at ``path``, to be executed in."""
    main = types.ModuleType(name)
    main.__dict__.update(
        __file__=str(path),
        __builtins__=builtins,
        __cached__=None,
        __loader__=SourceFileLoader(name, str(path)),
        __annotations__={},
    )
    return main


@dataclass(frozen=True)
class Invocation:
    """How a script is started: ``python FILE WORDS``, or ``python -m MODULE WORDS``.

    Attributes:
        path: the file, absolute.
        named: as the user named the file; a module's ``sys.argv[0]`` is its path.
        words: the script's own arguments.
        module: its name after ``-m``; empty for a file.
        start: the working folder.
    """

    path: Path
    named: str
    words: tuple[str, ...] = ()
    module: str = ""
    start: Path = field(default_factory=Path.cwd)

    @property
    def argv(self) -> list[str]:
        """What the script finds in ``sys.argv``."""
        return [str(self.path) if self.module else self.named, *self.words]

    def execute(self, main: types.ModuleType, run: Callable[..., Any] = callstack.run) -> None:
        """Execute the script in ``main``, each call of its by ``run``.

        Raises:
            BaseException: whatever the script raises.
        """
        if self.module:
            run(join_package, main, self.module)
        run(exec, compiled(self.path, main.__dict__), main.__dict__)


def join_package(main: types.ModuleType, module: str) -> None:
    """Give ``main`` what ``python -m module`` gives it; the packages above are imported.

    Raises:
        ImportError: there is no such module, or a package above it cannot be imported.
    """
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None:
        raise ImportError(f"No module named {module}")
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__dict__["__cached__"] = spec.cached


@contextmanager
def path_kept() -> Iterator[None]:
    """Import something of which the script is not to find a folder of its own in ``sys.path``."""
    before = list(sys.path)
    yield
    sys.path[:] = before


_FIRST: list[Any] = []
"""The first modules of the program's own: absl tells one that is executed again by its address."""

_MOST = 200


@contextmanager
def as_main(main: types.ModuleType, invoked: Invocation) -> Iterator[None]:
    """Make ``main`` the main module, as python would, with its own modules anew.

    ``python -m`` has the working folder on the path, and not the file's.
    """
    script = Path(os.path.realpath(invoked.path))
    folder = invoked.start if invoked.module else script.parent
    saved_argv, saved_path, saved_folder = sys.argv, list(sys.path), Path.cwd()
    mine = {
        name: module
        for name, module in list(sys.modules.items())
        if name in ("__main__", main.__name__) or _is_beside(module, folder)
    }
    for name in mine:
        del sys.modules[name]
    sys.modules["__main__"] = sys.modules[main.__name__] = main
    sys.argv = invoked.argv
    sys.path.insert(0, str(folder))
    os.chdir(invoked.start)
    try:
        yield
    finally:
        os.chdir(saved_folder)
        sys.argv = saved_argv
        sys.path[:] = saved_path
        for name, module in list(sys.modules.items()):
            if module is main or _is_beside(module, folder):
                del sys.modules[name]
                if "absl.flags" in sys.modules and len(_FIRST) < _MOST:
                    _FIRST.append(module)
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
