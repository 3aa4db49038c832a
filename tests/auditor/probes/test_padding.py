from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnaudit.probes.padding import padding_of_batch

LENGTHS = torch.tensor([2, 3, 5, 6, 4])
VALID = torch.arange(6) < LENGTHS[:, None]
IDS = torch.arange(1, 31).reshape(5, 6) * VALID
NUMBERS = torch.arange(1.0, 61.0).reshape(5, 6, 2) * VALID[..., None]


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"ids": IDS, "mask": VALID}, "['mask']"),
        ({"ids": IDS, "mask": VALID.long()}, "['mask']"),
        ({"ids": IDS, "pads": ~VALID}, "['pads']"),
        ((IDS, LENGTHS), "[1]"),
        ((NUMBERS, LENGTHS), "[1]"),
        ((NUMBERS, VALID.float()), "[1]"),
        ((IDS, torch.ones(5)), ""),
    ],
)
def test_masks_lengths_and_ids_tell(batch: Any, told: str) -> None:
    found = padding_of_batch(batch, {0})
    assert found is not None
    assert found.told == told
    assert torch.equal(found.valid, VALID)
    assert torch.equal(found.lengths, LENGTHS)


@pytest.mark.parametrize(
    "batch",
    [
        (IDS, torch.ones(5)),  # no embedding says that 0 is padding
        (torch.rand(5, 6), VALID),  # content where there should be padding
        (torch.rand(5, 8), VALID.float()),  # cumulative targets beside other things
        (IDS.flip(1), VALID.flip(1)),  # on the left
        (torch.rand(5, 6), torch.tensor([1, 2, 3, 4, 5])),  # classes
        (torch.rand(5, 6), torch.ones(5, 6)),
    ],
)
def test_other_things_are_no_padding(batch: tuple[Tensor, Tensor]) -> None:
    assert padding_of_batch(batch, set()) is None
