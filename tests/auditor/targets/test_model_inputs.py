"""Which part of a batch is input, and which is target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.errors import TargetError
from nnaudit.targets.model_inputs import DefaultLoss, convention_for, main_tensor, own_loss

X, Y, M = torch.ones(4, 3), torch.arange(4), torch.zeros(4, 3)


class One(nn.Module):
    def forward(self, x):
        return x


class Two(nn.Module):
    def forward(self, x, mask):
        return x


class Optional(nn.Module):
    def forward(self, x, mask=None):
        return x


class Keywords(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


class Labelled(nn.Module):
    def forward(self, input_ids, labels=None):
        return SimpleNamespace(logits=input_ids, loss=input_ids.mean())


class Open(nn.Module):
    def forward(self, **inputs):
        return inputs


class Any(nn.Module):
    def forward(self, *inputs):
        return inputs[0]


def fed(model: nn.Module, batch):
    return convention_for(model, batch).split_batch(batch)


@pytest.mark.parametrize("batch", [(X, Y), [X, Y]])
def test_a_pair_is_input_and_target(batch) -> None:
    got = fed(One(), batch)
    assert got.args == (X,)
    assert got.target is Y


def test_a_second_input_that_forward_takes_is_an_input() -> None:
    for model in (Two(), Optional(), Any()):
        got = fed(model, (X, M, Y))
        assert len(got.args) == 2
        assert got.target is Y
        assert [name for name, _ in got.named_inputs()] == ["input[0]", "input[1]"]


def test_what_forward_does_not_take_belongs_to_the_target() -> None:
    got = fed(One(), (X, Y, M))
    assert got.args == (X,)
    assert got.target == (Y, M)


def test_a_pair_stays_a_pair_when_forward_could_take_more() -> None:
    got = fed(Optional(), (X, Y))
    assert got.args == (X,)
    assert got.target is Y


def test_an_input_alone_is_its_own_target() -> None:
    for batch in ([X], (X,), X):
        got = fed(One(), batch)
        assert got.args == (X,)
        assert got.target is X


def test_nested_inputs_become_arguments() -> None:
    got = fed(Two(), ((X, M), Y))
    assert got.args == (X, M)
    got = fed(Keywords(), ({"input_ids": X, "attention_mask": M}, Y))
    assert set(got.kwargs) == {"input_ids", "attention_mask"}
    assert [name for name, _ in got.named_inputs()] == ["input_ids", "attention_mask"]
    assert got.target is Y


def test_a_dict_is_spread_over_the_names_that_forward_has() -> None:
    got = fed(Keywords(), {"input_ids": X, "attention_mask": M, "labels": Y, "id": "a"})
    assert set(got.kwargs) == {"input_ids", "attention_mask"}
    assert got.target is Y


def test_a_model_that_takes_labels_gets_them() -> None:
    got = fed(Labelled(), {"input_ids": X, "labels": Y})
    assert set(got.kwargs) == {"input_ids", "labels"}
    assert got.target is Y


def test_a_dict_with_one_input_of_another_name_is_positional() -> None:
    got = fed(One(), {"image": X, "label": Y})
    assert got.args == (X,)
    assert got.target is Y


def test_open_keywords_take_all_but_the_target() -> None:
    got = fed(Open(), {"a": X, "b": M, "y": Y})
    assert set(got.kwargs) == {"a", "b"}


def test_an_object_is_handed_over_whole() -> None:
    graph = SimpleNamespace(x=X, y=Y)
    got = fed(One(), graph)
    assert got.args == (graph,)
    assert got.target is Y


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(TargetError, match="empty"):
        convention_for(One(), ())


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        (torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), "cross-entropy"),
        (torch.randn(4, 5, 3), torch.zeros(4, 5, dtype=torch.long), "cross-entropy"),
        (torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long), "cross-entropy"),
        (torch.randn(4, 1), torch.tensor([0, 1, 1, 0]), "binary cross-entropy with logits"),
        (torch.randn(4), torch.tensor([0, 1, 1, 0]), "binary cross-entropy with logits"),
        (torch.randn(4, 3), (torch.rand(4, 3) > 0.5).float(), "binary cross-entropy with logits"),
        (torch.randn(4, 1), torch.randn(4), "mean squared error"),
        (torch.randn(4, 2), torch.randn(4, 2), "mean squared error"),
    ],
)
def test_the_default_loss_follows_the_target(output, target, expected: str) -> None:
    loss = DefaultLoss()
    assert loss(output, target).ndim == 0
    assert loss.name == expected


def test_the_default_loss_does_not_broadcast() -> None:
    output, target = torch.randn(4, 1), torch.randn(4)
    assert DefaultLoss()(output, target) == F.mse_loss(output[:, 0], target)


def test_the_default_loss_says_when_it_cannot_guess() -> None:
    with pytest.raises(TargetError, match="loss_fn"):
        DefaultLoss()(torch.randn(4, 3), torch.randn(4, 2))


def test_logits_are_found_in_what_models_return() -> None:
    assert main_tensor(X) is X
    assert main_tensor((X, M)) is X
    assert main_tensor({"logits": X, "hidden": M}) is X
    assert main_tensor(SimpleNamespace(loss=M.mean(), logits=X)) is X
    assert main_tensor("nothing") is None


def test_a_models_own_loss_is_found() -> None:
    assert own_loss(SimpleNamespace(loss=X.mean())) == X.mean()
    assert own_loss(X) is None
    assert own_loss({"logits": X}) is None
