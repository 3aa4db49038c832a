from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnaudit.measure.token_shares import training_only

UNKNOWN, PAD = 1, 0
DRAW = torch.Generator().manual_seed(0)


def texts(count: int, unknown: float = 0.0, padded: int = 0, low: int = 2) -> list[Tensor]:
    """Texts of 20 tokens, of which a share is unknown, and padding at the end."""
    words = torch.randint(low, 40, (count, 20), generator=DRAW)
    lost = torch.rand(count, 20, generator=DRAW) < unknown
    return [*torch.nn.functional.pad(words.masked_fill(lost, UNKNOWN), (0, padded), value=PAD)]


def test_an_unknown_word_of_training_alone_is_found() -> None:
    seen = training_only(texts(200, 0.3, 4), texts(100))
    assert seen is not None
    assert seen.token == UNKNOWN
    assert seen.val == 0.0
    assert seen.often == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (texts(200, 0.3), texts(100, 0.2)),
        (texts(200), texts(100, 0.4)),  # words that training lacks
        (texts(200, padded=4), texts(100)),  # padded in training alone
        (texts(200, 0.02), texts(100)),  # in few texts
        (texts(40, 0.3), texts(40)),
    ],
)
def test_others_are_not(train: list[Tensor], val: list[Tensor]) -> None:
    assert training_only(train, val) is None
