"""GRAD110: the axis of hand-written attention's softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnaudit.checks.grad.attention_axis import AttentionAxis
from nnaudit.loop.attention import WeightedSum
from nnaudit.loop.observation import Observation
from nnaudit.loop.observer import Observer
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.report import Status
from support.verdicts import verdict


def sums(attend: str) -> list[WeightedSum]:
    """Return what an observer sees of ``attend``, an expression of q, k and v, (B, T, D)."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 12)
    with Observer(layer) as observer:
        q, k, v = layer(torch.randn(2, 5, 4)).chunk(3, dim=-1)
        given = {"torch": torch, "F": nn.functional, "q": q, "k": k, "v": v, "layer": layer}
        assert isinstance(eval(attend, given), Tensor)
    return observer.observation.weighted_sums


@pytest.mark.parametrize(
    "attend",
    [
        "torch.softmax(q @ k.transpose(-2, -1) / 2, dim=-1) @ v",
        "torch.bmm(F.dropout(F.softmax(torch.bmm(q, k.transpose(1, 2)), 2), 0.1), v)",
        "(k @ q.transpose(1, 2)).softmax(dim=1).transpose(1, 2) @ v",
        "torch.einsum('bqk,bkd->bqd', torch.einsum('bqd,bkd->bqk', q, k).softmax(-1), v)",
        "((q @ k.mT).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9) * 0.5).softmax(-1) @ v",
        "(q[:, None] @ k[:, None].mT).softmax(-1).reshape(2, 5, 5) @ v",
        "(lambda a: (a / a.sum(-1, keepdim=True)) @ v)((q @ k.mT).exp())",
        "(lambda a: (a / (a.sum(dim=2, keepdim=True) + 1e-6)) @ v)((q @ k.mT / 2).relu())",
    ],
)
def test_weights_that_sum_to_one(attend: str) -> None:
    (found,) = sums(attend)
    assert found.normalised == found.summed


@pytest.mark.parametrize(
    ("attend", "normalised", "summed"),
    [
        ("torch.softmax(q @ k.transpose(-2, -1) / 2, dim=-2) @ v", 1, 2),
        ("torch.bmm(F.dropout(F.softmax(torch.bmm(q, k.transpose(1, 2)), 0), 0.1), v)", 0, 2),
        ("(k @ q.transpose(1, 2)).softmax(dim=-1).transpose(1, 2) @ v", 2, 1),
        ("torch.einsum('bqk,bkd->bqd', torch.einsum('bqd,bkd->bqk', q, k).softmax(1), v)", 1, 2),
        ("(lambda a: (a / a.sum(1, keepdim=True)) @ v)((q @ k.mT).exp())", 1, 2),
    ],
)
def test_weights_that_do_not(attend: str, normalised: int, summed: int) -> None:
    (found,) = sums(attend)
    assert (found.normalised, found.summed) == (normalised, summed)


@pytest.mark.parametrize(
    "attend",
    [
        "(lambda a: (a / a.sum(-1, keepdim=True)) @ v)((q @ k.mT).softmax(1))",  # slots
        "q.softmax(-1).mT @ v",  # clusters
        "(q @ k.mT).softmax(-1).sum()",
        "(lambda a, b: (a / b.sum(-1, keepdim=True)) @ v)((q @ k.mT).exp(), (k @ q.mT).exp())",
    ],
)
def test_other_uses_of_a_softmax_are_not_asked(attend: str) -> None:
    assert not sums(attend)


def test_the_verdict() -> None:
    right = WeightedSum((2, 5, 5), 2, 2, None)
    for seen, status in (
        ([right], Status.PASS),
        ([right, WeightedSum((2, 5, 5), 1, 2, None)], Status.WARN),
        ([WeightedSum((2, 5, 1), 2, 2, None)], Status.WARN),
        ([], Status.SKIP),
    ):
        partial = Observation(weighted_sums=seen)
        result = verdict(AttentionAxis, {FirstSteps: First((), (), (), partial=partial)})
        assert result.status is status, result.message
