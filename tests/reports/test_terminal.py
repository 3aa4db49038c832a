import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from nnaudit.report import Location, Source, Status, Table
from nnaudit.reports.base import Options, Verbosity
from nnaudit.reports.load import load
from nnaudit.reports.terminal import render

ASSETS = Path(__file__).parents[1] / "assets"


def lines(report, **options):
    return render([report], Options(**options)).splitlines()


def test_the_terminal_report_is_as_it_was():
    """Rewrite with: nnaudit report tests/assets/report-v1.json --output-format text."""
    expected = (ASSETS / "report-v1.txt").read_text(encoding="utf-8")
    assert render(load(ASSETS / "report-v1.json"), Options()) == expected


def test_the_verdict_comes_first_and_the_worst_next(realistic):
    shown = lines(realistic)
    assert shown[0] == "✗ examples/mnist/train.py: 2 of 15 checks fail and 1 crashed."
    words = [line.split()[1] for line in shown if re.match(r"\S [A-Z]{4}", line)]
    assert words == ["FAIL", "CRASHED", "WARNING", "NOTE"]


def test_a_failure_says_all_that_is_needed_to_act(realistic):
    text = render([realistic], Options())
    for needed in (
        "LOSS101 double-activation",
        "measured   512 of 512 rows",
        "threshold  at most 99 %",
        "examples/mnist/net.py:42, module net.head.softmax",
        "fix        Return the logits",
        "█▇",
        "leads to   FIT101 tiny-subset-overfit",
    ):
        assert needed in text
    assert "FAIL FIT101" not in text


def test_a_crash_says_whose_code_it_was_and_how_it_ended(realistic):
    text = render([realistic], Options())
    assert "crash      in your code" in text
    assert "Traceback (last 6 of 20 lines)" in text
    assert "missing key" in text


def test_quiet_shows_the_verdict_and_what_failed_only(realistic):
    text = render([realistic], Options(verbosity=Verbosity.QUIET))
    assert "FAIL LOSS101" in text
    assert "CRASHED MODE105" in text
    for left_out in ("WARNING", "NOTE", "passed", "skipped", "seed 0"):
        assert left_out not in text


def test_quiet_and_clean_is_one_line(make_report, make_result):
    report = make_report(make_result())
    assert lines(report, verbosity=Verbosity.QUIET) == ["✓ train.py: The check passes."]


def test_verbose_shows_everything(realistic):
    text = render([realistic], Options(verbosity=Verbosity.VERBOSE))
    for result in realistic.results:
        assert result.code in text
        assert result.question[:20] in text
    for needed in (
        "lowest sum",
        "class 3",
        "12 images",
        "Weights of fc",
        "1,199,882",
        "torchvision",
    ):
        assert needed in text
    assert "FAIL FIT101" in text


def test_skips_are_grouped_by_reason(realistic):
    text = render([realistic], Options(width=160))
    shared = "– 3 skipped       DATA108 split-leakage, DATA109 split-shift: The target has no"
    assert shared in text
    assert "\n                  GRAD104 causality: Not a next-token model." in text


def test_reasons_of_single_checks_are_left_to_verbose(make_report, make_result):
    results = [make_result(f"LOSS10{i}", Status.SKIP, message=f"Reason {i}.") for i in (1, 2, 3, 5)]
    report = make_report(*results, make_result("FIT101", Status.SKIP, message="Reason 6."))
    line = "– 5 skipped       LOSS101-103 105, FIT101: do not apply (-v shows why)"
    assert line in lines(report)
    verbose = render([report], Options(verbosity=Verbosity.VERBOSE))
    assert all(f"Reason {i}." in verbose for i in (1, 2, 3, 5, 6))


def test_passes_are_told_in_little_space(make_report, make_result):
    codes = ("DATA101", "DATA102", "INIT101", "INIT104", "PLUGIN-1")
    report = make_report(*(make_result(code) for code in codes))
    assert "✓ 5 passed        DATA101 102, INIT101 104, PLUGIN-1 some-check" in lines(report)


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("verbosity", Verbosity)
def test_no_line_is_wider_than_the_terminal(realistic, hostile, width, verbosity):
    for report in (realistic, hostile):
        for line in lines(report, width=width, verbosity=verbosity):
            assert cell_len(line) <= width
            assert line == line.rstrip()


def test_nothing_but_our_own_colours_is_an_escape_code(hostile):
    for verbosity in Verbosity:
        plain = render([hostile], Options(verbosity=verbosity))
        colored = render([hostile], Options(verbosity=verbosity, color=True))
        assert "\x1b" not in plain
        assert "\x1b[" in colored
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff]", plain)
        colours_and_links = r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\"
        assert re.sub(colours_and_links, "", colored).split() == plain.split()
    assert "[red]x[/red] \\x1b[31mred" in plain


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "no-such-codec"])
def test_every_character_fits_the_encoding(realistic, hostile, encoding):
    codec = "ascii" if encoding == "no-such-codec" else encoding
    options = Options(verbosity=Verbosity.VERBOSE, encoding=encoding)
    text = render([realistic, hostile], options)
    text.encode(codec)
    assert text.startswith("x ")


def test_a_legacy_encoding_keeps_what_it_can(make_report, make_result):
    report = make_report(make_result(status=Status.FAIL, message="Größe 数"))
    assert "Größe \\u6570" in render([report], Options(encoding="latin-1"))


def test_the_environment_does_not_change_the_output(realistic, monkeypatch):
    before = render([realistic], Options())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "33")
    monkeypatch.setenv("TERM", "dumb")
    assert render([realistic], Options()) == before


def test_several_targets_end_with_a_verdict_on_all(make_report, make_result):
    reports = [make_report(make_result()), make_report(make_result(status=Status.FAIL))]
    assert render(reports, Options()).splitlines()[-1] == "✗ 1 of 2 targets fails."
    assert render([], Options()) == "? No target was audited.\n"


def test_a_long_table_is_cut(make_report, make_result):
    table = Table(title="t", columns=("n",), rows=tuple((i,) for i in range(100)))
    report = make_report(make_result(evidence=(table,)))
    assert "... 80 more rows in the JSON report" in render(
        [report], Options(verbosity=Verbosity.VERBOSE)
    )


SOURCE = Source(
    first=8, lines=("import x", "", "    loader = Loader(data)", "", "for batch in loader:")
)


def test_the_line_of_source_is_shown_with_a_caret(make_report, make_result):
    place = Location(file="train.py", line=10)
    report = make_report(make_result("A101", "fail", location=place, source=SOURCE))
    text = render([report], Options())
    assert (
        "     8 | import x\n"
        "     9 |\n"
        "    10 |     loader = Loader(data)\n"
        "       |     ^^^^^^^^^^^^^^^^^^^^^\n"
        "    11 |\n"
        "    12 | for batch in loader:\n"
    ) in text
    narrow = render([report], Options(width=24)).splitlines()
    assert max(map(len, narrow)) <= 24
    assert "    10 |     loader =..." in narrow
    assert "       |     ^^^^^^^^^^^" in narrow


def test_a_code_is_a_link_where_links_can_be_shown(make_report, make_result):
    page = "https://docs.example/checks/A101.html"
    report = make_report(make_result("A101", "fail", url=page))
    assert f";{page}\x1b\\" in render([report], Options(color=True))
    assert page not in render([report], Options())
    other = make_report(make_result("A101", "fail", url="javascript:alert(1)"))
    assert "\x1b]8" not in render([other], Options(color=True))
