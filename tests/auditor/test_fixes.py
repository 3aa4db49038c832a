"""What is changed in the user's source, and where nothing is certain enough to be."""

from __future__ import annotations

import pytest

pytest.importorskip("libcst")

from nnaudit.fixes import fixed
from nnaudit.report import Kind, Location, Result, Status


def mended(code: str, source: str, line: int, status: Status = Status.FAIL) -> str | None:
    result = Result(
        code=code,
        name="x",
        family=code[:4],
        kind=Kind.EXACT,
        status=status,
        message="m",
        location=Location(file="train.py", line=line),
    )
    return fixed(result, source)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("l = DataLoader(data)\n", "l = DataLoader(data, shuffle=True)\n"),
        ("l = DataLoader(d, 64, shuffle = False)  # no\n",
         "l = DataLoader(d, 64, shuffle = True)  # no\n"),
        ("l = data.DataLoader(\n    d,\n    batch_size=64,\n)\n",
         "l = data.DataLoader(\n    d,\n    batch_size=64,\n    shuffle=True,\n)\n"),
        ("def train_loader():\n    return DataLoader(d, 64)\n",
         "def train_loader():\n    return DataLoader(d, 64, shuffle=True)\n"),
    ],
)  # fmt: skip
def test_a_loader_is_shuffled(before: str, after: str) -> None:
    assert mended("DATA104", before, 1) == after


@pytest.mark.parametrize(
    "source",
    [
        "l = DataLoader(d, sampler=s)\n",
        "l = DataLoader(d, **options)\n",
        "l = DataLoader(d, shuffle=True)\n",
        "a, b = DataLoader(d), DataLoader(e)\n",
        "l = make_loader(d)\n",
        "l = DataLoader(d, 64, False)\n",
        "def loaders():\n    return DataLoader(a), DataLoader(b)\n",
    ],
)
def test_a_loader_is_left_where_nothing_is_certain(source: str) -> None:
    assert mended("DATA104", source, 1) is None


def test_a_warning_about_order_has_a_reason_and_no_fix() -> None:
    assert mended("DATA104", "l = DataLoader(data)\n", 1, Status.WARN) is None


def test_a_cancelled_bias_is_left_out() -> None:
    source = "net = Sequential(\n    nn.Conv2d(3, 8, 3),\n    nn.BatchNorm2d(8),\n)\n"
    assert mended("NORM102", source, 2, Status.WARN) == source.replace("8, 3)", "8, 3, bias=False)")
    assert mended("NORM102", source, 3, Status.WARN) is None


def test_gradients_are_zeroed_after_the_step() -> None:
    source = "for x in data:\n    loss(x).backward()\n    self.opt.step()  # go\nprint()\n"
    after = source.replace("# go\n", "# go\n    self.opt.zero_grad()\n")
    assert mended("STEP102", source, 3) == after
    assert mended("STEP102", source, 2) is None
    assert mended("STEP102", source.replace("print()", "m.zero_grad()"), 3) is None
    assert mended("STEP102", source.replace("opt.step()", "scaler.step(opt)"), 3) is None


def test_a_check_without_a_certain_fix_has_none() -> None:
    assert mended("FIT101", "l = DataLoader(data)\n", 1) is None
