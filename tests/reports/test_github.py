import re

from nnaudit.app.baseline import compare
from nnaudit.report import Location, Status
from nnaudit.reports.base import Options
from nnaudit.reports.github import LIMIT, render

COMMAND = re.compile(r"^::(error|warning|notice) file=[^,:]*,line=\d+,title=[^,:]*::.+$")


def lines(*reports):
    return render(reports, Options()).splitlines()


def test_annotations_are_worst_first_at_their_lines(realistic):
    shown = lines(realistic)
    assert [line.split(" ")[0] for line in shown[:4]] == [
        "::error",
        "::error",
        "::warning",
        "::notice",
    ]
    assert shown[0].startswith(
        "::error file=examples/mnist/net.py,line=42,title=nnaudit LOSS101 double-activation::"
    )
    assert "Fix: Return the logits" in shown[0]
    assert "Leads to FIT101 tiny-subset-overfit." in shown[0]
    assert shown[4] == "nnaudit: examples/mnist/train.py: 2 of 15 checks fail and 1 crashed"


def test_ten_are_annotated_and_one_line_names_the_rest(make_report, make_result):
    results = [make_result(f"W{i}", Status.WARN) for i in range(9)]
    results += [make_result(f"F{i}", Status.FAIL) for i in range(4)]
    shown = lines(make_report(*results))
    assert len(shown) == LIMIT + 2
    assert all(COMMAND.match(line) for line in shown[:LIMIT])
    assert [line.split(" ")[0] for line in shown[:5]] == ["::error"] * 4 + ["::warning"]
    assert shown[-1] == (
        "nnaudit: 3 more without an annotation: W6 some-check, W7 some-check, W8 some-check"
    )


def test_nothing_can_end_a_command_or_begin_another(make_report, make_result):
    attack = "100%\r\n::error::x\n##[error]y, z: a\x00\u202e%0A"
    result = make_result(
        "##[error]",
        Status.FAIL,
        name=attack,
        message=attack,
        location=Location(file=attack, line=1),
    )
    shown = lines(make_report(result, *[make_result("##[x]", Status.WARN)] * LIMIT))
    assert len(shown) == LIMIT + 2
    assert all(COMMAND.match(line) for line in shown[:LIMIT])
    assert "100%25 ::error::x ##[error]y, z: a\\x00\\u202e%250A" in shown[0]
    assert not any("##[" in line for line in shown[LIMIT:])


def test_what_the_baseline_has_is_a_notice(make_report, make_result):
    report = make_report(make_result("A", Status.FAIL), make_result("B", Status.WARN))
    old = make_report(make_result("A", Status.FAIL))
    shown = lines(*compare([report], [old], "old.json"))
    assert [line.split(" ")[0] for line in shown[:2]] == ["::warning", "::notice"]
    assert "unchanged: A some-check" in shown[2]


def test_no_target_is_a_sentence():
    assert lines() == ["nnaudit: no target was audited."]
