"""Every program of the zoo is answered as its docstring says, in parts and as the script it is.

To keep CI short, :func:`_wish` says what is asked, and :func:`_forms` in which form a fault or a
near miss is audited. Everything, with all checks, is

    python tests/zoo/run.py --form both
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnaudit.checks.registry import Registry

_SPEC = importlib.util.spec_from_file_location("zoo_run", Path(__file__).with_name("run.py"))
assert _SPEC is not None and _SPEC.loader is not None
run = importlib.util.module_from_spec(_SPEC)
sys.modules["zoo_run"] = run
_SPEC.loader.exec_module(run)

CODES = {check.code for check in Registry.load().checks}


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", run.programs(), ids=_name)
def test_every_program_says_what_it_must_provoke(path: Path) -> None:
    wanted = [run.expected(path, form) for form in run.FORMS]
    if path.parent.name == "faults":
        assert any(one.faulty for one in wanted)
    else:
        assert {one.kind for one in wanted} == {path.parent.name}
    assert {code for one in wanted for code in (*one.codes, *one.also)} <= CODES


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    ready = run.Nursery()
    yield ready
    ready.close()


TURNS = 24
"""Of so many programs, one is asked in both forms, and more than what it is there for."""


def _turn(path: Path) -> int:
    """Return the program's number among those of its kind."""
    return [one for one in run.programs() if one.parent == path.parent].index(path)


def _forms(path: Path) -> tuple[str, ...]:
    """Return the forms in which CI audits the program at ``path``.

    One form, in turns; the module form where the program is about a check that is neither of the
    headline battery nor cheap. Both, where the forms must say something else, and of the programs
    without a fault those whose turn it is.
    """
    wanted = {form: run.expected(path, form) for form in run.FORMS}
    if any(one.apart for one in wanted.values()):
        return tuple(run.FORMS)
    healthy = path.parent.name == "healthy"
    if not healthy and not set(wanted["module"].codes) <= {*run.HEADLINE, *run.CHEAP}:
        return ("module",)
    if path.parent.name != "faults" and _turn(path) % TURNS == 0:
        return tuple(run.FORMS)
    return (run.FORMS[_turn(path) % len(run.FORMS)],)


def _wish(path: Path, wanted: Any, form: str) -> Any:
    """Return what CI asks the program at ``path``.

    What it is there for: a fault or a near miss its own checks, a healthy one all that are quick.
    Whether a fault makes other checks name another cause, and what the checks that train say of a
    healthy program, takes most of the time: every :data:`TURNS` th program is asked, as a module.
    """
    wish = run.quick_wish(wanted, form)
    if _turn(path) % TURNS == 0 and form == "module":
        return wish
    if wanted.codes:
        return replace(wish, checks=wanted.codes, quick=False, extend=())
    if form == "module":
        return replace(wish, quick=True)
    training = set(run.TRAINING)
    return replace(wish, checks=tuple(code for code in wish.checks if code not in training))


def _programs() -> Iterator[Any]:
    """Yield what CI audits: of the faults that only a long training shows, every other one."""
    for path in run.programs():
        codes = set(run.expected(path, "module").codes)
        long = path.parent.name == "faults" and codes and codes <= set(run.TRAINING)
        left_out = [pytest.mark.exhaustive] if long and _turn(path) % 2 else []
        yield pytest.param(path, marks=left_out, id=_name(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", list(_programs()))
def test_program_is_answered_as_its_docstring_says(path: Path, nursery: Any) -> None:
    outcomes, found = {}, []
    for form in _forms(path):
        wanted = run.expected(path, form)
        if wanted.needs and not Path(wanted.needs).exists():
            pytest.skip(f"needs {wanted.needs}")
        outcomes[form] = nursery.audit(path, _wish(path, wanted, form))
        found += [f"{form} form: {line}" for line in run.problems(outcomes[form], wanted)]
    if len(outcomes) > 1:
        found += run.differences(outcomes["module"], outcomes["script"], run.consequences(path))
    assert found == []


def test_a_difference_between_the_forms_is_told() -> None:
    def answering(**statuses: str) -> Any:
        results = [{"code": code, "status": status} for code, status in statuses.items()]
        return run.Outcome("faults/some", results)

    module = answering(DATA101="fail", LOSS101="pass", SEED102="pass", INIT101="warn")
    script = answering(DATA101="pass", LOSS101="skip", SEED102="note", INIT101="warn")
    assert run.differences(module, script) == [
        "forms differ: DATA101: fail in module form, pass in script form"
    ]
    assert run.differences(module, script, {"DATA101"}) == []


def test_a_fault_is_missed_by_a_check_that_was_asked_and_no_other() -> None:
    wanted = run.Expected("fails", ("DATA101",))
    passed = run.Outcome("faults/some", [{"code": "DATA101", "status": "pass"}])
    assert run.problems(passed, wanted) == ["missed: DATA101 is pass"]
    assert run.problems(run.Outcome("faults/some", []), wanted) == []


def test_what_only_the_script_shows_is_asked_of_the_script(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text('"""A fault of its loop.\n\nzoo: healthy\nzoo script: fails MODE105\n"""\n')
    assert "MODE105" in run.quick_wish(run.expected(file, "script"), "script").checks
    file.write_text('"""A fault.\n\nzoo: fails MODE105\n"""\n')
    assert "MODE105" not in run.quick_wish(run.expected(file, "script"), "script").checks
