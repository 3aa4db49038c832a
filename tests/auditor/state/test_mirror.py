"""The tree in which a program works where the kernel lays no overlay."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nnaudit.state import mirror
from nnaudit.state.mirror import Mirror, is_as_it_was

LARGE = "large " * 4


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder; one of its files is too large to be copied at the start."""
    monkeypatch.setattr(mirror, "SMALL", 20)
    folder = tmp_path / "project"
    (folder / "runs" / "1").mkdir(parents=True)
    (folder / "runs" / "1" / "best.pt").write_text("best")
    (folder / "log.csv").write_text("epoch,loss\n")
    (folder / "log.csv").chmod(0o640)
    os.utime(folder / "log.csv", (1e9, 1e9))
    (folder / "large.bin").write_text(LARGE)
    (folder / "latest").symlink_to("runs/1")
    (folder / "first").symlink_to(folder / "runs" / "1")
    (folder / "env").mkdir()
    (folder / "env" / "pyvenv.cfg").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("1,2")
    return folder


@pytest.fixture
def tree(project: Path, tmp_path: Path) -> Mirror:
    (tmp_path / "scratch").mkdir()
    made = Mirror(str(tmp_path / "scratch" / "tree"), lambda path: path == f"{project}/real")
    made.grow((str(project),))
    return made


