"""Labels that stand beside their tokens, and those that only depend on more than their own."""

from __future__ import annotations

import torch
from torch import Tensor

from nnaudit.measure.label_shift import label_shift

N, T, IGNORED = 128, 20, -100


def texts(*, first: int | None = 1) -> Tensor:
    ids = torch.randint(3, 200, (N, T), generator=torch.Generator().manual_seed(0))
    if first is not None:
        ids[:, 0] = first
    return ids


def kinds(ids: Tensor) -> Tensor:
    return (ids % 7 == 0).long() + (ids % 5 == 0).long()


def test_labels_made_before_the_first_token_was_put_in_front() -> None:
    ids = texts()
    labels = torch.cat([kinds(ids)[:, 1:], torch.full((N, 1), IGNORED)], 1)
    found = label_shift([(ids[:64], labels[:64]), (ids[64:, :18], labels[64:, :18])], IGNORED)
    assert found is not None
    assert found.offset == 1
    assert found.first == 1
    assert found.explained > 0.95


def test_labels_in_their_places() -> None:
    ids = texts()
    labels = kinds(ids)
    assert label_shift([(ids, labels)], IGNORED) is None
    labels[:, 0] = IGNORED
    assert label_shift([(ids, labels)], IGNORED) is None


def test_labels_of_what_stands_around() -> None:
    ids = texts()
    following = ids.roll(-1, 1)
    assert label_shift([(ids, kinds(ids + following))], IGNORED) is None
    # The next token decides, but nothing says that a first one was put in front.
    free = texts(first=None)
    assert label_shift([(free, kinds(free.roll(-1, 1)))], IGNORED) is None
    ignored = kinds(following)
    ignored[:, 0] = IGNORED
    assert label_shift([(ids, ignored)], IGNORED) is None


def test_labels_that_nothing_tells_and_too_few() -> None:
    ids = texts()
    noise = torch.randint(3, (N, T), generator=torch.Generator().manual_seed(1))
    assert label_shift([(ids, noise)], IGNORED) is None
    shifted = kinds(ids.roll(-1, 1))
    assert label_shift([(ids[:32], shifted[:32])], IGNORED) is None
    assert label_shift([], IGNORED) is None
