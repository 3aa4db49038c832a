import pytest

from nnaudit.report import Kind, Location, Source, Status
from nnaudit.reports import outline
from nnaudit.reports.outline import LABELS, SEVERITY, findings, reasons, verdict, verdict_of_all


def codes(group):
    return [(f.result.code, [c.code for c in f.consequences]) for f in group]


def test_every_status_has_a_place_and_a_label():
    assert set(SEVERITY) == set(LABELS) == set(Status)


def test_consequences_stand_under_their_first_cause(make_report, make_result):
    report = make_report(
        make_result("A", Status.FAIL),
        make_result("B", Status.FAIL, cause="A"),
        make_result("C", Status.FAIL, cause="B"),
        make_result("D", Status.WARN, cause="A"),
        make_result("E", Status.WARN),
    )
    assert codes(findings(report, Status.FAIL)) == [("A", ["B", "C", "D"])]
    assert codes(findings(report, Status.WARN)) == [("E", [])]


def test_what_would_only_say_the_same_again_is_named_and_not_told(make_report, make_result):
    same = {"status": Status.ERROR, "message": "Your code raised."}
    report = make_report(
        make_result("A", **same),
        make_result("B", **same, cause="A"),
        make_result("C", status=Status.ERROR, message="Another.", cause="A"),
    )
    (finding,) = findings(report, Status.ERROR)
    assert [result.code for result in finding.told] == ["C"]
    assert finding.alike.split()[0] == "B"


@pytest.mark.parametrize("cause", ["GONE", "P", "B"])
def test_a_cause_that_is_no_failure_hides_nothing(make_report, make_result, cause):
    report = make_report(make_result("P"), make_result("B", Status.FAIL, cause=cause))
    assert codes(findings(report, Status.FAIL)) == [("B", [])]


def test_a_ring_of_causes_hides_nothing(make_report, make_result):
    report = make_report(
        make_result("A", Status.FAIL, cause="B"), make_result("B", Status.FAIL, cause="A")
    )
    assert codes(findings(report, Status.FAIL)) == [("A", []), ("B", [])]


def test_every_finding_is_shown_exactly_once(realistic, hostile):
    for report in (realistic, hostile):
        shown = [
            result.code
            for status in outline.FINDINGS
            for finding in findings(report, status)
            for result in (finding.result, *finding.consequences)
        ]
        assert sorted(shown) == sorted(r.code for r in report.with_status(*outline.FINDINGS))


def test_results_are_grouped_by_reason(make_report, make_result):
    report = make_report(
        make_result("A", Status.SKIP, message="no data"),
        make_result("B", Status.SKIP, message="no model"),
        make_result("C", Status.SKIP, message="no data"),
    )
    grouped = [(r.text, [x.code for x in r.results]) for r in reasons(report, Status.SKIP)]
    assert grouped == [("no data", ["A", "C"]), ("no model", ["B"])]


@pytest.mark.parametrize(
    ("statuses", "status", "headline"),
    [
        ("fail pass pass", "fail", "1 of 3 checks fails"),
        ("fail fail error", "fail", "2 of 3 checks fail and 1 crashed"),
        ("error pass", "error", "1 of 2 checks crashed"),
        ("warn pass warn", "warn", "No check fails, 2 of 3 checks warn"),
        ("pass pass", "pass", "All 2 checks pass"),
        ("pass", "pass", "The check passes"),
        ("pass note skip", "pass", "No check fails, 1 of 3 checks passes"),
        ("skip inconclusive", "inconclusive", "No verdict: none of 2 checks could be judged"),
        ("", "inconclusive", "No check was run"),
    ],
)
def test_verdict(make_report, make_result, statuses, status, headline):
    results = (make_result(f"T{i}", Status(s)) for i, s in enumerate(statuses.split()))
    judged = verdict(make_report(*results))
    assert (judged.status, judged.headline) == (status, headline)


@pytest.mark.parametrize(
    ("statuses", "headline"),
    [
        ("pass fail warn", "1 of 3 targets fails"),
        ("pass warn", "No target fails, 1 of 2 targets warns"),
        ("pass error", "1 of 2 targets crashed"),
        ("pass skip", "1 of 2 targets could not be judged"),
        ("pass pass", "All 2 targets pass"),
        ("", "No target was audited"),
    ],
)
def test_verdict_of_several_targets_is_that_of_the_worst(
    make_report, make_result, statuses, headline
):
    reports = [make_report(make_result(status=Status(s))) for s in statuses.split()]
    assert verdict_of_all(reports).headline == headline


def test_numbers_of_results_are_followed_by_the_right_word():
    assert [outline.tallied(Status.WARN, number) for number in (1, 2)] == ["warning", "warnings"]
    assert [outline.tallied(status, 3) for status in (Status.FAIL, Status.SKIP, Status.NOTE)] == [
        "fail",
        "skipped",
        "notes",
    ]


def test_what_explains_others_is_mended_first_then_what_is_most_certain(make_report, make_result):
    report = make_report(
        make_result("A", Status.FAIL, kind=Kind.STATISTICAL),
        make_result("B", Status.FAIL, kind=Kind.EXACT),
        make_result("C", Status.FAIL, kind=Kind.STATISTICAL),
        make_result("D", Status.FAIL, cause="C"),
        make_result("E", Status.WARN),
    )
    assert codes(findings(report, Status.FAIL)) == [("C", ["D"]), ("B", []), ("A", [])]
    ordered = [finding.result.code for finding in outline.ordered(report)]
    assert ordered == ["C", "B", "A", "E"]


def test_each_family_has_a_score_of_what_was_answered(make_report, make_result):
    report = make_report(
        make_result("A1", family="A"),
        make_result("A2", Status.FAIL, family="A"),
        make_result("A3", Status.SKIP, family="A"),
        make_result("B1", Status.WARN, family="B", suppressed="by design"),
        make_result("C1", Status.NOTE, family="C"),
    )
    scores = [(s.family, s.passed, s.answered) for s in outline.scores(report)]
    assert scores == [("A", 1, 2), ("C", 0, 1)]


def test_source_is_quoted_without_the_indentation_it_shares(make_result):
    source = Source(first=9, lines=("    def f():", "\treturn 1", ""))
    result = make_result(location=Location(file="a.py", line=10), source=source)
    assert [(q.number, q.text, q.marked) for q in outline.quoted(result)] == [
        (9, "def f():", False),
        (10, "return 1", True),
        (11, "", False),
    ]
    assert outline.quoted(make_result(location=Location(file="a.py", line=10))) == ()
