"""The rules of DESIGN.md that hold the parts apart."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnaudit

ROOT = Path(__file__).resolve().parents[2]
TREES = {"nnaudit": "auditor", "nnaudit.checks": "checks", "nnaudit.reports": "reports"}

FORBIDDEN = {
    "reports": ("nnaudit.checks", "nnaudit.loop", "nnaudit.probes", "nnaudit.cli", "torch"),
    "checks": ("nnaudit.reports", "nnaudit.cli", "nnaudit.supervisor", "nnaudit.runner"),
    "auditor/probes": ("nnaudit.checks", "nnaudit.reports", "nnaudit.cli", "nnaudit.runner"),
    "auditor/loop": ("nnaudit.checks", "nnaudit.probes", "nnaudit.reports", "nnaudit.runner"),
}
WITHOUT_TORCH = (
    "auditor/cli.py", "auditor/config.py", "auditor/errors.py", "auditor/job.py",
    "auditor/output.py", "auditor/progress.py", "auditor/record.py", "auditor/report.py",
    "auditor/supervisor.py", "auditor/suppression.py",
    "auditor/pytest_plugin.py", "auditor/pytest_items.py",
)  # fmt: skip


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(tree: str) -> list[Path]:
    return sorted((ROOT / tree).rglob("*.py"))


@pytest.mark.parametrize("tree", FORBIDDEN)
def test_imports_run_one_way(tree: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(tree)
        for name in imports(file)
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN[tree])
    ]
    assert wrong == []


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_the_parent_process_has_no_torch(file: str) -> None:
    assert not any(name.partition(".")[0] == "torch" for name in imports(ROOT / file))


def test_a_check_touches_no_hook_no_snapshot_of_process_and_no_renderer() -> None:
    for file in sources("checks"):
        text = file.read_text()
        assert "register_forward_hook" not in text, file
        assert "Snapshot" not in text, file


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from nnaudit.cli import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    present = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in TREES.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == present


def test_the_version_is_written_alike_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == nnaudit.__version__
    assert f"## {nnaudit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_can_be_imported() -> None:
    for name in nnaudit.__all__:
        assert getattr(nnaudit, name) is not None
    with pytest.raises(AttributeError):
        _ = nnaudit.nonsense


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_resource(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in TREES.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".j2", ".css", ".txt", ".json", ".typed"}:
                inside = Path(package.replace(".", "/")) / file.relative_to(ROOT / folder)
                assert str(inside) in names, inside
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"nnaudit", next(t for t in tops if t.endswith(".dist-info"))}
