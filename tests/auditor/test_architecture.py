"""The rules that hold the rooms apart; docs/architecture.md says why."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import nnaudit

ROOT = Path(__file__).resolve().parents[2]
TREES = {"nnaudit": "auditor", "nnaudit.checks": "checks", "nnaudit.reports": "reports"}

ROOMS = {
    "": {"app", "api", "checks", "report", "targets"},
    "__main__": {"app"},
    "api": {
        "checks", "config", "display", "engine", "errors", "loop", "processes", "progress",
        "settings", "state", "targets",
    },
    "app": {
        "api", "checks", "config", "display", "engine", "errors", "fixes", "launchers", "packages",
        "processes", "progress", "report", "reports", "settings", "state", "targets",
    },
    "processes": {"engine", "errors", "report", "state"},
    "fixes": {"report"},
    "callbacks": {
        "app", "config", "display", "engine", "errors", "launchers", "measure", "processes",
        "report", "reports",
    },
    "display": {"report", "reports"},
    "progress": {"engine", "report", "reports"},
    "engine": {
        "checks", "context", "errors", "launchers", "loop", "loop.script", "overview", "packages",
        "ranks",
        "report", "settings", "state", "targets",
    },
    "launchers": {"state"},
    "checks": {
        "context", "errors", "loop", "measure", "probes", "ranks", "report", "state", "stats",
        "targets", "training", "wording",
    },
    "overview": {"errors", "loop", "measure", "report", "targets", "training"},
    "probes": {
        "context", "errors", "loop", "measure", "ranks", "report", "state", "stats", "targets",
        "training",
    },
    "measure": {"context", "errors", "loop", "report", "state", "stats", "targets", "training"},
    "training": {"context", "errors", "loop", "state", "targets"},
    "context": {"errors", "loop", "ranks", "state"},
    "ranks": {"errors", "loop", "loop.script", "report", "state", "targets"},
    "loop.script": {"errors", "loop", "report", "state", "targets", "wording"},
    "loop": {"errors", "report", "state", "targets"},
    "targets": {"errors", "report"},
    "reports": {"errors", "report", "wording"},
    "config": {"errors", "settings"},
    "errors": {"report"},
}  # fmt: skip
"""Which room may import which: the folders, and the modules at the root by their names."""

PARENT = ("app", "processes")
"""The rooms of the parent process."""

WITHOUT_TORCH = (
    *(f"auditor/{name}.py" for name in ("config", "display", "errors", "fixes", "launchers")),
    "auditor/packages.py",
    *(f"auditor/{name}.py" for name in ("progress", "report", "settings", "wording")),
    *(f"checks/{name}.py" for name in ("__init__", "catalog", "docstring", "selectors")),
    *(f"auditor/engine/{name}.py" for name in ("job", "record", "suppression")),
    "auditor/ranks/record.py",
    *(
        f"auditor/targets/{name}.py"
        for name in ("callstack", "definitions", "imports", "notebook", "source")
    ),
    *(
        f"auditor/state/{name}.py"
        for name in (
            "figures",
            "files",
            "landlock",
            "libraries",
            "mirror",
            "namespaces",
            "trackers",
        )
    ),
    "auditor/callbacks/before_training.py",
    "auditor/callbacks/trackers.py",
    "auditor/measure/living.py",
    *(
        str(file.relative_to(ROOT))
        for name in PARENT
        for file in sorted((ROOT / "auditor" / name).glob("*.py"))
    ),
    *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "reports").glob("*.py"))),
)


@cache
def import_statements(file: Path) -> tuple[ast.stmt, ...]:
    tree = ast.walk(ast.parse(file.read_text()))
    return tuple(node for node in tree if isinstance(node, ast.Import | ast.ImportFrom))


def imports(file: Path) -> Iterator[str]:
    for node in import_statements(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(tree: str) -> list[Path]:
    return sorted((ROOT / tree).rglob("*.py"))


def modules() -> dict[str, Path]:
    """Every module of the package by its name, without the leading ``nnaudit.``."""
    found = {}
    for package, tree in TREES.items():
        for file in sources(tree):
            parts = [*package.split(".")[1:], *file.relative_to(ROOT / tree).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__").removesuffix("__init__")] = file
    return found


def imported(file: Path, known: Iterable[str]) -> set[str]:
    """The modules of the package that ``file`` imports, in functions and for types too."""
    found = set()
    for node in import_statements(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.partition(".")[2] in known else node.module for name in names}
    ours = {name for name in found if name.partition(".")[0] == "nnaudit"}
    return {name.partition(".")[2] for name in ours} - {"_version"}


def room(module: str) -> str:
    return "loop.script" if module.startswith("loop.script") else module.partition(".")[0]


def test_every_import_between_rooms_is_in_the_table() -> None:
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, file in known.items():
        targets = {room(target) for target in imported(file, known)} - {room(name)}
        edges.setdefault(room(name), set()).update(targets)
    assert {name: targets for name, targets in edges.items() if targets} == ROOMS


def test_no_room_and_no_module_imports_itself_round_a_corner() -> None:
    known = modules()
    for graph in (ROOMS, {name: imported(file, known) for name, file in known.items()}):
        # Raises CycleError, which names the modules.
        tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_the_parent_process_has_no_torch(file: str) -> None:
    assert not any(name.partition(".")[0] == "torch" for name in imports(ROOT / file))


def test_the_parent_process_asks_for_torch_in_two_places_only() -> None:
    """Of which one explains checks and imports only plug-ins', the other audits for a fixture.

    What runs in the sandbox is the child.
    """
    known = modules()
    graph = {name: imported(file, known) for name, file in known.items()}
    heavy = {name for name, file in known.items() if "torch" in imports(file)} - {""}
    while more := {name for name in graph if graph[name] & heavy} - heavy - {""}:
        heavy |= more
    found = {
        (name, target)
        for name, targets in graph.items()
        for target in targets & heavy
        if room(name) in PARENT and room(target) not in PARENT
    }
    child = ("processes.sandbox", "engine.worker")
    explaining = {edge for edge in found if edge[1] in ("checks", "checks.catalog")}
    assert found - explaining == {("app.pytest_items", "api"), child}


def test_a_check_touches_no_hook_no_snapshot_of_process_and_no_renderer() -> None:
    for file in sources("checks"):
        text = file.read_text()
        assert "register_forward_hook" not in text, file
        assert "Snapshot" not in text, file


@pytest.mark.parametrize(
    "words",
    [["--help"], ["rule", "DATA104"], ["rule", "--all"], ["report", "tests/assets/report-v1.json"]],
)
def test_what_needs_no_training_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from nnaudit.app.cli import main;"
        f"assert CliRunner().invoke(main, {words}).exit_code == 0; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
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


def test_what_one_use_needs_alone_is_an_extra() -> None:
    """pytest runs the plug-in, torchvision an example; nobody who audits needs either."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    assert not required & {"pytest", "torchvision"}
    plug_in = {"pytest_plugin.py", "pytest_session.py", "pytest_items.py"}
    for file in (path for tree in TREES.values() for path in sources(tree)):
        names = {name.partition(".")[0] for name in imports(file)}
        assert "torchvision" not in names, file
        assert "pytest" not in names or file.name in plug_in, file


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
