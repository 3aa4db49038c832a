"""What a script evaluates its network on is its validation, wherever it comes to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from nnaudit.loop.script import ScriptLoop, run_script, validation
from nnaudit.loop.script.evaluation import validation_loader
from nnaudit.loop.script.naming import words
from nnaudit.loop.script.training_objects import Registers


def test_a_second_look_at_the_training_rows_is_no_validation() -> None:
    data = TensorDataset(torch.zeros(8, 1))
    train, again, other = DataLoader(data, shuffle=True), DataLoader(data), DataLoader([1, 2])
    assert validation_loader(Registers(), train, [again]) is None
    assert validation_loader(Registers(), train, [again, other]) is other


def test_the_same_rows_in_a_data_set_of_their_own_are_no_validation() -> None:
    x = torch.randn(40, 2)
    train = DataLoader(TensorDataset(x), shuffle=True)
    own = DataLoader(TensorDataset(x.clone()))
    unseen = DataLoader(TensorDataset(torch.randn(40, 2)))
    assert validation_loader(Registers(), train, [own]) is None
    assert validation_loader(Registers(), train, [unseen]) is unseen


@pytest.mark.parametrize(
    ("name", "meant", "means"),
    [
        ("val_dl", "val", True),
        ("testLoader", "test", True),
        ("testloader", "test", True),
        ("XTestSet", "test", True),
        ("dataloader_eval2", "eval", True),
        ("latest_batches", "test", False),
        ("retrieval_loader", "eval", False),
        ("devices", "dev", False),
        ("interval", "val", False),
    ],
)
def test_a_name_is_made_of_words(name: str, meant: str, means: bool) -> None:
    assert (meant in words(name)) is means


def test_a_validation_loader_is_known_by_a_whole_word() -> None:
    registers, train = Registers(), DataLoader([1])
    retrieval_loader = DataLoader([2])
    for loader in (train, retrieval_loader):
        registers.of["loader"].add(loader)
    assert validation_loader(registers, train, []) is None
    valid_loader = DataLoader([3])
    registers.of["loader"].add(valid_loader)
    assert validation_loader(registers, train, []) is valid_loader


def test_samplers_may_share_out_one_data_set() -> None:
    data = TensorDataset(torch.zeros(8, 1))
    parts = [DataLoader(data, sampler=SubsetRandomSampler(r)) for r in (range(6), range(6, 8))]
    assert validation_loader(Registers(), parts[0], [parts[1]]) is parts[1]


# --- found by letting the script come to it -------------------------------------------------------

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

torch.manual_seed(0)
X, Y = torch.randn(48, 4), torch.arange(48) % 3
X_train, y_train, X_val, y_val = X[:32], Y[:32], X[32:], Y[32:]
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)


def fit(x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""

EPOCHS = """
loader = DataLoader(TensorDataset(X_train, y_train), batch_size=8, shuffle=True)
for epoch in range({epochs}):
    for x, y in loader:
        fit(x, y)
    {after}
"""


def rows_of(loop: ScriptLoop) -> tuple[list[float], int]:
    """The first column of what is validated with, and how often the script was run again."""
    if loop.val_loader is None:
        return [], loop.run.reruns
    found = [batch[0][:, 0].tolist() for batch in loop.val_batches()]
    # The audit goes on from where it was.
    assert loop.step(next(iter(loop.batches()))).loss > 0
    return [round(value, 4) for rows in found for value in rows], loop.run.reruns


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.chdir(tmp_path)

    def run(text: str) -> Any:
        path = tmp_path / "train.py"
        path.write_text(HEAD + text)
        return run_script(path, [], "cpu", 0, rows_of)

    return run


torch.manual_seed(0)
_ROWS = [round(value, 4) for value in torch.randn(48, 4)[:, 0].tolist()]
TRAINED, HELD = _ROWS[:32], _ROWS[32:]

STYLES = {
    "a loader made in a function": """
def validate():
    held = DataLoader(TensorDataset(X_val, y_val), batch_size=6)
    with torch.no_grad():
        return sum((model(a).argmax(1) == b).sum().item() for a, b in held)
""",
    "gradients left on, and a look at the training rows first": """
def accuracy(x, y):
    return sum((model(a).argmax(1) == b).sum() for a, b in DataLoader(TensorDataset(x, y), 6))

def validate():
    model.eval()
    return accuracy(X[:32], Y[:32]), accuracy(X[32:], Y[32:])
""",
    "tensors, whole": """
@torch.no_grad()
def validate():
    out = model(X_val)
    return (out.argmax(1) == y_val).float().mean(), F.cross_entropy(model(X_train), y_train)
""",
    "tensors in slices": """
@torch.inference_mode()
def validate():
    return [F.cross_entropy(model(X_val[i : i + 5]), y_val[i : i + 5]) for i in range(0, 16, 5)]
""",
    "a list of batches, by a function that takes either": """
