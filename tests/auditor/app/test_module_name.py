"""The file of a module that is named as after ``python -m``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nnaudit.app.module_name import file_of
from nnaudit.errors import UsageError


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("project", "project/task"):
        Path(folder).mkdir()
        Path(folder, "__init__.py").write_text("raise SystemExit('imported')")
    for name in ("project/train.py", "project/task/__main__.py", "alone.py"):
        Path(name).touch()


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("alone", "alone.py"),
        ("project.train", "project/train.py"),
        ("project.task", "project/task/__main__.py"),
        ("project.task.__main__", "project/task/__main__.py"),
    ],
)
def test_a_module_is_found_as_python_finds_it_and_not_imported(module: str, file: str) -> None:
    assert file_of(module) == file
    assert "project" not in sys.modules


def test_an_installed_module_is_named_in_full() -> None:
    assert Path(file_of("pytest")).is_absolute()


@pytest.mark.parametrize(
    "module", ["nowhere", "project", "project.nowhere", "alone.more", "alone.py", "", ".", "math"]
)
def test_what_cannot_be_run_is_refused(module: str) -> None:
    with pytest.raises(UsageError, match="no such module"):
        file_of(module)
