import json

import pytest

from nnaudit.reports.badge import render
from nnaudit.reports.base import Options


@pytest.mark.parametrize(
    ("statuses", "message", "color"),
    [
        (("pass", "pass", "skip"), "2 pass", "brightgreen"),
        (("pass", "warn"), "1 warning", "yellow"),
        (("fail", "fail", "warn"), "2 fail", "red"),
        (("error", "pass"), "1 crashed", "red"),
        (("inconclusive", "skip"), "no verdict", "lightgrey"),
    ],
)
def test_it_says_the_verdict_in_a_word(make_report, make_result, statuses, message, color):
    results = (make_result(f"A10{number}", status) for number, status in enumerate(statuses))
    badge = json.loads(render([make_report(*results)], Options()))
    assert badge == {"schemaVersion": 1, "label": "nnaudit", "message": message, "color": color}


def test_several_targets_have_one_badge(make_report, make_result):
    reports = [make_report(make_result("A101", "fail")), make_report(make_result("A101"))]
    assert json.loads(render(reports, Options()))["message"] == "1 fail"
    assert json.loads(render([], Options()))["message"] == "no verdict"