batches = {part: [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
           for part, x, y in (("train", X_train, y_train), ("val", X_val, y_val))}
train_batches, val_batches = batches["train"], batches["val"]

def accuracy(some):
    with torch.no_grad():
        return sum(model(a).max(1)[1].eq(b).sum() for a, b in some)

def validate():
    return accuracy(train_batches), accuracy(val_batches)
""",
    "rows drawn anew, the split in a variable": """
def get_batch(split):
    x, y = (X_train, y_train) if split == "train" else (X_val, y_val)
    order = torch.arange(len(x))
    return x[order], y[order]

@torch.no_grad()
def validate():
    losses = {}
    for split in ("train", "val"):
        a, b = get_batch(split)
        losses[split] = F.cross_entropy(model(a), b).item()
    return losses
""",
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_what_a_script_validates_with_after_its_epoch_is_found(found: Any, style: str) -> None:
    rows, reruns = found(STYLES[style] + EPOCHS.format(epochs=50, after="validate()"))
    assert sorted(rows) == sorted(HELD)
    assert reruns == 0


def test_a_script_is_let_go_on_until_it_validates(found: Any) -> None:
    text = STYLES["tensors, whole"]
    rows, _ = found(text + EPOCHS.format(epochs=50, after="(epoch + 1) % 5 or validate()"))
    assert rows == HELD


def test_a_test_after_the_last_epoch_is_found_and_the_script_run_again(found: Any) -> None:
    text = STYLES["a loader made in a function"]
    rows, reruns = found(text + EPOCHS.format(epochs=2, after="pass") + "validate()\n")
    assert rows == HELD
    assert reruns == 1


def test_what_names_do_not_tell_from_training_rows_is_no_validation(found: Any) -> None:
    text = """
@torch.no_grad()
def accuracy(x, y):
    return (model(x[torch.arange(9)]).argmax(1) == y[:9]).float().mean()
"""
    rows, _ = found(text + EPOCHS.format(epochs=50, after="accuracy(X_train, y_train)"))
    assert rows == []


def test_a_script_without_a_loader_validates_on_tensors(found: Any) -> None:
    text = """
for step in range(300):
    fit(X_train, y_train)
    if step % 10 == 0:
        with torch.no_grad():
            loss = F.cross_entropy(model(X_val), y_val)
"""
    rows, _ = found(text)
    assert rows == HELD


UNNAMED = """
Xa, Ya, Xb, Yb = X[:32].clone(), Y[:32].clone(), X[32:].clone(), Y[32:].clone()
for step in range(300):
    fit(Xa, Ya)
    if step % 10 == 0:
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(Xb), Yb)
        model.train()
"""


def test_other_rows_that_a_loss_is_computed_of_in_eval_mode_are_validation(found: Any) -> None:
    assert found(UNNAMED)[0] == HELD
    hits = UNNAMED.replace("F.cross_entropy(model(Xb), Yb)", "(model(Xb).argmax(1) == Yb).sum()")
    assert found(hits)[0] == HELD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model(Xb), Yb", "model(Xa), Ya"),
        ("model(Xb), Yb", "model(Xa[8:]), Ya[8:]"),
        ("model.eval()", "pass"),
        ("F.cross_entropy(model(Xb), Yb)", "model(Xb) - Xb[:, :1]"),
        ("torch.no_grad()", "torch.enable_grad()"),
    ],
    ids=["training rows", "some of them", "train mode", "no score", "gradients"],
)
def test_what_else_a_network_is_called_on_is_none(found: Any, old: str, new: str) -> None:
    assert found(UNNAMED.replace(old, new))[0] == []


def test_what_the_loop_does_not_show_comes_from_a_conventional_name(found: Any) -> None:
    text = """
def val_loader():
    return DataLoader(TensorDataset(X_val, y_val), batch_size=8)
"""
    rows, _ = found(text + EPOCHS.format(epochs=50, after="pass"))
    assert rows == HELD


def test_a_long_walk_between_two_epochs_is_cut_off(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SECONDS", 0.5)
    text = """
import time

def validate():
    with torch.no_grad():
        (model(X_val).argmax(1) == y_val).sum()
        for _ in range(1000):
            time.sleep(0.01)
            model(torch.randn(2, 4))
"""
    rows, reruns = found(text + EPOCHS.format(epochs=50, after="validate()"))
    assert rows == HELD
    assert reruns == 1


def test_a_training_loader_made_anew_for_every_epoch_is_no_validation(found: Any) -> None:
    text = """
def train_loader():
    return DataLoader(TensorDataset(X[:32].clone(), Y[:32].clone()), batch_size=8)

def val_loader():
    return DataLoader(TensorDataset(X_val, y_val), batch_size=8)

for epoch in range(50):
    model.train()
    for x, y in train_loader():
        fit(x, y)
"""
    rows, reruns = found(text)
    assert (rows, reruns) == (HELD, 0)
