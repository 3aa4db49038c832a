import json
import math
from pathlib import Path

import jsonschema
import pytest

import nnaudit.reports
from nnaudit.report import Curve, Numbers, Series, Table
from nnaudit.reports.base import Options
from nnaudit.reports.json_ import render, schema_text
from nnaudit.reports.load import load

SCHEMA = Path(nnaudit.reports.__file__).with_name("report.schema.json")


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_up_to_date():
    """Where it is not, write what ``schema_text()`` returns to reports/report.schema.json."""
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_rendered_reports_follow_the_schema(validator, realistic, hostile):
    for reports in ([realistic], [hostile], [realistic, hostile], []):
        validator.validate(json.loads(render(reports, Options())))


def test_the_schema_refuses_what_is_no_report(validator, realistic):
    document = json.loads(render([realistic], Options()))
    for broken in ({}, document | {"schema_version": 2}, document | {"unknown": 1}):
        assert not validator.is_valid(broken)


def test_one_target_is_a_report_and_several_are_a_list(realistic):
    assert json.loads(render([realistic], Options()))["schema_version"] == 1
    several = json.loads(render([realistic, realistic], Options()))
    assert list(several) == ["schema_version", "reports"]
    assert len(several["reports"]) == 2


def test_a_round_trip_changes_nothing(tmp_path, realistic, hostile):
    for reports in ([realistic], [realistic, hostile]):
        saved = tmp_path / "run.json"
        saved.write_text(render(reports, Options()), encoding="utf-8")
        # Compared as text: NaN is not equal to itself.
        assert repr(load(saved)) == repr(reports)


def test_numbers_that_are_not_finite_survive(tmp_path, make_report, make_result):
    values = (math.nan, math.inf, -math.inf, 1e308, 5e-324)
    evidence = (
        Curve(title="c", x_label="", y_label="", series=(Series(name="s", x=values, y=values),)),
        Numbers(title="n", values={str(i): value for i, value in enumerate(values)}),
        Table(title="t", columns=("a",), rows=(values,)),
    )
    report = make_report(make_result(evidence=evidence, seconds=math.nan))
    saved = tmp_path / "run.json"
    saved.write_text(render([report], Options()), encoding="utf-8")
    assert "NaN" not in saved.read_text(encoding="utf-8")
    assert repr(load(saved)) == repr([report])


def test_the_text_is_ascii_and_a_curve_stays_on_one_line(make_report, make_result):
    ys = tuple(float(i) for i in range(500))
    curve = Curve(title="数", x_label="", y_label="", series=(Series(name="s", x=ys, y=ys),))
    text = render([make_report(make_result(evidence=(curve,), message="\ud800 é"))], Options())
    assert text.isascii()
    assert len(text.splitlines()) < 100


def test_what_could_not_be_decoded_is_written_as_its_escape(make_result):
    """A child's results come over a pipe as UTF-8, which has no lone surrogates."""
    values = {"k\udcff": "v\udcff"}
    result = make_result(message="caf\udce9 数", evidence=(Numbers(title="\ud800", values=values),))
    assert result.message == "caf\\udce9 数"
    assert "k\\\\udcff" in result.model_dump_json()
