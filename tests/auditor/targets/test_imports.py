"""How a program comes to torch when the file that is run does not import it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nnaudit.targets.imports import comes_to_torch

PROJECT = {
    "body.py": "import torch\n",
    "pkg/__init__.py": "",
    "pkg/engine/__init__.py": "",
    "pkg/engine/loop.py": "def fit():\n    from torch import nn\n",
    "plain/__init__.py": "import json\n",
}


def comes(folder: Path, text: str, at: str = "train.py") -> bool:
    for name, content in PROJECT.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    file = folder / at
    file.write_text(text)
    return comes_to_torch(ast.parse(text), file)


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "from transformers import Trainer",
        "from body import train",
        "from pkg.engine.loop import fit",
        "import pkg.engine",
        "import torchmetrics",  # what is installed and requires torch
    ],
)
def test_it_imports_what_does(tmp_path: Path, text: str) -> None:
    if "torchmetrics" in text:
        pytest.importorskip("torchmetrics")
    assert comes(tmp_path, text)


@pytest.mark.parametrize("text", ["from .engine import loop", "from ..body import train"])
def test_names_with_dots_are_looked_up_in_the_package(tmp_path: Path, text: str) -> None:
    assert comes(tmp_path, text, "pkg/train.py")


@pytest.mark.parametrize(
    "text", ["import json, os", "import numpy", "import no_such_module", "print('torch')"]
)
def test_nothing_that_it_imports_does(tmp_path: Path, text: str) -> None:
    assert not comes(tmp_path, text)


def test_a_package_of_the_project_without_torch_is_told(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    assert not comes(tmp_path / "below", "import plain")
