"""DATA117: texts without a token to learn, and ends that are never learnt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nnaudit.checks.data.supervised_rows import SupervisedRows
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.token_targets import Placed, TokenTargets, filled_share
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

LOOP = SimpleNamespace(locate=lambda thing: None, train_loader=None)


def judged(**seen: Any) -> Result:
    whole = {
        "rows": 100, "unsupervised": 0, "batches": 4, "empty": 0, "ended": 0, "unlearnt": 0,
        "padding": 0, "own": True, "offsets": (1,),
    } | seen  # fmt: skip
    audit = SimpleNamespace(probe=lambda probe: TokenTargets(**whole), loop=LOOP)
    return SupervisedRows().run(cast(Audit, audit))


def test_the_share_of_rows_without_a_target_decides() -> None:
    result = judged(unsupervised=80, empty=3)
    assert result.status is Status.FAIL
    assert "80% of the training rows (80 of 100)" in result.message
    assert "3 batches of 4 have no target at all" in result.message
    assert judged(unsupervised=20).status is Status.WARN
    assert judged(unsupervised=3).status is Status.PASS
    assert judged(rows=0).status is Status.SKIP
    assert judged(unsupervised=80, own=False).status is Status.SKIP


def test_an_end_that_is_padding_and_never_a_target_fails() -> None:
    assert judged(ended=90, unlearnt=90).status is Status.FAIL
    assert judged(ended=90, unlearnt=89).status is Status.PASS
    assert judged(ended=4, unlearnt=4).status is Status.PASS


def test_much_padding_among_the_targets_warns() -> None:
    assert judged(filled=0.5).status is Status.WARN
    assert judged(filled=0.1).status is Status.PASS


def test_tags_that_stand_at_padding_warn() -> None:
    assert judged(own=False, placed=Placed(90, padded=0.4)).status is Status.WARN
    assert judged(own=False, placed=Placed(90, padded=0.1)).status is Status.PASS
    assert judged(own=False).status is Status.SKIP


@pytest.mark.parametrize(
    ("filling", "ignored", "left_out", "padded"),
    [(0, -100, 0, 0.5), (-100, -100, 0, 0.0), (0, 0, 1, 0.0), (3, 3, 0, 0.0)],
)
def test_tags_at_tokens_and_at_padding(
    filling: int, ignored: int, left_out: int, padded: float
) -> None:
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    tags = torch.where(valid, torch.tensor([[0, 1, 2, 9], [0, 9, 9, 9]]), filling)
    seen = Placed.of(tags.flatten(), valid, ignored, classes=3)
    assert (seen.content, seen.left_out) == (4, left_out)
    assert seen.padded == padded
    assert Placed.of(tags[:, :2], valid, ignored, classes=3) == Placed()


def test_words_of_another_language_are_no_tags() -> None:
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    longer = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    assert Placed.of(longer, valid, 0, classes=10) == Placed()
    shorter = torch.tensor([[5, 0, 0, 0], [8, 9, 0, 0]])
    assert Placed.of(shorter, valid, 0, classes=10).left_out == 0


def padded(*lengths: int, width: int = 10, filling: int = 0) -> Tensor:
    rows = torch.arange(1, 1 + len(lengths) * width).reshape(len(lengths), width)
    return rows.masked_fill(torch.arange(width) >= torch.tensor(lengths)[:, None], filling)


def test_what_fills_rows_is_told_by_its_place() -> None:
    target = padded(4, 5, 6, 10)
    assert filled_share(target, 4, -100) == pytest.approx((5 + 4 + 3) / 40)
    assert filled_share(target.flatten(), 4, -100) == filled_share(target, 4, -100)
    assert filled_share(target, 4, 0) == 0.0  # it is ignored
    assert filled_share(padded(5, 5, 5, 5), 4, -100) == 0.0  # an answer of one length
    target[3, 2] = 0  # a token like the others
    assert filled_share(target, 4, -100) == 0.0
    assert filled_share(padded(10, 10, 10, 8), 4, -100) == 0.0


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(30, 16), nn.Linear(16, 30)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids))


def texts(kind: str) -> list[dict[str, Tensor]]:
    """Return texts of token 2 as their end and 0 or 2 as their padding."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for n in range(96):
        length = int(torch.randint(6, 12, (), generator=g))
        ids = torch.randint(3, 30, (14,), generator=g)
        mask = (torch.arange(14) < length).long()
        ids[length - 1] = 2
        ids[length:] = 2 if kind == "same token" else 0
        labels = ids.clone()
        labels[ids == 2 if kind == "same token" else mask == 0] = -100
        if kind in ("end ignored", "break after the end"):
            labels[length - 1] = -100
        if kind == "break after the end":
            ids[length - 2] = labels[length - 2] = 1
        if kind == "cut off" and n % 3:
            labels[:] = -100
        rows.append({"ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def next_token(model: nn.Module, batch: Any) -> Tensor:
    logits, labels = model(batch["ids"])[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.reshape(-1, 30), labels.reshape(-1), ignore_index=-100)


def audited(kind: str) -> Result:
    rows: Any = texts(kind)
    target = Target(Reader, DataLoader(rows, batch_size=16), training_step=next_token)
    return run_check(SupervisedRows, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("own token", Status.PASS),
        ("same token", Status.FAIL),
        ("cut off", Status.FAIL),
        ("end ignored", Status.FAIL),
        ("break after the end", Status.PASS),
    ],
)
def test_rows_and_ends_of_a_program(kind: str, status: Status) -> None:
    result = audited(kind)
    assert result.status is status, result.message


@pytest.mark.parametrize("learnt", [True, False])
def test_ends_of_labels_that_are_the_tokens_to_follow(learnt: bool) -> None:
    rows: Any = texts("own token")
    for row in rows:
        row["labels"] = torch.cat([row["labels"][1:], torch.tensor([-100])])
        if not learnt:
            row["labels"][row["labels"] == 2] = -100

    def step(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch["ids"]).reshape(-1, 30)
        return F.cross_entropy(logits, batch["labels"].reshape(-1), ignore_index=-100)

    target = Target(Reader, DataLoader(rows, batch_size=16), training_step=step)
    result = run_check(SupervisedRows, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is (Status.PASS if learnt else Status.FAIL), result.message
