"""Examples by stage, and ids as text by the program's own vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.overview.gallery import as_text, decoder, stages
from nnaudit.targets.target import Target


class Pictures(Dataset[Any]):
    """Pillow pictures under a transform."""

    def __init__(self, transform: Any = None) -> None:
        generator = np.random.default_rng(0)
        self.pictures = generator.integers(0, 255, (16, 8, 8, 3)).astype(np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pictures[i])), i % 3


def to_tensor(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture)).movedim(2, 0).float() / 255


def flipped(picture: Any) -> Tensor:
    tensor = to_tensor(picture)
    return tensor.flip(2) if torch.rand(()) < 0.5 else tensor


class Centred(nn.Module):
    """A network that standardises its pictures itself."""

    def __init__(self, mean: float = 0.5) -> None:
        super().__init__()
        self.mean, self.conv, self.head = mean, nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x - self.mean).mean((2, 3)))


def loop_of(dataset: Dataset[Any], model: nn.Module) -> DirectLoop:
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    return DirectLoop(Target(model=model, train_loader=loader), torch.device("cpu"), 0)


def test_each_stage_is_shown_where_it_changes_something() -> None:
    dataset = Pictures(flipped)
    found = stages(loop_of(dataset, Centred()))
    assert list(found) == [
        "as stored", "as loaded", "loaded again: what differs is random augmentation",
        "at the first layer",
    ]  # fmt: skip
    assert found["as stored"].max() > 200
    assert found["at the first layer"].min() < 0
    assert dataset.transform is flipped


def test_what_changes_nothing_is_left_out() -> None:
    found = stages(loop_of(Pictures(to_tensor), Centred(0.0)))
    assert list(found) == ["as stored", "as loaded"]


def test_a_data_set_that_needs_its_transform_is_shown_without_what_is_stored() -> None:
    class Strict(Pictures):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return super().__getitem__(i)[0] * 1.0, i % 3

    found = stages(loop_of(Strict(flipped), Centred(0.0)))
    assert "as stored" not in found
    assert len(found) == 2


def test_a_stream_has_no_stages() -> None:
    loop = DirectLoop(
        Target(model=Centred(), train_loader=[(torch.rand(4, 3, 8, 8), torch.arange(4) % 3)]),
        torch.device("cpu"), 0,
    )  # fmt: skip
    assert stages(loop) == {}


class Texts(Dataset[Any]):
    """Rows of ids, with a vocabulary under some name."""

    def __init__(self, **tables: Any) -> None:
        vars(self).update(tables)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor([0, 1, 2, 1]), i % 2


class Tokenizer:
    """What tokenizers have in common."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(["un", "deux", "trois"][i] for i in ids)


def decoded(**tables: Any) -> str | None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(16, 2))
    loop = loop_of(Texts(**tables), model)
    ids = torch.tensor([[0, 1, 2, 1]])
    decode = decoder(loop, ids)
    return None if decode is None else as_text(decode, ids[0].tolist())


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"vocab": {"un": 0, "deux": 1, "trois": 2}}, "un deux trois deux"),
        ({"itos": ["un", "deux", "trois"]}, "un deux trois deux"),
        ({"idx2word": {0: "un", 1: "deux", 2: "trois"}}, "un deux trois deux"),
        ({"chars": "abc"}, "abcb"),
        ({"tokenizer": Tokenizer()}, "un deux trois deux"),
        ({"stoi": {"a": 0, "b": 1, "\n": 2}}, "ab\\nb"),
    ],
)
def test_ids_are_decoded_by_any_of_the_usual_tables(tables: dict[str, Any], text: str) -> None:
    assert decoded(**tables) == text


@pytest.mark.parametrize(
    "tables",
    [
        {}, {"vocab": {"un": 0}}, {"vocab": 3}, {"classes": ["cat", "dog", "cow"]},
        {"words": "the the the"}, {"vocab": [1, 2, 3]},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_taken_for_a_vocabulary(tables: dict[str, Any]) -> None:
    assert decoded(**tables) is None
