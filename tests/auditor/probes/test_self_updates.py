"""Writes into trained weights that come from these weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nnaudit.probes.self_updates import Tap


def found(update: Callable[[nn.Module], Any]) -> list[int]:
    """How many weights ``update`` writes from themselves, by statement."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    tap = Tap(list(net.parameters()))
    with tap, torch.no_grad():
        update(net)
    return [each.weights for each in tap.found()]


def lerp(average: Any, network: Any) -> None:
    for a, p in zip(average, network, strict=True):
        a.lerp_(p, 0.1)


def mixed(average: Any, network: Any) -> None:
    for target_param, param in zip(average, network, strict=True):
        target_param.data.copy_(0.01 * param.data + 0.99 * target_param.data)


def two_lines(average: Any, network: Any) -> None:
    for a, p in zip(average, network, strict=True):
        a.data.mul_(0.99)
        a.data.add_(0.01 * p.data)


def assigned(average: Any, network: Any) -> None:
    for a, p in zip(average, network, strict=True):
        a.data = 0.99 * a.data + 0.01 * p.data


def foreach(average: Any, network: Any) -> None:
    torch._foreach_lerp_(list(average), list(network), 0.1)


@pytest.mark.parametrize("update", [lerp, mixed, two_lines, assigned, foreach])
def test_an_average_that_is_the_network(update: Any) -> None:
    assert sum(found(lambda net: update(net.parameters(), net.parameters()))) >= 4
    assert not found(lambda net: update(copy.deepcopy(net).parameters(), net.parameters()))
    assert not found(lambda net: update(net.parameters(), copy.deepcopy(net).parameters()))


def test_a_dict_of_the_weights_themselves() -> None:
    def update(net: nn.Module, copied: Callable[[Any], Any]) -> None:
        shadow = {name: copied(p.data) for name, p in net.named_parameters()}
        for name, p in net.named_parameters():
            shadow[name].mul_(0.9).add_(p.data, alpha=0.1)

    assert found(lambda net: update(net, lambda each: each)) == [4]
    assert not found(lambda net: update(net, torch.clone))


def test_networks_that_share_a_part_pass() -> None:
    def update(net: nn.Module, by: Any) -> None:
        other = nn.Sequential(net[0], copy.deepcopy(net[1]))
        by(other.parameters(), net.parameters())

    for by in (lerp, mixed, two_lines, assigned, foreach):
        assert not found(lambda net, by=by: update(net, by))


def test_a_function_for_several_networks_is_told_apart_by_its_calls() -> None:
    def update(net: nn.Module) -> None:
        lerp(copy.deepcopy(net[0]).parameters(), net[0].parameters())
        lerp(net[1].parameters(), net[1].parameters())

    assert found(update) == [2]


def decay(net: nn.Module) -> None:
    for p in net.parameters():
        p.add_(p, alpha=-0.01)


def clamp(net: nn.Module) -> None:
    for p in net.parameters():
        p.clamp_(-1, 1)


def scale(net: nn.Module) -> None:
    for p in net.parameters():
        w = p.data
        p.data.copy_(w / w.norm())


def step(net: nn.Module) -> None:
    for p, g in zip(net.parameters(), [torch.ones_like(p) for p in net.parameters()], strict=True):
        p.add_(g, alpha=-0.1)


@pytest.mark.parametrize("update", [decay, clamp, scale, step])
def test_other_writes_into_weights_pass(update: Any) -> None:
    assert not found(update)
