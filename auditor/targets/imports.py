"""Whether a program may come to torch, told from its text and its project's. Must not import torch.

The file that is run may hold no more than the parsing of its arguments: what trains is in a module
beside it, in a package of the project, or in a library that is built on torch.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_BUILT_ON_TORCH = frozenset(
    {"torch", "lightning", "pytorch_lightning", "transformers", "accelerate", "ignite", "skorch",
     "fastai", "timm", "torchvision"}
)  # fmt: skip
"""The libraries by which the files of a project are known to train networks."""

_MENTION = re.compile(
    rf"^\s*(?:import|from)\s+(?:{'|'.join(sorted(_BUILT_ON_TORCH))})\b", re.MULTILINE
)

_MOST_FILES = 2_000
"""Files of a package that are looked at: more are no project's own."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def imports_any(tree: ast.Module, packages: Collection[str]) -> bool:
    """Whether the file, or something in it, imports one of the top-level ``packages``."""
    return any(name.partition(".")[0] in packages for name, _ in _imported(tree))


def imports_torch(tree: ast.Module) -> bool:
    """Whether the file itself imports torch, or a library that is known to be built on it."""
    return imports_any(tree, _BUILT_ON_TORCH)


def comes_to_torch(tree: ast.Module, path: Path) -> bool:
    """Whether the file at ``path`` imports torch itself, or what does: the project's or others'."""
    return imports_torch(tree) or any(
        _project_mentions(where) if where is not None else _is_built_on_torch(name)
        for name, where in _beside(tree, path)
    )


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the names that are imported anywhere, and how many dots stand before them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def _beside(tree: ast.Module, path: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield the top-level packages that are imported, and where those of the project are."""
    folder = path.resolve().parent
    for name, dots in dict.fromkeys(_imported(tree)):
        if dots:
            yield name, folder.parents[dots - 2] if dots > 1 else folder
            continue
        top = name.partition(".")[0]
        if top and top not in sys.stdlib_module_names:
            yield top, _in_project(top, folder)


def _in_project(name: str, folder: Path) -> Path | None:
    """Return the file or folder of the top-level module ``name``; None where it is installed."""
    spec = None
    with suppress(ImportError, ValueError):  # what hooks of the user's environment may raise
        spec = PathFinder.find_spec(name, [str(folder)]) or importlib.util.find_spec(name)
    if spec is None:
        return None
    place = (
        spec.origin
        if spec.has_location
        else next(iter(spec.submodule_search_locations or ()), None)
    )
    where = Path(place) if place is not None else None
    if where is None or _INSTALLED & set(where.parts):
        return None
    return where.parent if where.name == "__init__.py" else where


def _project_mentions(where: Path) -> bool:
    """Whether a module, or one beside it that it may import, or a file of a package names torch."""
    folder = where if where.is_dir() else where.parent
    files = folder.rglob("*.py") if where.is_dir() else folder.glob("*.py")
    for number, file in enumerate(files):
        if number > _MOST_FILES:
            break
        with suppress(OSError):
            if _MENTION.search(file.read_text(encoding="utf-8", errors="replace")):
                return True
    return False


@cache
def _is_built_on_torch(name: str) -> bool:
    """Whether the installed distribution of the top-level module ``name`` requires torch."""
    owners = importlib.metadata.packages_distributions().get(name, ())
    return any(
        re.match(r"torch\b(?!-)", requirement)
        for owner in owners
        for requirement in importlib.metadata.requires(owner) or ()
    )
