"""What is said while an audit goes on."""

from __future__ import annotations

import sys
import types

import pytest

from nnaudit import progress
from nnaudit.engine.job import Answered, Asking, Started
from nnaudit.engine.record import Record
from nnaudit.progress import Progress
from nnaudit.report import Environment, Kind, Result, Status, TargetInfo

DETAILS = {"code": "DATA101", "name": "finite-values", "family": "DATA", "kind": Kind.EXACT}


def said(capsys: pytest.CaptureFixture[str], status: Status, *, findings: bool = False) -> str:
    record = Record()
    events = (
        Started(target=TargetInfo(name="net"), environment=Environment(), questions=()),
        Asking(code="DATA101"),
        Answered(result=Result(**DETAILS, status=status, message="[red]2\x1b NaN.")),
    )
    with Progress("train.py", findings=findings) as shown:
        for event in events:
            shown.take(event, record)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_quick_audit_says_nothing_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said(capsys, Status.FAIL) == ""


def test_a_long_one_says_now_and_then_where_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert "train.py: 0 of 0 checks answered, now DATA101" in said(capsys, Status.PASS)


@pytest.mark.parametrize(
    ("probe", "shown"),
    [("EpochOrder", "measuring epoch order"), ("the first step", "the first step")],
)
def test_a_measurement_is_told_in_words(probe: str, shown: str) -> None:
    assert progress._spelled(probe) == shown


def test_findings_are_told_as_they_come_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, Status.FAIL, findings=True)
    assert told == "  train.py: fail DATA101 finite-values: [red]2\\x1b NaN.\n"
    assert said(capsys, Status.PASS, findings=True) == ""


class Cell:
    """A notebook that displays one line, as IPython would."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw and display_id
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.shown.append(data["text/plain"])


def test_a_notebook_shows_one_line_that_is_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell()
    ipython = types.ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "display", cell.display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(progress, "_BLINK", 0.0)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert said(capsys, Status.PASS) == ""
    assert cell.shown == ["train.py: 0 of 0 checks, now DATA101", ""]
