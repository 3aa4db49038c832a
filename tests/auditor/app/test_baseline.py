import math

import pytest

from nnaudit.app.baseline import compare
from nnaudit.report import (
    Change,
    Environment,
    Kind,
    Numbers,
    Report,
    Result,
    Status,
    Table,
    TargetInfo,
    Tool,
    totals_of,
)
from nnaudit.reports import outline


def result(code="A101", status="fail", **fields):
    plain = {"name": "some-check", "family": "A", "kind": Kind.EXACT, "message": "A message."}
    return Result(code=code, status=Status(status), **(plain | fields))


def report(*results, path="train.py", seconds=1.0, threads=2):
    return Report(
        tool=Tool(version="0.1.0", seed=0, preset="full", created="2026-01-01T00:00:00+00:00"),
        environment=Environment(device="cpu", threads=threads),
        target=TargetInfo(name=path.split("/")[-1], path=path),
        results=results,
        totals=totals_of(results, steps=1, seconds=seconds),
    )


def change(before, now):
    old = [] if before is None else [before]
    return compare([report(now)], [report(*old)], "old.json")[0].results[0].change


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, "fail", Change.NEW),
        ("pass", "warn", Change.NEW),
        ("skip", "fail", Change.NEW),
        ("inconclusive", "note", Change.NEW),
        ("error", "fail", Change.NEW),
        ("fail", "error", Change.NEW),
        ("fail", "fail", Change.UNCHANGED),
        ("error", "error", Change.UNCHANGED),
        ("warn", "fail", Change.WORSE),
        ("fail", "note", Change.MILDER),
        ("fail", "pass", Change.FIXED),
        ("error", "pass", Change.FIXED),
        ("warn", "inconclusive", Change.UNJUDGED),
        ("warn", "skip", Change.UNJUDGED),
        ("pass", "pass", None),
        ("pass", "skip", None),
        (None, "pass", None),
    ],
)
def test_a_result_is_compared_by_its_status(before, now, expected):
    assert change(before and result(status=before), result(status=now)) is expected


def test_another_module_is_another_fault_unless_the_baseline_told_of_it():
    old = result(module="net.a", message="net.a and net.b get no gradient")
    assert change(old, result(module="net.a")) is Change.UNCHANGED
    assert change(old, result(module="net.b")) is Change.UNCHANGED
    assert change(old, result(module="net.c")) is Change.NEW
    several = result(module="net.a", modules=("net.a", "net.c"))
    assert change(old, several) is Change.NEW
    assert change(several, several) is Change.UNCHANGED
    table = Table(title="t", columns=("module",), rows=(("net.c",),))
    assert change(result(module="net.a", evidence=(table,)), result(module="net.c")) is (
        Change.UNCHANGED
    )


def test_a_finding_whose_suppression_is_gone_is_new():
    assert change(result(suppressed="on purpose"), result()) is Change.NEW
    assert change(result(), result(suppressed="on purpose")) is None


def test_only_new_and_more_severe_findings_may_fail_a_build():
    old = report(result("A101"), result("B101", "warn"))
    new = report(result("A101"), result("B101"), result("C101"))
    compared = compare([new], [old], "old.json")[0]
    assert [r.code for r in compared.results if r.is_new] == ["B101", "C101"]
    assert all(r.is_new for r in new.results)


def test_what_was_not_asked_this_time_is_named():
    compared = compare([report(result("B101"))], [report(result("A101"))], "old.json")[0]
    assert compared.baseline.unasked == ("A101 some-check",)


@pytest.mark.parametrize(
    ("path", "found"),
    [("a/train.py", True), ("./a/train.py", True), ("/home/me/a/train.py", True), ("b.py", False)],
)
def test_a_target_is_found_by_its_path_or_by_its_name(path, found):
    baseline = [report(result(), path="a/train.py"), report(path="c.py")]
    compared = compare([report(result(), path=path)], baseline, "old.json")[0]
    assert (compared.results[0].change is Change.UNCHANGED) is found
    assert ("no report of this target" in compared.baseline.remark) is not found


