"""``scripts/new-check`` writes what loads, what ruff likes, and tests that fail until filled in."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from nnaudit.checks.base import Check

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, file: Path) -> ModuleType:
    loader = SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks up its own module
    try:
        loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def new_check() -> ModuleType:
    return load("new_check", ROOT / "scripts" / "new-check")


def test_a_family_gets_its_next_number_and_no_code_is_given_twice(new_check: ModuleType) -> None:
    code = new_check.complete("STEP")
    assert code.startswith("STEP1")
    assert code not in new_check.used_codes()
    assert new_check.complete("STEP999") == "STEP999"
    for wrong, said in (("STEP101", "taken"), ("NONE101", "family"), ("STEP1", "three digits")):
        with pytest.raises(ValueError, match=said):
            new_check.complete(wrong)


def test_a_retired_code_is_not_used_again(
    new_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "stability.md").write_text(
        "## Codes\nSTEP110\n### Retired\n- STEP111: x\n"
    )
    (tmp_path / "checks" / "step").mkdir(parents=True)
    (tmp_path / "checks" / "step" / "__init__.py").touch()
    monkeypatch.setattr(new_check, "ROOT", tmp_path)
    assert new_check.used_codes() == {"STEP111"}
    assert new_check.complete("STEP") == "STEP112"


@pytest.mark.parametrize("probe", [None, "weight-average"])
@pytest.mark.parametrize("kind", ["exact", "statistical", "judgement"])
def test_the_skeletons_load_and_their_tests_fail(
    new_check: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    probe: str | None,
) -> None:
    made = new_check.files("STEP999", "adam-beta2", kind, probe)
    assert len(made) == (5 if probe else 3)
    for path, text in made.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if probe:
        name = "nnaudit.probes.weight_average"
        monkeypatch.setitem(
            sys.modules, name, load(name, tmp_path / "auditor/probes/weight_average.py")
        )
    name = "nnaudit.checks.step.adam_beta2"
    module = load(name, tmp_path / "checks/step/adam_beta2.py")
    monkeypatch.setitem(sys.modules, name, module)
    check: type[Check] = module.AdamBeta2
    check.validate()
    assert (check.code, check.name, check.kind) == ("STEP999", "adam-beta2", kind)
    for path in (path for path in made if "/test_" in path):
        tests = load(Path(path).stem, tmp_path / path)
        for test in (value for name, value in vars(tests).items() if name.startswith("test_")):
            with pytest.raises((AssertionError, NotImplementedError)):
                test()


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_the_skeletons_are_clean(new_check: ModuleType) -> None:
    for probe in (None, "weight-average"):
        for path, text in new_check.files("STEP999", "adam-beta2", "exact", probe).items():
            for command in (["check"], ["format", "--check"]):
                done = subprocess.run(
                    ["ruff", *command, "--stdin-filename", path, "-"],
                    input=text, cwd=ROOT, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{path}\n{done.stdout}{done.stderr}"


def test_every_place_to_fill_in_says_so(new_check: ModuleType) -> None:
    for path, text in new_check.files("STEP999", "adam-beta2", "exact", "weight-average").items():
        assert "TODO" in text, path


def test_no_skeleton_is_left_to_fill_in() -> None:
    folders = ("checks", "auditor/probes", "tests/checks", "tests/zoo", "tests/auditor/probes")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 400
    left = [str(file.relative_to(ROOT)) for file in files if "TODO" in file.read_text()]
    assert left == [], "fill the skeletons in"
