"""What a child's events add up to."""

from __future__ import annotations

from pathlib import Path

from nnaudit.checks.registry import BrokenPlugin
from nnaudit.engine.job import Answered, Question, Started
from nnaudit.engine.record import Record
from nnaudit.engine.runner import plugin_errors
from nnaudit.report import (
    Environment,
    Kind,
    Location,
    Part,
    Report,
    Result,
    Source,
    Status,
    TargetInfo,
)
from nnaudit.settings import Settings

QUESTIONS = {"DATA102": (), "INIT101": ("DATA102",), "LOSS104": (), "STEP101": (), "FIT101": ()}
"""Codes, and the causes each may be a consequence of."""


def reported(**answers: tuple[Status, str]) -> Report:
    """The report of checks that answered with a status and a message each."""
    record = Record()
    details = {
        code: {"code": code, "name": "x", "family": code[:4], "kind": Kind.EXACT}
        for code in QUESTIONS
    }
    questions = tuple(
        Question(**details[code], question="Is it?", consequence_of=causes)
        for code, causes in QUESTIONS.items()
    )
    record.take(
        Started(target=TargetInfo(name="net"), environment=Environment(), questions=questions)
    )
    # Checks are asked in another order than they are reported in.
    for code, (status, message) in reversed(answers.items()):
        record.take(Answered(result=Result(**details[code], status=status, message=message)))
    return record.report("net.py", Settings(), seconds=1.0)


def causes(report: Report) -> dict[str, str]:
    return {result.code: result.cause for result in report.results}


def test_a_crash_that_many_checks_met_is_told_once() -> None:
    crash = (Status.ERROR, "Your code raised IndexError while computing the loss.")
    again = (Status.ERROR, "Your code raised IndexError while calling the model.")
    told = reported(LOSS104=crash, STEP101=again, FIT101=(Status.ERROR, "Another."))
    assert causes(told) == {"LOSS104": "", "STEP101": "LOSS104", "FIT101": ""}


def test_a_crash_that_a_failure_explains_belongs_to_it() -> None:
    crash = (Status.ERROR, "Your code raised IndexError.")
    told = reported(DATA102=(Status.FAIL, "Classes are missing."), INIT101=crash, LOSS104=crash)
    assert causes(told) == {"DATA102": "", "INIT101": "DATA102", "LOSS104": "INIT101"}


def test_advice_that_rests_on_something_broken_belongs_to_it() -> None:
    told = reported(DATA102=(Status.FAIL, "Wrong."), INIT101=(Status.NOTE, "Set the bias."))
    assert causes(told) == {"DATA102": "", "INIT101": "DATA102"}


def test_plug_ins_that_cannot_be_loaded_are_told_one_by_one() -> None:
    record = Record()
    for result in plugin_errors([BrokenPlugin("one", "gone"), BrokenPlugin("two", "gone")]):
        record.take(Answered(result=result))
    told = record.report("net.py", Settings(), seconds=1.0)
    assert [result.name for result in told.results] == ["one", "two"]


def test_passes_have_no_cause() -> None:
    told = reported(DATA102=(Status.FAIL, "Wrong."), INIT101=(Status.PASS, "Fine."))
    assert causes(told) == {"DATA102": "", "INIT101": ""}


def test_files_in_this_folder_are_named_from_here(tmp_path, monkeypatch) -> None:
    """A report is read, compared and put beside the source on other machines."""
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "a" / "train.py"), str(tmp_path.parent / "net.py")
    part = Part(name="model", description="", origin="user", location=Location(file=inside, line=1))
    target = TargetInfo(name="train", path=inside, parts=(part,))
    record = Record()
    record.take(Started(target=target, environment=Environment(), questions=()))
    for code, file in (("DATA101", inside), ("DATA102", outside)):
        result = Result(
            code=code, name="x", family="DATA", kind=Kind.EXACT, status=Status.FAIL, message="",
            location=Location(file=file, line=3),
        )  # fmt: skip
        record.take(Answered(result=result))
    report = record.report(inside, Settings(), seconds=1.0)
    assert report.target.path == "a/train.py"
    assert report.target.parts[0].location == Location(file="a/train.py", line=1)
    assert [r.location.file for r in report.results] == ["a/train.py", outside]


def test_a_finding_quotes_the_source_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "train.py"

    def quoted(line: int, status: Status = Status.FAIL) -> Source | None:
        record = Record()
        question = Question(
            code="A101", name="a", family="A", kind=Kind.EXACT, question="?", consequence_of=()
        )
        record.take(
            Started(target=TargetInfo(name="net"), environment=Environment(), questions=(question,))
        )
        place = Location(file=str(file), line=line)
        result = Result(
            code="A101", name="a", family="A", kind=Kind.EXACT, status=status, message="m",
            location=place,
        )  # fmt: skip
        record.take(Answered(result=result))
        return record.report("net.py", Settings(), seconds=1.0).results[0].source

    assert quoted(3) is None
    file.write_text("a = 1\nb = 2\nc = 3\nd = 4\ne = 5\nf = 6\n")
    assert quoted(4) == Source(first=2, lines=("b = 2", "c = 3", "d = 4", "e = 5", "f = 6"))
    file.write_text("a\n" + "b" * 1000)
    assert quoted(1) == Source(first=1, lines=("a", "b" * 300))
    assert quoted(1, Status.PASS) is None
    assert quoted(77) is None


def test_findings_are_explained_and_our_pages_have_an_address_where_there_is_one() -> None:
    details = {"name": "x", "family": "DATA", "kind": Kind.EXACT, "question": "Is it?"}
    why = {"Why": "So."}
    questions = (
        Question(code="DATA101", explanation=why, url="checks/DATA101.html", **details),
        Question(code="DATA102", explanation=why, url="https://house.example/1", **details),
    )
    record = Record()
    here = Environment()
    record.take(Started(target=TargetInfo(name="net"), environment=here, questions=questions))
    for code, status in (("DATA101", Status.FAIL), ("DATA102", Status.PASS)):
        answer = {"code": code, "status": status, "message": "m", **details}
        record.take(Answered(result=Result(**answer)))
    offline, plugin = record.report("net.py", Settings(), seconds=1.0).results
    assert (offline.url, offline.explanation) == ("", why)
    assert (plugin.url, plugin.explanation) == ("https://house.example/1", {})
    settings = Settings(docs_url="https://docs.example/nnaudit/")
    linked = record.report("net.py", settings, seconds=1.0).results[0]
    assert linked.url == "https://docs.example/nnaudit/checks/DATA101.html"