def test_of_two_of_one_name_only_the_path_decides():
    baseline = [report(result(), path="a/train.py"), report(path="b/train.py")]
    compared = compare([report(result(), path="c/train.py")], baseline, "old.json")[0]
    assert compared.results[0].change is Change.NEW


def test_what_takes_much_longer_on_the_same_machine_is_slower():
    old = report(result(seconds=3.0), seconds=4.0)
    new = report(result(seconds=9.0), seconds=10.0)
    slower = compare([new], [old], "old.json")[0].baseline.slower
    assert [(item.name, item.before, item.now) for item in slower] == [
        ("the whole audit", 4.0, 10.0),
        ("A101 some-check", 3.0, 9.0),
    ]


def test_noise_and_another_machine_make_nothing_slower():
    old = report(result(seconds=0.1), seconds=4.0)
    assert compare([report(result(seconds=0.9), seconds=6.0)], [old], "x")[0].baseline.slower == ()
    elsewhere = compare([report(result(seconds=99), seconds=99, threads=8)], [old], "x")[0].baseline
    assert elsewhere.slower == ()
    assert "another machine" in elsewhere.remark


def test_what_was_not_judged_before_is_not_slower():
    old, new = report(result(status="inconclusive")), report(result(status="pass", seconds=60.0))
    assert compare([new], [old], "old.json")[0].baseline.slower == ()


def measured(value, noise, code="FIT103", name="mean loss"):
    numbers = Numbers(title="t", values={name: value, "steps": 300}, noise={name: noise})
    return result(code, "pass", evidence=(numbers,))


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        ((0.40, 0.01), (0.40, 0.01), False),
        ((0.40, 0.01), (0.45, 0.01), False),  # 3.5 errors of the difference
        ((0.40, 0.01), (0.46, 0.01), True),  # 4.2
        ((0.40, 0.01), (0.30, 0.001), True),
        ((0.40, 0.0), (0.41, 0.0), True),
        ((0.40, math.inf), (9.0, 0.01), False),
        ((0.40, math.nan), (9.0, 0.01), False),
    ],
)
def test_a_number_moved_when_it_is_beyond_the_noise_of_both(before, now, moved):
    old, new = report(measured(*before)), report(measured(*now))
    found = compare([new], [old], "old.json")[0].baseline.moved
    assert [item.name for item in found] == (["FIT103 some-check: mean loss"] if moved else [])


def test_numbers_that_moved_fail_nothing_and_are_told_with_their_noise():
    old, new = report(measured(0.4, 0.01)), report(measured(0.9, 0.02))
    compared = compare([new], [old], "old.json")[0]
    assert not any(r.is_new and r.status is not Status.PASS for r in compared.results)
    told = {item.label: item.text for item in outline.since(compared)}
    assert told["changed"] == "FIT103 some-check: mean loss (0.4 +- 0.01, now 0.9 +- 0.02)"


def test_only_numbers_of_both_reports_and_times_of_one_machine_are_compared():
    clock = report(measured(0.1, 0.001, "PERF101", "step"))
    elsewhere = report(measured(0.9, 0.001, "PERF101", "step"), threads=8)
    assert compare([elsewhere], [clock], "old.json")[0].baseline.moved == ()
    loss = report(measured(0.1, 0.001), threads=8)
    assert len(compare([loss], [report(measured(0.9, 0.001))], "old.json")[0].baseline.moved) == 1
    assert compare([loss], [report(result())], "old.json")[0].baseline.moved == ()


def test_one_script_with_other_arguments_is_another_target():
    def called(*arguments, status="pass"):
        one = report(result(status=status))
        target = one.target.model_copy(update={"arguments": arguments})
        return one.model_copy(update={"target": target})

    baseline = [called("--lr", "1", status="fail"), called("--lr", "2")]
    changes = [
        compare([called("--lr", lr, status="fail")], baseline, "old.json")[0].results[0].change
        for lr in ("1", "2", "3")
    ]
    assert changes == [Change.UNCHANGED, Change.NEW, Change.NEW]
