"""JUnit XML: a test case for each check, as GitHub, GitLab and Jenkins read it.

Only what Jenkins's schema (junit-10.xsd) knows is written, because its xUnit plug-in refuses the
rest. Nothing that was not judged is shown as passed: what was skipped, inconclusive, suppressed
or known from the baseline is ``skipped`` with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from nnaudit.report import Report, Result, Status, Text
from nnaudit.reports import outline
from nnaudit.reports.base import Options
from nnaudit.reports.issues import facts, target_file
from nnaudit.reports.text import TEXT_LIMIT, one_line, visible

_UNJUDGED = (Status.SKIP, Status.INCONCLUSIVE)


def render(reports: Sequence[Report], options: Options) -> str:
    """Return a test suite for each target."""
    suites = [_suite(report, options) for report in reports]
    root = ElementTree.Element("testsuites", {"name": "nnaudit", **_sums(suites)})
    root.extend(suites)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return text.decode("ascii") + "\n"


def _sums(suites: Sequence[ElementTree.Element]) -> dict[str, str]:
    def total(name: str) -> int:
        return sum(int(suite.attrib[name]) for suite in suites)

    sums = {name: str(total(name)) for name in ("tests", "failures", "errors")}
    return sums | {"time": f"{sum(float(suite.attrib['time']) for suite in suites):.3f}"}


def _suite(report: Report, options: Options) -> ElementTree.Element:
    cases = [_case(result, _class(report), options) for result in report.results]

    def number(tag: str) -> str:
        return str(sum(case.find(tag) is not None for case in cases))

    suite = ElementTree.Element(
        "testsuite",
        name=one_line(report.target.label),
        tests=str(len(cases)),
        failures=number("failure"),
        errors=number("error"),
        skipped=number("skipped"),
        time=_time(report.totals.seconds),
        file=one_line(target_file(report, options)),
    )
    if report.tool.created:
        # Ant's dialect knows no time zone; ours is UTC.
        suite.set("timestamp", one_line(report.tool.created)[:19])
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(report):
        ElementTree.SubElement(properties, "property", name=name, value=one_line(value))
    suite.extend(cases)
    _output(suite, "\n".join(_closing(report)))
    return suite


def _properties(report: Report) -> list[tuple[str, str]]:
    environment = [(key, str(value)) for key, value in report.environment.model_dump().items()]
    tool = [
        ("nnaudit", report.tool.version),
        ("command", report.tool.command),
        ("seed", str(report.tool.seed)),
        ("preset", report.tool.preset),
    ]
    return [(name, value) for name, value in (*tool, *environment) if value]


def _closing(report: Report) -> list[str]:
    lines = [f"{item.label}: {one_line(item.text)}" for item in outline.since(report)]
    return [f"{outline.verdict(report).headline}.", *lines]


def _case(result: Result, classname: str, options: Options) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=classname,
        name=one_line(f"{result.code}-{result.name}"),
        time=_time(result.seconds),
    )
    outcome = _outcome(result, options)
    message = one_line(result.message)
    if outcome in ("failure", "error"):
        element = ElementTree.SubElement(case, outcome, message=_lead(result), type=result.status)
        element.text = _body(result)
    elif outcome == "skipped":
        reason = _why_skipped(result)
        ElementTree.SubElement(case, "skipped", message=f"{reason}{message}", type=result.status)
        if result.status not in _UNJUDGED:
            _output(case, _body(result))
    elif result.status is not Status.PASS:
        _output(case, f"{outline.LABELS[result.status]}: {_body(result)}")
    return case


def _outcome(result: Result, options: Options) -> str:
    """Return the name of the element that tells a case's outcome; none for one that passed."""
    finding = result.status in options.failing or result.status is Status.ERROR
    if result.status in _UNJUDGED or result.suppressed or (finding and not result.is_new):
        return "skipped"
    if result.status is Status.ERROR:
        return "error"
    return "failure" if finding else ""


def _why_skipped(result: Result) -> str:
    if result.suppressed:
        return f"Suppressed ({one_line(result.suppressed)}): "
    if result.status in _UNJUDGED:
        return "Inconclusive: " if result.status is Status.INCONCLUSIVE else ""
    assert result.change is not None
    return f"{outline.LABELS[result.status]}, {outline.CHANGES[result.change]}: "


def _lead(result: Result) -> str:
    """Return the message; of a consequence, with the cause first, which is to be fixed first."""
    cause = f"Follows from {one_line(result.cause)}. " if result.cause else ""
    return cause + one_line(result.message)


def _body(result: Result) -> str:
    lines = [visible(result.message)]
    lines += [f"{label}: {text}" for label, text in facts(result)]
    if result.status is Status.ERROR:
        texts = (item for item in result.evidence if isinstance(item, Text))
        lines += [f"\n{one_line(item.title)}\n{visible(item.text, TEXT_LIMIT)}" for item in texts]
    return "\n".join(lines)


def _output(parent: ElementTree.Element, text: str) -> None:
    ElementTree.SubElement(parent, "system-out").text = text


def _class(report: Report) -> str:
    """Return the target's path as a dotted name: Jenkins takes the last part for the class."""
    path = one_line(report.target.path or report.target.name).removesuffix(".py")
    dotted = path.replace("\\", "/").strip("/.").replace("/", ".") or "target"
    words = one_line(" ".join(report.target.arguments)).replace(".", "_")
    return f"{dotted} {words}".rstrip()


def _time(seconds: float) -> str:
    return f"{seconds if math.isfinite(seconds) else 0:.3f}"
