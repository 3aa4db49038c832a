import json

from nnaudit.report import Status
from nnaudit.reports.base import Options
from nnaudit.reports.gitlab import render


def issues(*reports, **options):
    return json.loads(render(reports, Options(**options)))


def test_an_issue_has_all_that_gitlab_demands(realistic, hostile):
    found = issues(realistic, hostile)
    assert len({issue["fingerprint"] for issue in found}) == len(found)
    for issue in found:
        assert issue["description"]
        assert issue["check_name"]
        assert issue["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert not issue["location"]["path"].startswith("./")
        assert issue["location"]["lines"]["begin"] >= 1


def test_severities_paths_and_order(realistic):
    found = issues(realistic, folder="work")
    assert [(issue["check_name"], issue["severity"]) for issue in found] == [
        ("LOSS101", "critical"),
        ("MODE105", "major"),
        ("DATA110", "minor"),
        ("NORM102", "info"),
    ]
    assert found[0]["location"] == {"path": "work/examples/mnist/net.py", "lines": {"begin": 42}}


def test_nothing_found_is_an_empty_list(make_report, make_result):
    assert issues(make_report(make_result(), make_result("S", Status.SKIP))) == []


def test_two_audits_of_one_file_have_fingerprints_of_their_own_that_stay(make_report, make_result):
    def called(*arguments):
        one = make_report(make_result("A101", Status.FAIL))
        target = one.target.model_copy(update={"path": "train.py", "arguments": arguments})
        return one.model_copy(update={"target": target})

    def prints(*reports):
        return [issue["fingerprint"] for issue in issues(*reports)]

    small, large = called("--width", "8"), called("--width", "64")
    assert len(set(prints(small, large, small))) == 3
    assert prints(large) == prints(small, large)[1:]
    assert prints(small, large, small) == prints(small, large, small)
