"""Whatever a program's names and messages hold, every format writes it as text and stays legal."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnaudit.report import (
    Environment,
    Evidence,
    Kind,
    Location,
    Numbers,
    Part,
    Report,
    Result,
    Status,
    Table,
    TargetInfo,
    Text,
    Tool,
    totals_of,
)
from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options

HIDDEN = ("\x00", "\x1b[2J", "\x85", "\r\n", "\t", "\u202e", "\ud800", "\ufffe", "x" * 3000)
MARKUP = "]]> --> <b> &lt; ' \" ` | # * _ ~ \\ $x$ @me ##[x] ::error:: %0A {{1}} 数"
PIECES = st.sampled_from([*HIDDEN, *MARKUP.split()])
ANYTHING = st.lists(PIECES | st.text(max_size=5), max_size=6).map("".join)


def report(words: list[str], status: Status, line: int) -> Report:
    """Return a report in which every text is one of ``words``."""
    code, name, message, fix, module, file, title, cell, question, reason = words
    evidence: tuple[Evidence, ...] = (
        Numbers(title=title, values={cell: cell}),
        Table(title=title, columns=(cell, title), rows=((cell, 1.0),)),
        Text(title=title, text=cell),
    )
    result = Result(
        code=code, name=name, family=name, kind=Kind.EXACT, status=status, message=message,
        measured=message, threshold=cell, evidence=evidence, module=module, fix=fix,
        location=Location(file=file, line=line), question=question, suppressed=reason,
    )  # fmt: skip
    part = Part(name=name, description=fix, origin="user")
    results = (result, result.model_copy(update={"suppressed": "", "cause": code}))
    return Report(
        tool=Tool(version=cell, command=message, seed=0, preset=name, created=cell),
        environment=Environment(python=cell, platform=title),
        target=TargetInfo(
            name=file,
            path=file,
            form=name,
            parts=(part,),
        ),
        results=results,
        totals=totals_of(results, steps=1, seconds=1.0),
    )


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


READERS = {
    "text": str.splitlines,
    "concise": str.splitlines,
    "json": json.loads,
    "html": Tags,
    "markdown": str.splitlines,
    "junit": ElementTree.fromstring,
    "sarif": json.loads,
    "github": str.splitlines,
    "gitlab": json.loads,
    "badge": json.loads,
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(words=st.lists(ANYTHING, min_size=10, max_size=10), status=st.sampled_from(Status))
def test_any_text_in_any_field_is_only_text(name, words, status):
    text = FORMATS[name]([report(words, status, 1)], Options())
    text.encode("utf-8")
    READERS[name](text)
    if name == "html":
        assert not Tags(text).tags & {"b", "script"}
    if name == "github":
        commands = [line for line in text.splitlines() if line.startswith("::")]
        assert len(text.split("\n")) == len(commands) + 2  # the verdict, and the end


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "json"])
def test_a_megabyte_in_every_field_is_cut(name):
    words = [character * 1_000_000 for character in "数b<d\x00f'h&j"]
    reports = [report(words, status, 1) for status in Status]
    text = FORMATS[name](reports, Options())
    assert len(text.encode("utf-8")) < 2_000_000
