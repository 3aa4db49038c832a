"""No configuration, flag, report or name ends in a traceback, or in a bug of nnaudit's own.

A few cases of each kind are drawn, and 2,500 with ``NNAUDIT_TESTS=all`` in the environment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import stub_audit
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnaudit.app.cli import main
from nnaudit.app.messages import OWN_FAULT
from nnaudit.app.module_name import file_of
from nnaudit.errors import UsageError
from nnaudit.processes import supervisor
from nnaudit.settings import Settings

EXAMPLES = 2_500 if os.environ.get("NNAUDIT_TESTS") == "all" else 40
pytestmark = pytest.mark.timeout(15 * EXAMPLES)
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 40,
    suppress_health_check=list(HealthCheck),
    database=None,
)
STEERING = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}
STEERING |= {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)}
REPORT = json.loads((Path(__file__).parents[2] / "assets" / "report-v1.json").read_text())

words = st.text(st.characters(codec="utf-8"), max_size=30)
keys = st.sampled_from([name.replace("_", "-") for name in Settings.model_fields]) | words
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
settings_words = st.sampled_from(
    ["GRAD", "DATA104", "shuffling", "60s", "1e9h", "-3s", "0", "nan", "cuda:99", "kernel", "json",
     "sarif:x.json", "html:", ":", "net.py", "full", "--", "-", "@", "../x", "\x1b[2J", "::error::"]
)  # fmt: skip
flags = st.sampled_from(
    sorted(
        word
        for command in main.commands.values()  # type: ignore[attr-defined]
        for option in command.params
        for word in option.opts
        if word.startswith("-") and word not in ("--view", "--help", "-h")
    )
)


@pytest.fixture(autouse=True)
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a program whose audit takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNAUDIT_CACHE", str(tmp_path / "cache"))
    for name in ("audit", "battery"):
        monkeypatch.setattr(supervisor, name, getattr(stub_audit, name))
    monkeypatch.setattr(supervisor, "inspect", refused)
    Path("net.py").write_text("import torch\nmodel = torch.nn.Linear(2, 2)\n")


def refused(*_: object) -> None:
    raise UsageError("not in a test")


def assert_told(result: Result) -> None:
    """Whatever came of it was foreseen, and what was said cannot steer a terminal."""
    assert isinstance(result.exception, (SystemExit, type(None))), repr(result.exception)
    assert result.exit_code != OWN_FAULT, result.stderr
    assert "Traceback" not in result.stderr
    assert not STEERING & set(result.stderr), ascii(result.stderr)
    assert not any(line.startswith("::") for line in result.stderr.splitlines())


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, [word.replace("\0", "") for word in words])


def toml(value: Any) -> str:
    """Write ``value`` as TOML, or as something that is nearly TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, (bool, str)) or value is None:
        return json.dumps(value)
    return str(value)


@fuzzed
@given(table=st.dictionaries(keys, values, max_size=4))
def test_any_setting(table: dict[str, Any]) -> None:
    lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in table.items()]
    Path("pyproject.toml").write_text("[tool.nnaudit]\n" + "\n".join(lines), encoding="utf-8")
    assert_told(invoke("config"))


@fuzzed
@given(content=st.binary(max_size=200) | words.map(str.encode))
def test_any_configuration_file(content: bytes) -> None:
    Path("pyproject.toml").write_bytes(content)
    assert_told(invoke("config"))


@fuzzed
@given(st.lists(flags | settings_words | words, max_size=6))
def test_any_words_on_the_command_line(line: list[str]) -> None:
    Path("pyproject.toml").unlink(missing_ok=True)
    assert_told(invoke("net.py", *line))


@fuzzed
@given(st.data())
def test_any_report(data: st.DataObject) -> None:
    report = json.loads(json.dumps(REPORT))
    for _ in range(data.draw(st.integers(1, 3))):
        here: Any = report
        while isinstance(here, (dict, list)) and here:
            places = sorted(here) if isinstance(here, dict) else range(len(here))
            place = data.draw(st.sampled_from(list(places)))
            if data.draw(st.booleans()) or not isinstance(here[place], (dict, list)):
                here[place] = data.draw(values)
                break
            here = here[place]
    Path("report.json").write_text(json.dumps(report), encoding="utf-8")
    for form in ("text", "html", "markdown", "sarif", "github"):
        assert_told(invoke("report", "report.json", "--output-format", f"{form}:out"))


@fuzzed
@given(st.binary(max_size=200) | words.map(str.encode))
def test_any_file_for_a_report(content: bytes) -> None:
    Path("report.json").write_bytes(content)
    assert_told(invoke("report", "report.json"))
    assert_told(invoke("net.py", "--baseline", "report.json", "-q"))


@fuzzed
@given(words | st.text("ab./_-", max_size=300))
def test_any_name(name: str) -> None:
    assert_told(invoke("--", name))
    assert_told(invoke("check", f"./{name}"))
    assert_told(invoke("target", f"./{name}"))
    assert_told(invoke("rule", name))
    try:
        file_of(name)
    except UsageError as error:
        assert "-m" in str(error)