def state_of(folder: Path) -> dict[Path, tuple[float, ...]]:
    return {
        path: (found.st_mode, found.st_ino, found.st_size, found.st_mtime)
        for path in folder.rglob("*")
        for found in [path.lstat()]
    }


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def shell(text: str, folder: str) -> str:
    """What a program that knows of nothing finds in ``folder``."""
    done = subprocess.run(
        ["sh", "-ec", text], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_others_than_python_work_in_the_tree(tree: Mirror, project: Path) -> None:
    before = state_of(project)
    text = """
    cat log.csv latest/best.pt first/best.pt ../data/train.csv large.bin
    echo new >> log.csv; mkdir -p out/1; mv runs out/1; echo x > latest2; rm large.bin first
    cat out/1/runs/1/best.pt log.csv; ls
    """
    assert shell(text, tree.root + str(project)).splitlines() == [
        *("epoch,loss", "bestbest1,2large large large large bestepoch,loss", "new"),
        *("env", "latest", "latest2", "log.csv", "out"),
    ]
    assert state_of(project) == before


def test_what_is_copied_is_as_it_was(tree: Mirror, project: Path) -> None:
    copy, original = Path(f"{tree.root}{project}/log.csv"), project / "log.csv"
    assert not copy.is_symlink()
    assert (copy.stat().st_mode, copy.stat().st_mtime) == (original.stat().st_mode, 1e9)
    assert Path(f"{tree.root}{project}").stat().st_mtime == project.stat().st_mtime


def test_a_link_gives_way_to_a_copy(tree: Mirror, project: Path) -> None:
    name = f"{project}/large.bin"
    assert mirror.original(tree.root + name) == name
    assert tree.reading(name) == name
    place = tree.owned(name)
    assert place == tree.root + name == tree.reading(name)
    assert Path(place).read_text() == LARGE
    Path(place).write_bytes(b"")
    assert Path(name).read_text() == LARGE


def test_a_folder_of_links_gives_way_to_one(tree: Mirror, project: Path) -> None:
    data = project.parent / "data"
    assert mirror.original(f"{tree.root}{data}") == str(data)
    assert tree.owned(f"{data}/new.csv") == f"{tree.root}{data}/new.csv"
    assert names(f"{tree.root}{data}") == ["train.csv"]
    assert mirror.original(f"{tree.root}{data}/train.csv") == f"{data}/train.csv"


def test_links_of_the_users_are_followed(tree: Mirror, project: Path) -> None:
    place = f"{tree.root}{project}/runs/1/new.pt"
    assert tree.owned(f"{project}/latest/new.pt") == place
    assert tree.owned(f"{project}/first/new.pt") == place
    assert tree.owned(f"{project}/latest", follow=False) == f"{tree.root}{project}/latest"
    Path(f"{tree.root}{project}/loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        tree.owned(f"{project}/loop")


def test_what_was_removed_is_not_there(tree: Mirror, project: Path) -> None:
    Path(tree.owned(f"{project}/large.bin", follow=False)).unlink()
    assert not Path(tree.reading(f"{project}/large.bin")).exists()
    assert (project / "large.bin").exists()


def test_a_renamed_original_can_still_be_brought(tree: Mirror, project: Path) -> None:
    folder = f"{tree.root}{project}"
    Path(folder, "large.bin").rename(f"{folder}/moved.bin")
    assert Path(tree.owned(f"{project}/moved.bin")).read_text() == LARGE
    assert not Path(folder, "moved.bin").is_symlink()


def test_nothing_is_done_to_an_original(tree: Mirror, project: Path) -> None:
    assert not tree.changeable(f"{project}/large.bin")
    assert tree.changeable(f"{project}/log.csv") == f"{tree.root}{project}/log.csv"
    assert tree.changeable(f"{project}/latest/best.pt") == f"{tree.root}{project}/runs/1/best.pt"


def test_what_is_written_for_real_stays_a_link(project: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    tree = Mirror(
        str(tmp_path / "scratch" / "tree"), lambda path: path.startswith(f"{project}/runs")
    )
    tree.grow((str(project),))
    assert tree.owned(f"{project}/runs/new") == f"{project}/runs/new"
    shell("echo x > runs/new", tree.root + str(project))
    assert (project / "runs" / "new").exists()


def test_much_is_linked(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "ENTRIES", 3)
    monkeypatch.setattr(mirror, "COPIED", 4)
    (project / "many").mkdir()
    for number in range(4):
        (project / "many" / str(number)).touch()
    (tmp_path / "scratch").mkdir()
    tree = Mirror(str(tmp_path / "scratch" / "tree"), lambda path: False)
    tree.grow((str(project),))
    here = f"{tree.root}{project}"
    assert all(mirror.original(f"{here}/{name}") for name in ("many", "env", "log.csv"))
    assert names(f"{here}/many") == list("0123")


def test_another_tree_begins_with_the_users_files(tree: Mirror, project: Path) -> None:
    file = f"{tree.root}{project}/log.csv"
    Path(file).write_text("first")
    with tree.fresh():
        tree.grow((str(project),))
        assert Path(file).read_text() == "epoch,loss\n"
        Path(file).write_text("second")
    assert Path(file).read_text() == "first"
    assert not list(Path(tree.root).parent.glob("tmp*"))


def test_what_changed_is_known(tree: Mirror, project: Path) -> None:
    here = f"{tree.root}{project}"
    Path(here, "new").touch()
    Path(here, "latest").unlink()
    Path(here, "latest").symlink_to("runs")
    Path(here, "runs", "1", "best.pt").write_text("better")
    Path(here, "large.bin").rename(f"{here}/moved.bin")
    changed = [
        name
        for above, _, names in os.walk(here)
        for name in (*names, *(["latest", "first"] if above == here else []))
        if not is_as_it_was(f"{above}/{name}", f"{above}/{name}".removeprefix(tree.root))
    ]
    assert sorted(changed) == ["best.pt", "latest", "moved.bin", "new"]


def test_a_wide_folder_above_is_completed_when_it_matters(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "WIDE", 2)
    (tmp_path / "scratch").mkdir()
    above = project.parent
    tree = Mirror(str(tmp_path / "scratch" / "tree"), lambda path: False)
    tree.grow((str(project / "runs"), str(project)))
    here = f"{tree.root}{above}"
    assert names(here) == ["project"]
    assert mirror.original(f"{here}/project/large.bin"), "the project is whole"
    assert tree.reading(f"{above}/data/train.csv") == f"{above}/data/train.csv"
    assert tree.reading(f"{above}/nowhere") == f"{above}/nowhere"
    Path(tree.owned(f"{above}/data/train.csv", follow=False)).unlink()
    assert names(here) == ["data", "project"], "and not the tree itself"
    assert not Path(tree.reading(f"{above}/data/train.csv")).exists()
    tree.complete(str(above))
    assert names(f"{here}/data") == []
