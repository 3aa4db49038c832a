"""Keeps matplotlib from opening windows, which would wait for somebody who is not there.

The environment decides for programs that leave the choice to matplotlib; here is who insists:
``matplotlib.use("TkAgg")`` and ``plt.switch_backend("qtagg")`` draw without a window.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_PYPLOT = "matplotlib.pyplot"
_WINDOWLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
"""matplotlib's backends that open no window; those called ``module://`` are a notebook's."""


@contextmanager
def never_shown() -> Iterator[None]:
    """Have every backend that opens windows replaced by one that does not, for a ``with``."""
    finder, before = _Finder(), sys.modules.get(_PYPLOT)
    if before is not None:
        finder.patch(before)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.restore()


class _Finder(importlib.abc.MetaPathFinder):
    """Patches pyplot as soon as it is imported."""

    def __init__(self) -> None:
        self._patched: list[tuple[Any, Callable[..., Any]]] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PYPLOT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader = spec.loader if spec else None
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.patch(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def patch(self, pyplot: Any) -> None:
        """Patch the module ``pyplot``."""
        switch = pyplot.switch_backend

        def switch_backend(name: Any) -> None:
            windowless = isinstance(name, str) and (
                name.lower() in _WINDOWLESS or name.startswith("module://")
            )
            switch(name if windowless else "agg")

        self._patched.append((pyplot, switch))
        pyplot.switch_backend = switch_backend

    def restore(self) -> None:
        """Undo it."""
        for pyplot, switch in self._patched:
            pyplot.switch_backend = switch
