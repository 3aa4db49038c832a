from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import Dataset, Subset

from nnaudit.measure.numbered_names import renamed

WORDS = ["<pad>", "a", "boot", "coat", "dress"]


class Texts(Dataset):
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def __len__(self) -> int:
        return 100


class Others(Texts):
    """Of another class, whose attributes may mean something else."""


DIFFERENT = {
    "a list in another order": (Texts(words=WORDS), Texts(words=sorted(WORDS, reverse=True))),
    "a mapping": (
        Texts(vocab={"a": 0, "boot": 1, "coat": 2}),
        Texts(vocab={"boot": 0, "a": 1, "coat": 2}),
    ),
    "of a subset": (
        Subset(Texts(class_to_idx={"a": 0, "b": 1, "c": 2}), [0, 1]),
        Texts(class_to_idx={"b": 0, "c": 1, "d": 2, "a": 3}),
    ),
}

ALIKE = {
    "the same": (Texts(words=WORDS), Texts(words=list(WORDS))),
    "more at the end": (Texts(words=WORDS), Texts(words=[*WORDS, "bag"])),
    "classes": (Texts(words=WORDS), Others(words=WORDS[::-1])),
    "rows by name": (
        Texts(row_of={"a": 0, "b": 1, "c": 2}),
        Texts(row_of={"b": 0, "c": 1, "a": 2}),
    ),
    "few in common": (Texts(words=["a", "b", "c"]), Texts(words=["c", "d", "e"])),
    "a text for each row": (
        Texts(words=[f"text {i}" for i in range(100)]),
        Texts(words=[f"text {99 - i}" for i in range(100)]),
    ),
    "a list for show beside a mapping that agrees": (
        Texts(classes=WORDS, number={word: i for i, word in enumerate(WORDS)}),
        Texts(classes=WORDS[2:], number={word: i for i, word in enumerate(WORDS)}),
    ),
    "nothing": (Texts(), None),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_is_numbered_differently(case: str) -> None:
    found = renamed(*DIFFERENT[case])
    assert found is not None
    assert found.train != found.val


@pytest.mark.parametrize("case", ALIKE)
def test_what_is_numbered_alike(case: str) -> None:
    assert renamed(*ALIKE[case]) is None
