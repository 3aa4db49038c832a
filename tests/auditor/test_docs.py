"""The documentation says what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nnaudit import config
from nnaudit.checks.registry import Registry
from nnaudit.engine import session as engine

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = (
    "CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/README.md", "docs/architecture.md",
    "docs/ci.md", "docs/cli.md", "docs/comparison.md", "docs/configuration.md",
    "docs/distributed.md", "docs/editors.md", "docs/faq.md", "docs/frameworks.md", "docs/json.md",
    "docs/plugins.md", "docs/python.md", "docs/questions.md", "docs/safety.md",
    "docs/stability.md", "docs/training.md", "docs/tutorial.md",
)  # fmt: skip


def test_pages_made_from_the_code_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `python scripts/docs`\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", WRITTEN)
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    for link in re.findall(r"\]\(([^)#:]+)[)#]", file.read_text()):
        assert (file.parent / link).exists(), link


def test_no_link_of_the_site_leads_out_of_it(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "scripts" / "docs"))["stage"](tmp_path / "pages")
    pages = list((tmp_path / "pages").rglob("*.md"))
    assert len(pages) > 100
    for page in pages:
        for link in re.findall(r"\]\(([^)#:\s]+)[)#]", page.read_text()):
            target = (page.parent / link).resolve()
            assert target.is_relative_to(tmp_path / "pages") and target.exists(), (page.name, link)


@pytest.mark.parametrize("name", WRITTEN)
def test_scripts_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for script in re.findall(r"(?:bash|python) ((?:scripts|tests|\.ci|benchmarks)/[\w./-]+)", text):
        assert (ROOT / script).is_file(), script


def test_settings_shown_in_the_documentation_are_valid(tmp_path: Path) -> None:
    registry = Registry.load()
    shown = [
        block
        for name in WRITTEN
        for block in re.findall(r"```toml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
        if "nnaudit" in tomllib.loads(block).get("tool", {})
    ]
    assert len(shown) >= 2
    for block in shown:
        (tmp_path / "pyproject.toml").write_text(block)
        engine.selected(registry, config.load(start=tmp_path, environment={}))


def test_yaml_shown_in_the_documentation_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    assert all(yaml.safe_load(block) for block in blocks)


def test_the_plugin_shown_in_the_documentation_is_a_check() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    namespace: dict[str, object] = {}
    source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    exec(compile(source, "plugins.md", "exec", dont_inherit=True), namespace)
    (check,) = namespace["checks"]()  # type: ignore[operator]
    check.validate()
