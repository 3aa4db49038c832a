"""SARIF 2.1.0: the standard form of findings, as GitHub's code scanning and editors read it.

All targets of one call are one run. Consequences stand under their cause as related locations,
because a viewer shows every result as a problem of its own. Pictures stay in the JSON report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nnaudit._version import __version__
from nnaudit.report import Change, Kind, Report, Result, Status
from nnaudit.reports import outline
from nnaudit.reports.base import Options
from nnaudit.reports.issues import Fingerprints, place, sentence, suppressed
from nnaudit.reports.outline import Finding, title
from nnaudit.reports.text import one_line, paragraphs, shorten, visible

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

#: GitHub cuts descriptions of rules here.
_DESCRIPTION = 1000

_LEVELS = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning", Status.NOTE: "note"}
_RULE_LEVELS = {Kind.EXACT: "error", Kind.STATISTICAL: "error", Kind.JUDGEMENT: "warning"}
_PRECISION = {Kind.EXACT: "very-high", Kind.STATISTICAL: "high", Kind.JUDGEMENT: "medium"}
_STATES = {
    Change.NEW: "new",
    Change.WORSE: "updated",
    Change.MILDER: "updated",
    Change.UNCHANGED: "unchanged",
}

_UTC = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\+00:00|Z)")

_Json = dict[str, Any]


def render(reports: Sequence[Report], options: Options) -> str:
    """Return one run with the findings of all targets, suppressed ones among them."""
    rules = _rules(reports)
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    fingerprint = Fingerprints()
    run: _Json = {
        "tool": {"driver": _driver(reports, rules)},
        "automationDetails": {"id": _category(reports)},
        "invocations": [_invocation(report, index) for report in reports],
        "columnKind": "utf16CodeUnits",
        "results": [
            {
                **_result(finding, report, options, index),
                "partialFingerprints": {"nnaudit/v1": fingerprint(finding.result, report)},
            }
            for report in reports
            for finding in (*outline.ordered(report), *suppressed(report))
        ],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2) + "\n"


def _driver(reports: Sequence[Report], rules: list[_Json]) -> _Json:
    version = one_line(reports[0].tool.version) if reports else __version__
    driver: _Json = {"name": "nnaudit", "version": version, "rules": rules}
    if re.fullmatch(r"\d+\.\d+\.\d+", version):
        driver["semanticVersion"] = version
    return driver


def _category(reports: Sequence[Report]) -> str:
    """Return the analysis's name: GitHub closes alerts that a later one of that name lacks."""
    if len(reports) != 1:
        return "nnaudit/"
    return f"nnaudit/{one_line(reports[0].target.label)}/"


def _rules(reports: Sequence[Report]) -> list[_Json]:
    """Return a rule for each check that was asked, whether it found something or not."""
    results = {one_line(r.code): r for report in reports for r in report.results}
    return [_rule(code, result) for code, result in results.items()]


def _rule(code: str, result: Result) -> _Json:
    question = shorten(one_line(result.question) or one_line(title(result)), _DESCRIPTION)
    more = f"`nnaudit rule {code}` explains why it matters, how it decides, and how to fix it."
    address = outline.link(result)
    return {
        "id": code,
        "name": _pascal(result.name),
        "shortDescription": {"text": question},
        "fullDescription": {"text": f"{question} ({result.kind.value} check)"},
        "help": {"text": "\n\n".join([f"{question} {more}", *_explained(result)])},
        **({"helpUri": address} if address else {}),
        "defaultConfiguration": {"level": _RULE_LEVELS[result.kind]},
        "properties": {
            "tags": ["machine-learning", one_line(result.family).lower()],
            "precision": _PRECISION[result.kind],
            "problem.severity": _RULE_LEVELS[result.kind],
        },
    }


def _explained(result: Result) -> list[str]:
    """Return the sections of the check's documentation that the report holds."""
    return [
        f"{name}: " + "\n".join("- " * item + line for item, line in paragraphs(visible(text)))
        for name, text in result.explanation.items()
    ]


def _pascal(name: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", name)
    return "".join(word[0].upper() + word[1:] for word in words)[:255] or "Check"


def _invocation(report: Report, index: dict[str, int]) -> _Json:
    errors = report.with_status(Status.ERROR)
    invocation: _Json = {
        "executionSuccessful": not errors,
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": one_line(result.message)},
                "associatedRule": {
                    "id": one_line(result.code),
                    "index": index[one_line(result.code)],
                },
            }
            for result in errors
        ],
        "properties": {
            "verdict": outline.verdict(report).headline,
            "since": {item.label: one_line(item.text) for item in outline.since(report)},
        },
    }
    if report.tool.command:
        invocation["commandLine"] = one_line(report.tool.command)
    if time := _UTC.fullmatch(report.tool.created):
        invocation["endTimeUtc"] = f"{time[1]}Z"
    return invocation


def _result(finding: Finding, report: Report, options: Options, index: dict[str, int]) -> _Json:
    result = finding.result
    code = one_line(result.code)
    written: _Json = {
        "ruleId": code,
        "ruleIndex": index[code],
        "level": _LEVELS.get(result.status, "none"),
        "message": {"text": sentence(finding)},
        "locations": [_location(result, report, options)],
        "properties": {
            key: one_line(text)
            for key, text in (("measured", result.measured), ("threshold", result.threshold))
            if text
        },
    }
    if finding.told:
        written["relatedLocations"] = [
            {"id": number, **_location(other, report, options), "message": {"text": _told(other)}}
            for number, other in enumerate(finding.told, start=1)
        ]
    if result.suppressed:
        kind = "inSource" if result.suppressed_by == "source" else "external"
        written["suppressions"] = [{"kind": kind, "justification": one_line(result.suppressed)}]
    if result.change in _STATES:
        written["baselineState"] = _STATES[result.change]
    return written


def _told(result: Result) -> str:
    return f"{one_line(title(result))}: {one_line(result.message)}"


def _location(result: Result, report: Report, options: Options) -> _Json:
    where = place(result, report, options)
    location: _Json = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(where.file)},
            "region": {"startLine": where.line},
        }
    }
    if result.module:
        location["logicalLocations"] = [
            {"fullyQualifiedName": one_line(result.module), "kind": "module"}
        ]
    return location


def _uri(path: str) -> str:
    quoted = quote(path)
    if re.match(r"[A-Za-z]%3A/", quoted):
        return f"file:///{quoted[0]}:{quoted[4:]}"
    return f"file://{quoted}" if quoted.startswith("/") else quoted
