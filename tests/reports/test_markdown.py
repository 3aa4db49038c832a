import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from nnaudit.report import Curve, Series, Status, Table, Text
from nnaudit.reports.base import Options
from nnaudit.reports.markdown import MARKER, code, prose, render


def markdown_to_html(markdown):
    """Return what a reader of GitHub's dialect makes of it."""
    return (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    )


def shown(markdown):
    """Return the text that a reader sees, without our own tags."""
    return re.sub(r"<[^>]+>", "", markdown_to_html(markdown)).strip()


def test_the_marker_comes_first_and_the_verdict_next(realistic):
    lines = render([realistic], Options()).splitlines()
    assert lines[0] == MARKER
    assert lines[2].startswith("### ❌ 2 of 15 checks fail and 1 crashed: <code>")


def test_the_table_holds_the_findings_worst_first(realistic):
    rows = re.findall(r"^\| \S+ (\w+) \| \*\*(\w+)", render([realistic], Options()), re.MULTILINE)
    assert rows == [
        ("Fail", "LOSS101"),
        ("Crashed", "MODE105"),
        ("Warning", "DATA110"),
        ("Note", "NORM102"),
    ]


def test_a_row_says_what_to_do_and_what_it_leads_to(realistic):
    row = next(x for x in render([realistic], Options()).splitlines() if "**LOSS101**" in x)
    assert "**Fix:** Return the logits: delete <code>nn.Softmax(dim=1)</code> in line 42." in row
    assert "**Leads to:** FIT101 tiny-subset-overfit" in row
    assert "<code>examples/mnist/net.py:42</code>" in row


def test_details_hold_charts_tables_and_the_end_of_a_traceback(realistic):
    text = render([realistic], Options())
    assert re.search(r"^as written +█[▁-█]+  2\.\d+ → 1\.\d+$", text, re.MULTILINE)
    assert "class  name     count  share" in text
    assert "RuntimeError: Error(s) in loading state_dict for Net" in text


def test_a_finding_without_more_to_say_has_no_details(make_report, make_result):
    assert "Details of" not in render([make_report(make_result(status=Status.NOTE))], Options())


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a|b\\|c\\",
        "*a* _b_ __init__ ~~c~~ [x](javascript:alert(1)) ![i](http://a/b.png)",
        "# 1. - + > &amp; &lt;b&gt;",
        "<!-- --> ]]>",
        "$x_1$ $$y$$",
        "``double``",
        "`open",
    ],
)
def test_text_is_shown_as_it_is(text):
    for markdown, seen in ((prose(text), re.sub("`([^`]+)`", r"\1", text)), (code(text), text)):
        read = markdown_to_html(f"| a |\n|---|\n| {markdown} |\n")
        cell = re.search(r"<td>(.*?)</td>", read, re.DOTALL)[1]
        assert unescape(re.sub("</?code>", "", cell)) == seen


@pytest.mark.parametrize("text", ["@octocat", "#12", "!34", "see @a/b"])
def test_nobody_is_mentioned_and_no_issue_is_linked(text):
    assert not re.search(r"[@#!]\w", markdown_to_html(prose(text)))


def test_back_ticks_make_code():
    assert (
        markdown_to_html(prose("use `nn.Softmax(dim=1)`"))
        == "<p>use <code>nn.Softmax(dim=1)</code></p>\n"
    )


def test_a_hostile_report_is_text_and_stays_short(hostile):
    text = render([hostile] * 3, Options())
    assert len(text.encode()) < 65_536
    read = markdown_to_html(text)
    assert not re.search(r"<(script|b|img|h1)\b", read)
    links = re.findall(r"<a\b[^>]*>", read)
    assert set(links) <= {'<a href="https://e.example/%22%3E%3Cscript%3Ealert(1)%7C%3C/script%3E">'}
    assert read.count("<details>") == read.count("</details>")
    assert "\\x1b[31m" in read
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff\ud800-\udfff]", text)


def test_a_fence_is_longer_than_any_in_the_text(make_report, make_result):
    text = Text(title="log", text="```\n</details>\n`````\n<script>")
    markdown = render([make_report(make_result(status=Status.FAIL, evidence=(text,)))], Options())
    assert "``````text\n```\n</details>\n`````\n<script>\n``````" in markdown
    assert "<script>" not in markdown_to_html(markdown)


def test_what_matters_least_is_left_out_first(make_report, make_result):
    log = Text(title="log", text="line\n" * 600)
    findings = [
        make_result(
            f"T{i}", Status.FAIL if i < 20 else Status.WARN, message="m" * 300, evidence=(log,)
        )
        for i in range(60)
    ]
    text = render([make_report(*findings)], Options())
    assert len(text.encode()) < 65_536
    assert all(f"**T{i}**" in text for i in range(60))
    details = [int(x) for x in re.findall(r"Details of T(\d+)", text)]
    assert details == list(range(len(details)))
    assert 0 < len(details) < 20
    assert "left out to keep this short" in text


def test_long_tables_and_many_curves_are_cut(make_report, make_result):
    series = tuple(Series(name=f"s{i}", x=(0, 1), y=(0, i)) for i in range(9))
    curve = Curve(title="c", x_label="", y_label="", series=series)
    table = Table(title="t", columns=("n",), rows=tuple((i,) for i in range(40)))
    result = make_result(status=Status.FAIL, evidence=(curve, table))
    text = render([make_report(result)], Options())
    assert "and 3 curves more" in text
    assert "... 28 more rows" in text


def test_several_targets_have_a_verdict_on_all(make_report, make_result):
    reports = [make_report(make_result()), make_report(make_result(status=Status.FAIL))]
    assert "## nnaudit: 1 of 2 targets fails" in render(reports, Options())
    assert shown(render([], Options())) == "nnaudit: No target was audited"


def test_the_line_of_source_is_marked_among_its_neighbours(realistic):
    text = render([realistic], Options())
    assert "examples/mnist/net.py:42\n```text\n" in text
    assert "> 42 |     nn.Softmax(dim=1)," in text


def test_a_code_is_a_link_where_there_is_an_address(make_report, make_result):
    page = "https://docs.example/checks/A101.html"
    text = render([make_report(make_result("A101", "fail", url=page))], Options())
    assert f'<a href="{page}"><strong>A101</strong></a>' in markdown_to_html(text)
