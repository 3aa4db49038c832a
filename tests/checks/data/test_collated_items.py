"""DATA119: batches that keep a field of one item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nnaudit.checks.data.collated_items import CollatedItems
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def step(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def audited(collate: Callable[[Any], Any]) -> Result:
    g = torch.Generator().manual_seed(0)
    rows: Any = [(torch.randn(4, generator=g), n % 9, n % 2) for n in range(64)]
    loader = DataLoader(rows, batch_size=16, collate_fn=collate)
    target = Target(Net, loader, training_step=step)
    return run_check(CollatedItems, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def whole(items: Any) -> dict[str, Tensor]:
    x, lengths, labels = zip(*items, strict=True)
    return {"x": torch.stack(x), "length": torch.tensor(lengths), "y": torch.tensor(labels)}


@pytest.mark.parametrize("field", ["x", "length"])
def test_a_field_of_the_first_item_fails(field: str) -> None:
    result = audited(lambda items: {**whole(items), field: whole(items)[field][:1]})
    assert result.status is Status.FAIL
    assert field in result.message


def test_a_field_of_the_first_item_in_every_row_fails() -> None:
    result = audited(
        lambda items: {**whole(items), "y": torch.tensor([items[0][2] for _ in items])}
    )
    assert result.status is Status.FAIL


@pytest.mark.parametrize(
    "collate",
    [
        whole,
        lambda items: {**whole(items), "place": torch.arange(4)[None]},
        lambda items: {**whole(items), "longest": whole(items)["length"].max()},
        lambda items: {**whole(items), "count": torch.tensor(len(items))},
        lambda items: {**whole(items), "boxes": [torch.full((1, 4), n) for _, n, _ in items]},
    ],
)
def test_whole_batches_and_what_belongs_to_all_pass(collate: Any) -> None:
    assert audited(collate).status is Status.PASS
