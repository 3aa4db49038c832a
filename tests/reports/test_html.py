import base64
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from nnaudit.report import (
    Curve,
    Image,
    Images,
    Overview,
    Part,
    Section,
    Series,
    Status,
    Table,
    TargetInfo,
    Text,
)
from nnaudit.reports import html as renderer
from nnaudit.reports.base import Options
from nnaudit.reports.html import render

VOID = {"meta", "link", "img", "br"}
LIMIT = 2_000_000


class Page(HTMLParser):
    """What a browser makes of the file: tags in order, text by element, balance checked."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.headings = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute comes twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        level = next((t for t in reversed(self.open) if re.fullmatch(r"h[1-6]", t)), None)
        if level and data.strip():
            self.headings.append((int(level[1]), data.strip()))

    def text(self):
        return " ".join(data for tag, data in self.texts if tag != "style")

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module", params=["realistic", "hostile", "several", "none"])
def html(request, realistic, hostile):
    reports = {
        "realistic": [realistic],
        "hostile": [hostile],
        "several": [realistic, hostile, realistic.model_copy(deep=True)],
        "none": [],
    }
    return render(reports[request.param], Options())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def show(*results, make_report, **fields):
    return Page(render([make_report(*results, **fields)], Options()))


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = page.attributes("id")
    assert [name for name, number in Counter(ids).items() if number > 1] == []
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in ids)
    assert {href[1:] for href in page.attributes("href") if href.startswith("#")} <= set(ids)
    for name in ("aria-labelledby", "aria-describedby"):
        assert {ref for value in page.attributes(name) for ref in value.split()} <= set(ids)


def test_a_strict_policy_has_nothing_to_block_but_one_style_sheet(page):
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["style"] == 1
    assert not tags.keys() & {"script", "iframe", "object", "base", "form"}
    assert page.attributes("style") == []
    assert [n for _, attrs in page.tags for n in attrs if n.startswith("on")] == []


def test_nothing_is_fetched(html, page):
    loaded = page.attributes("src") + [a["href"] for tag, a in page.tags if tag == "link"]
    assert all(address.startswith("data:") for address in loaded)
    # What a reader may follow is in the page, or an address that the report gives for a check.
    assert all(link.startswith(("#", "data:", "https://")) for link in page.attributes("href"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_headings_do_not_skip_a_level(page):
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == len({text for level, text in page.headings if level == 1})
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_tables_and_pictures_have_names(page):
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
        if tag == "img":
            assert "alt" in attrs
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (
                attrs["role"] == "img" and attrs["aria-labelledby"]
            )


def test_the_file_is_small_and_in_ascii(html):
    assert html.isascii()
    assert len(html) < LIMIT


def test_hostile_text_is_shown_and_does_nothing(hostile):
    html = render([hostile], Options())
    page = Page(html)
    shown = page.text()
    for text in (
        "[red]x[/red]",
        "\\x1b[31mred\\x1b[0m",
        "\\x00\\x07",
        "\\u202eevil\\u202c",
        "<script>alert(1)</script>",
        "]]> -->",
        "{{ 7*7 }} {% raw %}",
        "characters more)",
    ):
        assert text in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]|&#8238;", html)
    assert "<b>" not in html


def test_the_verdict_is_the_first_heading_and_failures_come_next(realistic):
    headings = [text for _, text in Page(render([realistic], Options())).headings]
    assert headings[0] == "2 of 15 checks fail and 1 crashed"
    order = ["What fails", "What crashed", "Warnings", "Notes", "Look at your data"]
    assert [h for h in headings if h in order] == order
    assert headings.index("LOSS101") < headings.index("What crashed")


def test_a_card_says_all_that_is_needed_to_act(realistic):
    html = render([realistic], Options())
    shown = Page(html).text()
    for needed in (
        "Is the loss given what it expects",
        "512 of 512 rows",
        "at most 99 % of the rows",
        "examples/mnist/net.py:42",
        "net.head.softmax",
        "1 finding follows from this one",
        "nnaudit examples/mnist/train.py --preset full --seed 0 -- --epochs 1",
        "DATA108, DATA109",
    ):
        assert needed in shown
    assert "delete <code>nn.Softmax(dim=1)</code> in line 42" in html


def test_a_consequence_is_folded_into_the_card_of_its_cause(realistic):
    html = render([realistic], Options())
    card = html[html.index('id="LOSS101"') : html.index('id="target-error"')]
    assert card.index("<details") < card.index('id="FIT101"') < card.index("</details>")
    assert html.count('id="FIT101"') == 1


def test_counts_link_only_to_sections_that_exist(make_report, make_result):
    cause = make_result("A", Status.FAIL)
    folded = make_result("B", Status.WARN, cause="A")
    page = show(cause, folded, make_report=make_report)
    assert "#target-fail" in page.attributes("href")
    assert "#target-warn" not in page.attributes("href")


def test_several_targets_have_a_section_each(make_report, make_result):
    reports = [make_report(make_result()), make_report(make_result(status=Status.FAIL))]
    page = Page(render(reports, Options()))
    assert page.headings[0] == (1, "1 of 2 targets fails")
    assert {"target-1", "target-2", "TEST101", "TEST101-2"} <= set(page.attributes("id"))


def test_a_curve_is_drawn_with_its_thresholds_and_gaps(make_report, make_result):
    nan = float("nan")
    curve = Curve(
        title="Loss",
        x_label="step",
        y_label="loss",
        series=(
            Series(name="train", x=range(5), y=(5, 4, nan, 2, 1)),
            Series(name="valid", x=range(5), y=(5, 5, 4, 4, 3)),
        ),
        thresholds={"floor": 0.5},
    )
    page = show(make_result(status=Status.FAIL, evidence=(curve,)), make_report=make_report)
    assert "floor 0.5" in page.text()
    assert "1 point cannot be drawn" in page.text()
    train = next(d for d in page.attributes("d") if d.count("M") == 2 and d.count("L") == 2)
    assert "nan" not in train
    assert ("li", {}) in page.tags  # the legend


def test_a_long_curve_is_thinned(make_report, make_result):
    n = 100_000
    series = Series(name="loss", x=range(n), y=tuple((i * 7919) % 1000 for i in range(n)))
    curve = Curve(title="Loss", x_label="step", y_label="loss", series=(series,))
    page = show(make_result(status=Status.FAIL, evidence=(curve,)), make_report=make_report)
    assert max(len(d) for d in page.attributes("d")) < 10_000


def test_what_is_over_the_budget_is_left_out_last_first(make_report, make_result, realistic):
    image = realistic.overview.sections[0].evidence[0].images[0]
    large = base64.b64encode(base64.b64decode(image.png) + bytes(750_000)).decode()
    pictures = tuple(
        Images(title=f"Picture {i}", images=(Image(png=large, caption="c"),)) for i in range(4)
    )
    failing = make_result(status=Status.FAIL, evidence=pictures[3:])
    overview = Overview(sections=(Section(title="Data", evidence=pictures[:3]),))
    html = render([make_report(failing, overview=overview)], Options())
    assert len(html) < LIMIT
    assert html.count("Left out to keep this file small") == 3
    assert html.index("data:image/png") < html.index("Look at your data")


def test_many_targets_leave_pictures_out_before_the_file_gets_too_large(make_report, make_result):
    text = Text(title="t", text="x" * 9_000)
    results = [make_result(f"A{i}", message="m" * 300, evidence=(text,)) for i in range(10)]
    html = render([make_report(*results)] * 60, Options())
    assert len(html) < LIMIT
    assert "m" * 300 in html
    assert "Left out to keep this file small" in html


def test_targets_are_listed_by_their_paths_with_what_fails_first(make_report, make_result):
    first = make_report(make_result("A101", "fail", name="cause", module="net.head"))
    target = first.target.model_copy(update={"path": "a/b.py", "arguments": ("--lr", "0.1")})
    html = render([first.model_copy(update={"target": target}), make_report()], Options())
    assert "a/b.py -- --lr 0.1" in html
    assert "1 of 1 check fails: A101 cause in net.head" in html


def test_long_tables_and_texts_are_cut_or_folded(make_report, make_result):
    table = Table(title="t", columns=("n",), rows=tuple((i,) for i in range(1000)))
    text = Text(title="log", text="line\n" * 100)
    page = show(make_result(evidence=(table, text)), make_report=make_report)
    assert "800 rows more in the JSON report." in page.text()
    assert "100 lines" in page.text()
    assert sum(tag == "tr" for tag, _ in page.tags) == renderer.MAX_ROWS + 1


def test_a_plain_report_needs_no_optional_part(make_report, make_result):
    target = TargetInfo(name="m", parts=(Part(name="model", description="", origin="absent"),))
    page = show(make_result(), make_report=make_report, target=target)
    assert "Reproduce this report" not in page.text()
    assert "Look at your data" not in page.text()


def test_the_line_of_source_is_marked_among_its_neighbours(realistic):
    html = render([realistic], Options())
    (quoted,) = re.findall(r'<pre class="source">(.*?)</pre>', html, re.DOTALL)
    lines = re.sub(r"<[^>]+>", "", quoted).strip().splitlines()
    assert lines[:3] == [
        "40 self.head = nn.Sequential(",
        "41     nn.Linear(128, 10),",
        "42     nn.Softmax(dim=1),",
    ]
    assert re.findall(r"<mark .*?</mark>", quoted, re.DOTALL)[0].count("Softmax") == 1


def test_what_a_check_asks_is_in_the_page_and_its_code_a_link_where_there_is_one(
    make_report, make_result
):
    page, why = "https://docs.example/checks/A101.html", {"Why": "Since `x` is\n    so."}
    told = make_result("A101", "fail", url=page, explanation=why)
    html = render([make_report(told, make_result("A102", "skip", url=page))], Options())
    assert html.count(f'<a class="code" href="{page}">') == 3
    assert "<p>Since <code>x</code> is so.</p>" in html
    offline = render([make_report(make_result("A101", "fail", explanation=why))], Options())
    assert "<a class" not in offline.replace('<a class="skip"', "")
    assert "<code>nnaudit rule A101</code> explains it" in offline
