"""Every program of the zoo is answered as its docstring says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("zoo_run", Path(__file__).with_name("run.py"))
assert _SPEC is not None and _SPEC.loader is not None
run = importlib.util.module_from_spec(_SPEC)
sys.modules["zoo_run"] = run
_SPEC.loader.exec_module(run)


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", run.programs(), ids=_name)
def test_every_program_says_what_it_must_provoke(path: Path) -> None:
    wanted = [run.expected(path, form) for form in ("module", "script")]
    if path.parent.name == "faults":
        assert any(one.faulty for one in wanted)
    else:
        assert {one.kind for one in wanted} == {path.parent.name}


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    ready = run.Nursery()
    yield ready
    ready.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", run.programs(), ids=_name)
def test_program_is_answered_as_its_docstring_says(path: Path, nursery: Any) -> None:
    wanted = run.expected(path)
    if wanted.needs and not Path(wanted.needs).exists():
        pytest.skip(f"needs {wanted.needs}")
    outcome = nursery.audit(path, run.quick_wish(wanted))
    assert run.problems(outcome, wanted) == []
