"""Every check is complete, its code its own, and plug-ins come in by the same door as ours."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nnaudit.checks import builtin, registry
from nnaudit.checks.base import Check, CheckDefinitionError
from nnaudit.checks.registry import Registry
from nnaudit.engine.session import selected
from nnaudit.errors import UsageError
from nnaudit.report import Kind, Result, Status
from nnaudit.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CHECKS = builtin()


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.code)
def test_every_check_is_complete(check: type[Check]) -> None:
    check.validate()


def test_codes_and_names_are_distinct() -> None:
    assert len({check.code for check in CHECKS}) == len(CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.code)
def test_every_check_stands_in_a_file_of_its_own_name(check: type[Check]) -> None:
    parts = check.__module__.split(".")
    assert parts[-2] == check.family().lower()
    assert parts[-1] == check.name.replace("-", "_")
    mirrored = ROOT / "tests" / "checks" / parts[-2] / f"test_{parts[-1]}.py"
    assert mirrored.exists()


def test_the_readme_lists_the_battery() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(
        r"^\| ([A-Z]+\d{3}) ([a-z0-9-]+) \| (.+?) \| ([a-z]+) \|$", readme, re.MULTILINE
    )
    expected = [
        (
            check.code,
            check.name,
            " ".join(check.documentation()["question"].split()),
            check.kind,
        )
        for check in Registry.load().checks
    ]
    assert rows == expected, "run `python scripts/docs`"


def test_selection_by_code_family_and_name() -> None:
    known = Registry.load()
    assert [c.code for c in known.select(["DATA101"])] == ["DATA101"]
    assert {c.family() for c in known.select(["fit"])} == {"FIT"}
    assert [c.code for c in known.select(["shuffling"])] == ["DATA104"]
    assert "FIT101" not in [c.code for c in known.select(ignore=["FIT"])]
    quick = known.select(quick=True)
    assert not any(check.trains for check in quick)
    assert "FIT101" in [c.code for c in known.select(extend=["FIT101"], quick=True)]


def test_what_lies_between_processes_is_asked_of_several_or_by_name() -> None:
    known = Registry.load()
    families = lambda settings: {c.family() for c in selected(known, settings)}  # noqa: E731
    assert "DIST" not in families(Settings())
    assert "DIST" in families(Settings(nproc_per_node=2))
    assert families(Settings(select=("DIST",))) == {"DIST"}
    assert "DIST" in families(Settings(extend_select=("DIST101",)))


@pytest.mark.parametrize(("word", "near"), [("DATA1O4", "DATA104"), ("shufling", "shuffling")])
def test_an_unknown_selector_names_the_nearest(word: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        Registry.load().select([word])


def test_what_has_no_neighbour_is_pointed_to_the_list() -> None:
    with pytest.raises(UsageError, match="rule --all"):
        Registry.load().find("qqqqqq")


class Plugged(Check):
    """Is it plugged in?

    Why: because.
    How: by looking.
    Fix: plug it in.
    References: none.
    """

    code, name, kind = "PLUG101", "plugged-in", Kind.JUDGEMENT

    def run(self, audit):
        return self.passed("It is.")


def points(*values: str):
    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "nnaudit.checks"
        return [
            EntryPoint(name=f"p{i}", value=value, group=group) for i, value in enumerate(values)
        ]

    return entry_points


def test_a_plug_in_that_cannot_be_loaded_is_kept_with_its_reason(monkeypatch) -> None:
    monkeypatch.setattr(
        registry, "entry_points", points("nnaudit.checks:builtin", "no_such_module:checks")
    )
    loaded = Registry.load()
    assert len(loaded.checks) == len(CHECKS)
    assert "no_such_module" in loaded.broken[0].reason


def test_where_no_check_can_be_loaded_the_reason_is_said(monkeypatch) -> None:
    monkeypatch.setattr(registry, "entry_points", points("no_such_module:checks"))
    with pytest.raises(UsageError, match=r"no check could be loaded.*no_such_module"):
        selected(Registry.load(), Settings())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": "plug"}, "3 digits"),
        ({"name": "Plugged In"}, "kebab"),
        ({"__doc__": "It is plugged in."}, "question"),
        ({"__doc__": "Is it?\n\nWhy: so.\nHow: so.\nFix: so."}, "References"),
    ],
)
def test_an_incomplete_check_is_refused(change: dict[str, str], said: str) -> None:
    broken = type("Broken", (Plugged,), change)
    with pytest.raises(CheckDefinitionError, match=said):
        broken.validate()


def test_a_judgement_cannot_fail_and_a_finding_needs_a_fix() -> None:
    with pytest.raises(ValueError, match="judgement"):
        Plugged().failed("no", fix="x")
    with pytest.raises(ValueError, match="fix"):
        Plugged().warned("no")
    result = Plugged().warned("no", fix="x")
    assert isinstance(result, Result)
    assert (result.status, result.family, result.question) == (
        Status.WARN, "PLUG", "Is it plugged in?",
    )  # fmt: skip
