import re
from xml.etree import ElementTree

import pytest

from nnaudit.app.baseline import compare
from nnaudit.report import Status
from nnaudit.reports.base import Options
from nnaudit.reports.junit import render

#: What Jenkins's schema allows of it; the xUnit plug-in refuses a file with anything else.
ALLOWED = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {
        "name", "tests", "failures", "errors", "skipped", "time", "timestamp", "file",
    },
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set(),
}  # fmt: skip


def parse(*reports, **options):
    return ElementTree.fromstring(render(reports, Options(**options)))


def outcomes(*reports, **options):
    cases = parse(*reports, **options).iter("testcase")
    return {case.get("name"): [child.tag for child in case] for case in cases}


def test_only_what_jenkins_knows_is_written(realistic, hostile):
    for element in parse(realistic, hostile).iter():
        assert element.attrib.keys() <= ALLOWED[element.tag]
        if "time" in element.attrib:
            assert re.fullmatch(r"\d+\.\d{3}", element.attrib["time"])


def test_a_common_reader_counts_as_we_do(realistic):
    junitparser = pytest.importorskip("junitparser")
    read = junitparser.JUnitXml.fromstring(render([realistic], Options()).encode())
    assert (read.tests, read.failures, read.errors) == (15, 2, 1)
    suite = next(iter(read))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (15, 2, 1, 4)
    case = next(case for case in suite if case.name == "LOSS101-double-activation")
    assert case.classname == "examples.mnist.train"
    assert case.result[0].message.startswith("The network ends in a softmax")
    assert "fix: Return the logits" in case.result[0].text


def test_every_status_has_its_outcome(make_report, make_result):
    results = [make_result(status.value, status) for status in Status]
    assert outcomes(make_report(*results)) == {
        "pass-some-check": [],
        "fail-some-check": ["failure"],
        "warn-some-check": ["system-out"],
        "note-some-check": ["system-out"],
        "inconclusive-some-check": ["skipped"],
        "skip-some-check": ["skipped"],
        "error-some-check": ["error"],
    }


def test_a_warning_fails_where_warnings_fail_the_build(make_report, make_result):
    report = make_report(make_result("W", Status.WARN))
    failing = (Status.FAIL, Status.WARN)
    assert outcomes(report, failing=failing) == {"W-some-check": ["failure"]}


@pytest.mark.parametrize("status", [Status.FAIL, Status.ERROR])
def test_what_is_suppressed_or_known_is_skipped_with_the_reason(make_report, make_result, status):
    hidden = make_report(make_result("A", status, suppressed="on purpose"))
    assert outcomes(hidden) == {"A-some-check": ["skipped", "system-out"]}
    assert "Suppressed (on purpose): A message." in render([hidden], Options())
    known = make_report(make_result("A", status))
    known = compare([known], [known], "old.json")[0]
    assert outcomes(known) == {"A-some-check": ["skipped", "system-out"]}
    assert "unchanged since the baseline: A message." in render([known], Options())


def test_a_crash_shows_its_traceback(realistic):
    error = next(parse(realistic).iter("error"))
    assert error.text.rstrip().endswith("missing key head.weight")


def test_hostile_text_is_legal_xml_and_shown(hostile):
    text = render([hostile], Options())
    assert text.isascii()
    assert not re.search(r"&#(x0|0|[1-8]|1[124-9]|2[0-9]|3[01]|655\d\d);", text)
    failure = next(ElementTree.fromstring(text).iter("failure"))
    for part in ("\\x1b[31mred", "\\x00\\x07", "\\u202eevil", "<script>", "]]> -->"):
        assert part in failure.text
    assert len(text) < 200_000


def test_no_target_is_an_empty_list():
    assert render([], Options()).splitlines()[1].startswith('<testsuites name="nnaudit" tests="0"')
