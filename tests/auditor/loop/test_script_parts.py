"""The parts of which driving a script is made, each by itself."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nnaudit.loop.observer import Observer
from nnaudit.loop.script.mapping import find, loss_rule, recipe
from nnaudit.loop.script.overlay import Overlay
from nnaudit.loop.script.variables import ScriptVariables, planned_epochs
from nnaudit.state import mirror
from nnaudit.state.files import FIRST_LAYER

# --- mapping --------------------------------------------------------------------------------------

TRANSFORMS = {
    "itself": lambda x: x,
    "float": lambda x: x.float(),
    "flat": lambda x: x.reshape(len(x), -1),
    "merged": lambda x: x.reshape(-1, *x.shape[2:]),
    "unsqueezed": lambda x: x[:, None],
    "shifted": lambda x: x[:, 1:],
    "shortened": lambda x: x[:, :-1],
    "shifted and merged": lambda x: x[:, 1:].reshape(-1, *x.shape[2:]),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(TRANSFORMS)),
    rows=st.integers(2, 5),
    other=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_a_recipe_learnt_from_one_batch_holds_for_another(
    name: str, rows: int, other: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        return (
            torch.randint(0, 100, (n, 4, 3), generator=generator),
            torch.randn(n, 2, generator=generator),
        )

    transform = TRANSFORMS[name]
    seen = batch(rows)
    take = find(transform(seen[0]), seen)
    assert take is not None
    new = batch(other)
    made = take.of(new)
    assert torch.equal(made, transform(new[0]))
    assert made.dtype == transform(new[0]).dtype


@pytest.mark.parametrize("change", [lambda x: x / 255, lambda x: -x, lambda x: x.flip(0)])
def test_what_was_computed_is_not_recognised(change: Any) -> None:
    batch = (torch.randn(4, 3), torch.randn(4))
    assert find(change(batch[0]), batch) is None


def test_equal_tensors_are_told_apart_by_name() -> None:
    batch = {"mask": torch.ones(4, 3), "weights": torch.ones(4, 3)}
    for name, tensor in batch.items():
        take = find(tensor, batch, name=name)
        assert take is not None
        assert repr(name) in take.path


def test_a_mask_is_not_taken_for_the_ids_that_it_was_made_of() -> None:
    ids = torch.tensor([[4, 7, 0], [2, 0, 0]])
    batch = {"ids": ids, "mask": ids != 0, "labels": torch.tensor([0, 1])}
    take = find(batch["mask"], batch)
    assert take is not None
    assert "'mask'" in take.path


def test_arguments_are_filled_from_another_batch() -> None:
    batch = {"ids": torch.arange(6).reshape(2, 3), "labels": torch.tensor([0, 1])}
    learnt = recipe((batch["ids"],), {"scale": 2.0, "flag": None, "labels": batch["labels"]}, batch)
    assert learnt is not None
    other = {"ids": torch.zeros(1, 3).long(), "labels": torch.tensor([1])}
    args, kwargs = learnt.fill(other)
    assert args[0] is other["ids"]
    assert kwargs["labels"] is other["labels"]
    assert (kwargs["scale"], kwargs["flag"]) == (2.0, None)
    assert learnt.paths() == {"['ids']", "['labels']"}


def test_a_number_that_counts_targets_follows_from_the_batch() -> None:
    batch = {"ids": torch.arange(6).reshape(3, 2), "labels": torch.tensor([0, -100, 1])}
    learnt = recipe((), {**batch, "num_items": torch.tensor(2)}, batch)
    assert learnt is not None
    other = {"ids": torch.zeros(4, 2).long(), "labels": torch.tensor([1, 0, 1, -100])}
    assert learnt.fill(other)[1]["num_items"] == 3
    summed = recipe((), {**batch, "num_items": torch.tensor(4)}, batch, times=2)
    assert summed is not None, "of the two batches of a step"
    assert summed.fill(batch)[1]["num_items"] == 4
    assert recipe((), {**batch, "temperature": torch.tensor(0.3)}, batch) is None


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_tensor_is_known_by_what_it_holds(layout: str) -> None:
    dense = torch.eye(4)
    made, other = (getattr(each, layout)() for each in (dense, 2 * dense))
    batch = {"x": torch.randn(4, 2), "graph": made}
    take = find(getattr(dense, layout)(), batch)
    assert take is not None
    assert take.path == "['graph']"
    assert find(other, batch) is None


def test_a_loss_is_computed_for_another_output_and_batch() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    batch = (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    output = {"logits": torch.randn(5, 3), "hidden": torch.randn(5, 7)}
    with Observer(nn.Identity()) as observer:
        F.cross_entropy(output["logits"], batch[1], weight=weight)
    rule = loss_rule(observer.observation.loss_calls[0], output, batch)
    assert rule is not None
    new = (torch.randn(3, 4), torch.tensor([2, 2, 1]))
    logits = torch.randn(3, 3)
    expected = F.cross_entropy(logits, new[1], weight=weight)
    assert torch.equal(rule.loss({"logits": logits, "hidden": None}, new), expected)


# --- counters -------------------------------------------------------------------------------------


def test_counters_are_read_and_written_in_functions() -> None:
    counters = ScriptVariables()

    def inner() -> None:
        counters.read()
        for key in counters.values:
            if key[2] == "step":
                counters.values[key] = 41
        counters.write()

    def loop() -> tuple[int, str, list[int]]:
        step, name, seen = 3, "kept", [1]
        inner()
        step += 1
        return step, name, seen

    assert loop() == (42, "kept", [1])


def test_unchanged_counters_are_left_alone() -> None:
    counters = ScriptVariables()

    def loop() -> int:
        step = 3
        counters.read()
        step = 5
        counters.write()
        return step

    assert loop() == 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_epochs": 12, "epoch": 3}, 12),
        ({"args": Namespace(lr=0.1, epochs=7)}, 7),
        ({"config": {"N_EPOCHS": 4}}, 4),
        ({"epoch": 3, "epochs_seen": 2, "epochs": None}, 0),
    ],
)
def test_the_number_of_epochs_is_known_by_its_name(settings: dict[str, Any], expected: int) -> None:
    script = compile("found = planned_epochs()", __file__, "exec")
    variables: dict[str, Any] = {"planned_epochs": planned_epochs, **settings}
    exec(script, variables)
    assert variables["found"] == expected


# --- overlay --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.txt").write_text("inner")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_each_layer_starts_from_the_users_files(folder: Path) -> None:
    before = contents(folder)
    with Overlay((str(folder),)) as overlay:
        for _ in range(2):
            with overlay.fresh():
                assert contents(folder) == before
                (folder / "new.txt").write_text("new")
                Path("old.txt").unlink()
                os.replace("sub/inner.txt", "moved.txt")  # noqa: PTH105
                assert contents(folder) == {"new.txt": "new", "moved.txt": "inner"}
                assert not Path("old.txt").exists()
                with pytest.raises(FileNotFoundError):
                    Path("old.txt").read_text()
                with pytest.raises(FileExistsError):
                    Path("sub").mkdir()
    assert contents(folder) == before
    assert not Path(overlay.scratch).exists()


def test_appending_and_updating_keep_what_was_there(folder: Path) -> None:
    with Overlay((str(folder),)):
        with Path("old.txt").open("r+") as file:
            file.write("O")
        assert Path("old.txt").read_text() == "Old"
        descriptor = os.open("old.txt", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"!")
        os.close(descriptor)
        assert Path("old.txt").read_text() == "Old!"
    assert Path("old.txt").read_text() == "old"


def test_a_whole_folder_may_be_renamed(folder: Path) -> None:
    before = contents(folder)
    with Overlay((str(folder),)):
        os.rename("sub", "other")  # noqa: PTH104
        assert Path("other/inner.txt").read_text() == "inner"
        assert not Path("sub").exists()
        assert sorted(os.listdir()) == ["old.txt", "other"]  # noqa: PTH208
        assert [name for name, *_ in os.walk(".")] == [".", "./other"]
    assert contents(folder) == before


def test_compiled_writers_are_diverted(folder: Path, tmp_path_factory: Any) -> None:
    before, scratch = contents(folder), tmp_path_factory.mktemp("scratch")
    with Overlay((str(folder),), scratch=str(scratch)):
        torch.save(torch.ones(2), folder / "a.pt")
        assert torch.load("a.pt").sum() == 2
        np.savez("b.npz", x=np.ones(2))
        with np.load("b.npz") as stored:
            assert stored["x"].sum() == 2
        connection = sqlite3.connect("c.db")
        connection.execute("create table t (x)")
        connection.close()
    assert contents(folder) == before
    tree = Path(f"{scratch}/{FIRST_LAYER}{folder}")
    assert {path.name for path in tree.iterdir() if not path.is_symlink()} == {
        *("a.pt", "b.npz", "c.db")
    }


def test_other_temporary_files_are_nobodys(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere, scratch = (tmp_path_factory.mktemp(name) for name in ("elsewhere", "scratch"))
    with Overlay((str(folder),), scratch=str(scratch)):
        (elsewhere / "file").write_text("x")
    assert all(path.is_symlink() for path in (scratch / FIRST_LAYER).iterdir())
    assert (elsewhere / "file").read_text() == "x"


@pytest.fixture
def inside(
    folder: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Overlay]:
    """A program that works in the tree; a file is too large to be copied at the start."""
    monkeypatch.setattr(mirror, "SMALL", 5)
    (folder / "large.csv").write_text("larger")
    (folder / "sub" / "link").symlink_to("inner.txt")
    scratch = tmp_path_factory.mktemp("scratch")
    with Overlay((str(folder),), scratch=str(scratch), moves_in=True) as overlay:
        yield overlay


def test_the_program_works_in_the_tree(inside: Overlay, folder: Path) -> None:
    assert str(Path.cwd()) == f"{inside.tree.root}{folder}"
    Path("new").mkdir()
    np.savetxt("new/split.txt", np.ones(2))
    read = subprocess.run(["cat", Path("new/split.txt").resolve()], capture_output=True, check=True)
    assert read.stdout == Path("new/split.txt").read_bytes()
    assert Path(folder, "new", "split.txt").exists(), "by its name outside of the tree, too"
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(b"x")
    os.chdir("new")
    os.chdir("..")
    assert Path("old.txt").read_text() == "old"


def test_the_trees_own_links_are_not_seen(inside: Overlay) -> None:
    large = Path("large.csv")
    assert mirror.original(str(large.absolute()))
    assert not large.is_symlink()
    assert large.resolve() == large.absolute()
    with os.scandir(".") as entries:
        kinds = {e.name: (e.path, e.is_file(), e.is_dir(), e.is_symlink()) for e in entries}
    assert kinds["large.csv"] == ("./large.csv", True, False, False)
    assert kinds["sub"] == ("./sub", False, True, False)
    assert Path("sub/link").is_symlink()
    assert sorted(map(str, Path().rglob("*.*"))) == ["large.csv", "old.txt", "sub/inner.txt"]


def test_an_original_is_not_changed_through_a_link(inside: Overlay, folder: Path) -> None:
    status = Path("large.csv").stat()
    os.utime("large.csv", (1, 1))
    os.chmod("large.csv", 0o600)  # noqa: PTH101
    with Path("large.csv").open() as file:
        os.fchmod(file.fileno(), 0o600)
    Path("large.csv").write_text("small")
    os.link("large.csv", "hard.csv")
    Path("hard.csv").unlink()
    Path("large.csv").unlink()
    shutil.rmtree(folder / "sub")
    assert sorted(os.listdir()) == ["old.txt"]  # noqa: PTH208
    inside.__exit__(None, None, None)
    assert Path("large.csv").stat() == status
    assert contents(folder)["large.csv"] == "larger"
    assert (folder / "sub" / "link").read_text() == "inner"


def test_another_execution_works_in_a_tree_at_the_same_place(inside: Overlay) -> None:
    here = Path.cwd()
    Path("old.txt").write_text("first")
    with inside.fresh():
        assert Path.cwd() == here
        assert Path("old.txt").read_text() == "old"
    assert Path("old.txt").read_text() == "first"


def test_a_wide_folder_above_the_program_is_read(
    folder: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "WIDE", 0)
    beside = tmp_path_factory.mktemp("beside")
    (beside / "data.csv").write_text("1")
    name = f"../{beside.name}/data.csv"
    scratch = tmp_path_factory.mktemp("scratch")
    with Overlay((str(folder),), scratch=str(scratch), refusing=True, moves_in=True):
        assert Path(name).read_text() == "1"
        assert Path(name).stat().st_size == 1
        assert beside.name in os.listdir("..")  # noqa: PTH208
        assert subprocess.run(["cat", name], capture_output=True, check=True).stdout == b"1"
