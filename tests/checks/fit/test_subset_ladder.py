import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.checks.fit.subset_ladder import SubsetLadderFit
from nnaudit.probes import subset_scaling as scaling
from nnaudit.probes.subset_scaling import Plan
from nnaudit.report import Curve, Status
from nnaudit.targets.target import Target

CE = F.cross_entropy


def test_a_network_with_room_climbs_to_the_top(tools, data):
    target = Target(
        tools.perceptron(64, 64, 10),
        tools.loader(data.x, data.y),
        loss=CE,
        optimizer=tools.adam(1e-2),
    )
    result = tools.ask(SubsetLadderFit, target)
    assert result.status is Status.PASS
    curve = next(e for e in result.evidence if isinstance(e, Curve) and e.log_x)
    subset_fits = curve.series[0].x
    # On a busy machine the largest subset is left out, and the message says so.
    assert subset_fits == (16.0, 64.0, 256.0, 1024.0)[: len(subset_fits)]
    assert len(subset_fits) >= 3
    assert f"{subset_fits[-1]:.0f} examples" in result.message


def test_a_slow_rate_is_not_a_limit(tools, data):
    target = Target(
        tools.perceptron(64, 64, 10),
        tools.loader(data.x, data.y),
        loss=CE,
        optimizer=tools.sgd(0.01),
    )
    assert tools.ask(SubsetLadderFit, target).status is Status.PASS


@pytest.mark.parametrize("steps", [200, 90])
def test_a_network_without_room_for_64_examples_is_a_warning(steps, tools, data, monkeypatch):
    monkeypatch.setattr(scaling, "plan_for", lambda tiny, seconds: Plan((16, 64), 32, steps))

    def linear_in_two_layers():
        return nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))

    labels = torch.randint(0, 10, (320,), generator=torch.Generator().manual_seed(0))
    target = Target(
        linear_in_two_layers,
        tools.loader(data.features[:320], labels),  # nothing to generalise from
        loss=CE,
        optimizer=tools.adam(0.1),
    )
    result = tools.ask(SubsetLadderFit, target)
    # Of a short run a network on a plateau could say the same.
    assert result.status is (Status.WARN if steps == 200 else Status.INCONCLUSIVE), result.message
    assert "cannot fit 64 examples" in result.message


def test_few_rows_make_a_short_ladder(tools, data):
    target = Target(
        tools.perceptron(64, 64, 10),
        tools.loader(data.x[:100], data.y[:100]),
        loss=CE,
        optimizer=tools.adam(1e-2),
    )
    result = tools.ask(SubsetLadderFit, target)
    assert result.status is Status.PASS
    assert "too few examples" in result.message


def test_a_floor_that_is_not_known_makes_no_ladder(tools, data):
    target = Target(
        tools.perceptron(64, 64, 10),
        tools.loader(data.x, data.y),
        loss=lambda output, y: CE(output, y) + output.pow(2).mean(),
    )
    result = tools.ask(SubsetLadderFit, target)
    assert result.status is Status.INCONCLUSIVE
    assert "composite" in result.message


def test_a_linear_model_is_noted_at_most(tools):
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    target = Target(lambda: nn.Linear(2, 2), tools.loader(x, y), loss=CE, optimizer=tools.sgd(0.1))
    assert tools.ask(SubsetLadderFit, target).status in (Status.NOTE, Status.PASS)
