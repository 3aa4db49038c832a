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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("l = F.cross_entropy(F.softmax(net(x), dim=1), y)\n", "l = F.cross_entropy(net(x), y)\n"),
        ("l = F.cross_entropy(net(x).softmax(1), y)\n", "l = F.cross_entropy(net(x), y)\n"),
        ("l = loss_fn(self.z.softmax(1), y)\n", "l = loss_fn(self.z, y)\n"),
        ("l = loss_fn(nn.functional.softmax(z, 1), y)\n", "l = loss_fn(z, y)\n"),
        ("l = criterion(torch.sigmoid(z), y)\n", "l = criterion(z, y)\n"),
        ("l = F.cross_entropy(z, y) + softmax(z).sum()\n", None),
        ("p = F.softmax(z, 1); l = F.cross_entropy(p, y)\n", None),
    ],
)
def test_a_loss_is_given_logits(before: str, after: str | None) -> None:
    assert mended("LOSS101", before, 1) == after


CLIPPED = """\
for x in data:
    scaler.scale(loss(x)).backward()
    # keep it small
    clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
"""


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    after = CLIPPED.replace("    clip", "    scaler.unscale_(optimizer)\n    clip")
    assert mended("STEP104", CLIPPED, 4) == after
    assert mended("STEP104", after, 5) is None
    assert (
        mended("STEP104", CLIPPED.replace("scaler.step(optimizer)", "optimizer.step()"), 4) is None
    )


RANKS = """\
def main():
    sampler = DistributedSampler(data)
    for epoch in range(3):
        # one epoch
        for x in loader:
            step(x)
"""


def test_the_sampler_of_the_ranks_is_told_the_epoch() -> None:
    after = RANKS.replace("(3):\n", "(3):\n        sampler.set_epoch(epoch)\n")
    assert mended("DIST103", RANKS, 5) == after
    assert mended("DIST103", after, 6) is None
    apart = RANKS.replace(
        "    for epoch", "    return sampler\n\ndef train(loader):\n    for epoch"
    )
    assert mended("DIST103", apart, 8) is None


def test_a_check_without_a_certain_fix_has_none() -> None:
    assert mended("FIT101", "l = DataLoader(data)\n", 1) is None


def test_a_bias_is_left_out_in_a_sequence_on_one_line() -> None:
    line = "net = nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(9), nn.Linear(9, 1))\n"
    said = Result(
        code="NORM102",
        name="x",
        family="NORM",
        kind=Kind.JUDGEMENT,
        status=Status.NOTE,
        message="m",
        location=Location(file="train.py", line=1),
        module="body.0",
    )
    mended = line.replace("(8, 9)", "(8, 9, bias=False)")
    assert fixed(said, line) == mended
    assert fixed(said.model_copy(update={"module": "body.1"}), line) is None
    assert fixed(said.model_copy(update={"module": "body.7"}), line) is None
    assert fixed(said, line.replace("nn.Linear(8", "*first, nn.Linear(8")) is None
