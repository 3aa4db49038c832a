"""The pictures of data and weights."""

from __future__ import annotations

import base64

import pytest
import torch
from programs import mlp, target
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.overview.pictures import overview_of
from nnaudit.targets.target import Target


def sections(**parts: object):
    loop = DirectLoop(target(**parts), torch.device("cpu"), seed=0)
    return overview_of(loop, train=False).sections


def loader(*tensors: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=8)


def kinds(section) -> list[str]:
    return [evidence.type for evidence in section.evidence]


def test_a_table_shows_rows_and_targets() -> None:
    data, weights = sections()
    assert kinds(data) == ["table", "table", "images"]
    statistics, rows, _ = data.evidence
    assert [row[0] for row in statistics.rows] == ["input", "target"]
    assert rows.columns[-1] == "target"
    assert kinds(weights) == ["histogram"] * 4


def test_a_bag_of_rows_with_one_label_is_a_table_without_labels() -> None:
    bags = lambda: DataLoader(TensorDataset(torch.randn(4, 6, 8), torch.arange(4) % 3))  # noqa: E731

    class OfBags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, bag: torch.Tensor) -> torch.Tensor:
            return self.body(bag).mean(0, keepdim=True)

    def unwrapped(rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        return rows[0][0], rows[0][1][None]

    data, *_ = sections(
        train_loader=lambda: DataLoader(bags().dataset, 1, collate_fn=unwrapped), model=OfBags
    )
    rows = data.evidence[1]
    assert len(rows.rows) == 6
    assert "target" not in rows.columns


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_are_png_with_their_label(channels: int) -> None:
    data, *_ = sections(
        train_loader=loader(torch.randn(8, channels, 6, 6), torch.arange(8)),
        model=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(8)),
    )
    images = data.evidence[1].images
    assert base64.b64decode(images[0].png).startswith(b"\x89PNG")
    assert [image.caption for image in images] == [str(i) for i in range(8)]


def test_constant_pictures_and_weights_have_a_scale() -> None:
    data, _, weights = sections(
        train_loader=loader(torch.zeros(8, 1, 6, 6), torch.arange(8)),
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8, bias=False), nn.LayerNorm(8)),
    )
    assert data.evidence[1].type == "images"
    assert all(sum(h.counts) > 0 for h in weights.evidence)


def test_token_ids_are_text() -> None:
    data, _ = sections(
        train_loader=loader(torch.randint(0, 9, (8, 5)), torch.zeros(8, dtype=torch.long)),
        model=lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)),
    )
    assert kinds(data) == ["table", "text"]
    assert data.evidence[1].text.count("->") == 8


def test_weights_that_are_not_finite_do_not_spoil_the_picture() -> None:
    def broken() -> nn.Module:
        model = mlp()
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
            model[3].weight.fill_(float("inf"))
        return model

    _, weights = sections(model=broken)
    assert sum(weights.evidence[0].counts) == 127


def test_a_model_alone_has_its_weights_shown() -> None:
    loop = DirectLoop(Target(model=mlp()), torch.device("cpu"), seed=0)
    (only,) = overview_of(loop).sections
    assert "195 parameters" in only.text
