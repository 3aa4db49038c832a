"""A notebook as the script that its cells make. Must not import torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SUFFIX = ".ipynb"

_DISPLAY = """\
try:
    from IPython.display import display
except ImportError:
    display = print
"""
"""What a notebook has without importing it."""

_MAGIC = re.compile(r"^(\s*)([%!?].*|.*\?)$")
_ASSIGNED_MAGIC = re.compile(r"^(\s*[\w, ]+=\s*)([%!].*)$")
_TRANSPARENT = ("%%time", "%%timeit", "%%capture", "%%prun")
"""Magics under which a cell is run as it is."""


def script_of(path: Path) -> str:
    """Return the code of the notebook at ``path``, cell by cell, as one script.

    What only IPython understands is left out: ``%matplotlib inline``, ``!pip install``, a cell of
    another language.

    Raises:
        ValueError: nbformat is not installed, or this is no notebook.
        OSError: it cannot be read.
    """
    try:
        import nbformat
    except ImportError:
        raise ValueError("a notebook is read by nbformat: `pip install nbformat`") from None
    try:
        text = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"this is no notebook: {error}") from None
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    numbered = (f"# --- cell {i}\n{_python(cell)}\n" for i, cell in enumerate(cells, 1))
    return "\n".join([_DISPLAY, *numbered])


def _python(cell: str) -> str:
    first, _, rest = cell.partition("\n")
    if first.startswith(_TRANSPARENT):
        cell = f"# {first}\n{rest}"
    elif first.startswith("%%"):
        return "\n".join(f"# {line}" for line in cell.splitlines())
    try:
        ast.parse(cell)
    except SyntaxError:
        return "\n".join(_without_magic(line) for line in cell.splitlines())
    return cell


def _without_magic(line: str) -> str:
    line = _ASSIGNED_MAGIC.sub(r"\1None  # \2", line)
    return _MAGIC.sub(r"\1pass  # \2", line)
