"""Batches of every structure that loaders yield."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from nnaudit.targets import batch as batches

Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Example:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    def __init__(self) -> None:
        self.x = torch.ones(5, 2)
        self.edge_index = torch.zeros(2, 7, dtype=torch.long)

    def to(self, device: torch.device) -> Graph:
        return self


X = torch.arange(12.0).reshape(4, 3)
Y = torch.arange(4)
STRUCTURES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "y": Y},
    "ordered": OrderedDict(x=X, y=Y),
    "named": Pair(X, Y),
    "dataclass": Example(X, Y),
    "nested": ({"a": X, "b": [X, Y]}, Y),
    "tensor": X,
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_rows_are_taken_from_every_tensor_and_the_structure_is_kept(name: str) -> None:
    batch = STRUCTURES[name]
    taken = batches.rows(batch, [2, 0])
    assert type(taken) is type(batch)
    for (path, before), (path_after, after) in zip(
        batches.tensors(batch), batches.tensors(taken), strict=True
    ):
        assert path == path_after
        assert torch.equal(after, before[[2, 0]])


@pytest.mark.parametrize("name", STRUCTURES)
def test_size_is_the_number_of_rows(name: str) -> None:
    assert batches.size(STRUCTURES[name]) == 4


def test_tensors_of_another_length_are_left_whole() -> None:
    weights = torch.tensor([1.0, 2.0])
    taken = batches.take((X, Y, weights), 2)
    assert taken[0].shape == (2, 3)
    assert torch.equal(taken[2], weights)


def test_strings_beside_tensors_are_rows_too() -> None:
    taken = batches.rows({"x": X, "name": ["a", "b", "c", "d"]}, [3, 1])
    assert taken["name"] == ["d", "b"]


def test_arrays_count_as_tensors() -> None:
    batch = (np.zeros((4, 2), np.float32), np.arange(4))
    assert batches.size(batch) == 4
    assert batches.take(batch, 3)[1].tolist() == [0, 1, 2]


BOXES = [torch.ones(n, 4) * n for n in (1, 2, 1, 3)]
PICTURES = tuple(torch.ones(3, n, 5) * n for n in (4, 5, 6, 7))
LISTED = {
    "boxes": (X, BOXES),
    "dicts": (X, [{"boxes": boxes, "label": 0} for boxes in BOXES]),
    "pictures": (PICTURES, tuple({"boxes": boxes} for boxes in BOXES)),
    "named": {"image": X, "boxes": BOXES, "name": ["a", "b", "c", "d"]},
}


@pytest.mark.parametrize("name", LISTED)
def test_a_list_may_hold_an_entry_for_each_row(name: str) -> None:
    batch: Any = LISTED[name]
    assert batches.size(batch) == 4
    taken = batches.rows(batch, [3, 0])
    assert batches.size(taken) == 2
    lists = [batch[1], taken[1]] if type(batch) is tuple else [batch["boxes"], taken["boxes"]]
    assert lists[1] == (type(lists[0])((lists[0][3], lists[0][0])))


@pytest.mark.parametrize("as_item", [tuple, lambda pair: {"image": pair[0], "boxes": pair[1]}])
def test_items_that_nobody_put_together_are_rows(as_item: Any) -> None:
    batch = [as_item(pair) for pair in zip(PICTURES, BOXES, strict=True)]
    assert batches.size(batch) == 4
    assert batches.rows(batch, [3, 0]) == [batch[3], batch[0]]


def test_batches_of_two_loaders_are_no_rows() -> None:
    assert batches.size([{"x": X, "y": Y}, {"x": X[:3], "y": Y[:3]}]) == 4


def test_two_views_are_no_rows() -> None:
    views = ((X, X + 1), (Y, Y + 1))
    assert batches.size(views) == 4
    assert batches.rows(views, [1])[0][1].tolist() == [[4.0, 5.0, 6.0]]


def test_a_graph_batch_cannot_be_cut() -> None:
    with pytest.raises(batches.NotSliceableError, match="Graph"):
        batches.rows((Graph(), Y), [0])


def test_a_batch_without_tensors_cannot_be_cut() -> None:
    with pytest.raises(batches.NotSliceableError):
        batches.rows(["a"], [0])


def test_an_empty_batch_has_size_zero_and_a_digest() -> None:
    assert batches.size([]) == 0
    assert batches.digest([]) == batches.digest([])


def test_clone_shares_no_memory() -> None:
    original = {"x": X.clone(), "a": np.zeros(2)}
    copy = batches.clone(original)
    copy["x"][0] = 99
    copy["a"][0] = 99
    assert original["x"][0, 0] == 0
    assert original["a"][0] == 0


def test_a_digest_tells_content_shape_and_place_apart() -> None:
    seen = {
        batches.digest(batch)
        for batch in (
            (X, Y), (X + 1, Y), (X.reshape(3, 4), Y), (Y, X), {"x": X}, [X], (X.bfloat16(), Y),
        )
    }  # fmt: skip
    assert len(seen) == 7
    assert batches.digest((X, Y)) == batches.digest((X.clone(), Y.clone()))


def test_row_digests_are_those_of_the_rows() -> None:
    digests = batches.row_digests(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    assert digests[0] == digests[2] != digests[1]


def test_odd_dtypes_and_layouts_have_digests() -> None:
    for tensor in (
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.bool),
        torch.eye(3).to_sparse(),
        torch.ones(0),
        torch.tensor(3.0),
        torch.ones(1).as_strided((1, 1), (1, 759)),
        torch.ones(2, device="meta"),
    ):
        assert len(batches.digest(tensor)) == 32


@pytest.mark.parametrize("batch", [(X, Y), {"x": X, "label": Y[:, None]}])
def test_values_are_found_in_a_batch_in_whatever_shape_and_dtype(batch: Any) -> None:
    (path,) = batches.paths_of(batch, Y.double())
    assert torch.equal(dict(batches.tensors(batch))[path].flatten(), Y)


def test_values_may_be_in_a_batch_twice_or_not_at_all() -> None:
    assert batches.paths_of((X, Y, Y), Y) == ["[1]", "[2]"]
    assert batches.paths_of((X, Y), Y + 1) == []


def test_the_same_values_are_told_from_as_many_others() -> None:
    square = torch.arange(4.0).reshape(2, 2)
    assert batches.same_values(square, square.flatten().int())
    assert not batches.same_values(square, square.T)
    assert not batches.same_values(square, square[:1])
    assert not batches.same_values(square, square.to_sparse())


def test_a_distribution_holds_the_tensors_of_its_parts() -> None:
    mixture = MixtureSameFamily(Categorical(logits=X), Normal(X, X.exp()))
    found = [tensor for _, tensor in batches.tensors(mixture)]
    assert sum(torch.equal(tensor, X.exp()) for tensor in found) == 1
