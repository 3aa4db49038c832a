"""The HTML report in a real browser: what it loads, how it reads, whom it excludes."""

import re
import shutil
from pathlib import Path

import pytest

from nnaudit.reports.base import Options
from nnaudit.reports.html import render
from nnaudit.reports.load import load

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

ASSETS = Path(__file__).parents[1] / "assets"
ADDRESS = "http://report.example/"
#: What Jenkins sends with every file that a build has archived.
JENKINS = "sandbox; default-src 'none'; img-src 'self'; style-src 'self';"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # A container's root may not make Chromium's own sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open reports as a server would send them, and return the page and what it asked for."""
    contexts = []

    def visit(*reports, policy="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page, asked = context.new_page(), []
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        page.on("pageerror", lambda error: asked.append(str(error)))
        headers = {"content-type": "text/html", "content-security-policy": policy}
        html = render(reports, Options())
        context.route("**/*", lambda route: route.fulfill(body=html, headers=headers))
        page.goto(ADDRESS)
        return page, [url for url in asked if not url.startswith("data:")]

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def real():
    return load(ASSETS / "failing-v1.json")[0]


@pytest.fixture(scope="module")
def violations():
    """Return what axe-core finds in a page, everything unfolded."""
    package = pytest.importorskip("axe_playwright_python")
    script = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

    def violations(page):
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.evaluate(script)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]]

    return violations


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_either_theme(visit, violations, real, hostile, scheme):
    page, _ = visit(real, hostile, color_scheme=scheme)
    assert violations(page) == []


def test_the_themes_differ(visit, real):
    def background(scheme):
        page, _ = visit(real, color_scheme=scheme)
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background("light") != background("dark")


def test_nothing_is_loaded_and_nothing_runs(visit, hostile):
    _, asked = visit(hostile)
    assert asked == [ADDRESS]


@pytest.mark.parametrize("policy", ["", JENKINS])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_reads_at_every_width_without_scripts_and_under_a_strict_policy(
    visit, real, hostile, policy, width
):
    size = {"width": width, "height": 800}
    page, _ = visit(real, hostile, policy=policy, viewport=size, java_script_enabled=False)
    for text in ("3 of 39 checks fail", "DataLoader(..., shuffle=True)"):
        assert page.get_by_text(text).first.is_visible()
    # An element's box is told without scripts; nothing may stick out to the right.
    for selector in ("main", "article", ".card", "figure", "pre", "h1", ".facts"):
        for element in page.locator(selector).all()[:12]:
            if policy == "" and (box := element.bounding_box()):
                assert box["x"] + box["width"] <= width + 0.5


def test_what_is_folded_is_printed(visit, real):
    page, _ = visit(real)
    folded = page.get_by_text("Gradients are not clipped.")
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.bounding_box()["height"] > 0
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= 6
