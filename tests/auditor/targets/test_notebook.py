"""The cells of a notebook make a script."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from nnaudit.errors import TargetError
from nnaudit.targets.definitions import form_of
from nnaudit.targets.notebook import script_of
from nnaudit.targets.source import source_of


def notebook(folder: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, cells)]
    )
    path = folder / "train.ipynb"
    nbformat.write(made, path)
    return path


def test_cells_come_one_after_the_other(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(script_of(notebook(tmp_path, "x = 1", "y = x + 1\n'%not magic'")), names)
    assert names["y"] == 2
    assert callable(names["display"])


@pytest.mark.parametrize(
    ("cell", "left"),
    [
        ("%matplotlib inline\nx = 1", 1),
        ("!pip install torch\nx = 1", 1),
        ("if True:\n    !ls\nx = 1", 1),
        ("x = !ls", None),
        ("%%time\nx = 1", 1),
        ("%%bash\nrm -r /\nx = 2", 0),
        ("torch.save?\nx = 1", 1),
        ('x = """\n%d\n"""', "\n%d\n"),
    ],
)
def test_what_only_ipython_understands_is_left_out(tmp_path: Path, cell: str, left: object) -> None:
    names: dict[str, object] = {"x": 0}
    exec(script_of(notebook(tmp_path, cell)), names)
    assert names["x"] == left


def test_a_notebook_that_trains_is_a_script(tmp_path: Path) -> None:
    path = notebook(tmp_path, "import torch", "for x in data:\n    train(x)")
    assert form_of(path) == "script"
    (line,) = [call.line for call in source_of(path).calls if call.name == "train"]
    assert source_of(path).lines[line - 1] == "    train(x)"


def test_what_is_no_notebook_is_said(tmp_path: Path) -> None:
    path = tmp_path / "train.ipynb"
    path.write_text("print('hello')")
    with pytest.raises(TargetError, match=r"train\.ipynb cannot be read .*this is no notebook"):
        form_of(path)
