import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.checks.fit.loss_decreases import LossDecreases
from nnaudit.checks.fit.stream import FinalLoss, still_falling
from nnaudit.report import Curve, Status
from nnaudit.targets.target import Target

CE = F.cross_entropy
QUIET = (Status.PASS, Status.NOTE, Status.INCONCLUSIVE)


def images(tools, data, **parts):
    usual = {
        "model": tools.perceptron(64, 64, 10),
        "train_loader": tools.loader(data.x, data.y),
        "loss": CE,
        "optimizer": tools.adam(3e-3),
    }
    return Target(**usual | parts)


def test_a_sound_program_passes_and_draws_the_constant(tools, data):
    result = tools.ask(LossDecreases, images(tools, data))
    assert result.status is Status.PASS, result.message
    curve = next(e for e in result.evidence if isinstance(e, Curve))
    assert math.isclose(curve.thresholds["best constant"], math.log(10), abs_tol=0.02)


def test_a_rate_at_which_the_loss_jumps_about_is_a_warning(tools, data):
    labels = data.y[torch.randperm(len(data.y), generator=torch.Generator().manual_seed(0))]
    target = images(
        tools, data, model=tools.perceptron(64, 10), train_loader=tools.loader(data.x, labels),
        optimizer=tools.sgd(5.0),
    )  # fmt: skip
    result = tools.ask(LossDecreases, target)
    assert result.status is Status.WARN, result.message
    assert "tenfold" in result.fix


def test_targets_that_are_all_the_same_are_a_warning(tools, data):
    """``labels[name] = class_ids.get(name, 0)`` where no name is found."""
    same = tools.loader(data.x, torch.zeros_like(data.y))
    result = tools.ask(LossDecreases, images(tools, data, train_loader=same))
    assert result.status is Status.WARN, result.message
    assert "All targets of" in result.message


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_a_slow_rate_is_no_alarm(tools, data, rate):
    result = tools.ask(LossDecreases, images(tools, data, optimizer=tools.sgd(rate)))
    assert result.status in QUIET, result.message


def test_nothing_to_learn_is_a_note_at_most(tools, data):
    noise = torch.randn(len(data.x), 1, generator=torch.Generator().manual_seed(3))
    target = images(
        tools, data, model=tools.perceptron(64, 1), train_loader=tools.loader(data.x, noise),
        loss=F.mse_loss, optimizer=tools.sgd(1e-4),
    )  # fmt: skip
    assert tools.ask(LossDecreases, target).status in QUIET


def test_heavy_dropout_is_judged_in_eval_mode(tools, data):
    def build():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.98), nn.Linear(64, 10))

    target = images(tools, data, model=build, optimizer=tools.adam(1e-2))
    assert tools.ask(LossDecreases, target).status in QUIET


def test_quantities_with_outliers_are_no_alarm(tools, data):
    g = torch.Generator().manual_seed(0)
    wild = data.quantity + 20 * (torch.rand(len(data.quantity), generator=g) < 0.01)
    target = Target(
        tools.perceptron(10, 32, 1), tools.loader(data.features, wild[:, None]), loss=F.mse_loss,
        optimizer=tools.adam(1e-3),
    )  # fmt: skip
    assert tools.ask(LossDecreases, target).status in QUIET


def test_without_a_known_constant_a_fall_is_enough(tools, data):
    penalised = images(tools, data, loss=lambda o, y: CE(o, y) - 3 + 0.01 * o.pow(2).mean())
    result = tools.ask(LossDecreases, penalised)
    assert result.status is Status.PASS
    assert "composite" in result.message


def test_a_warm_up_from_zero_is_no_alarm(tools, data):
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2000, 1))

    result = tools.ask(LossDecreases, images(tools, data, scheduler=warm_up))
    assert result.status is Status.PASS, result.message


def test_a_flat_course_is_rarely_called_above_the_constant_or_falling():
    generator = torch.Generator().manual_seed(0)

    def flat() -> list[float]:
        return (2.3 + 0.1 * torch.randn(100, generator=generator)).tolist()

    above = falling = below = 0
    for _ in range(2000):
        losses = flat()
        mean = sum(losses) / 100
        error = float(torch.tensor(losses).std()) / 10
        final = FinalLoss(2.3, mean, error, 2.3)
        above += final.above
        below += final.below
        falling += still_falling([*losses, *losses, *losses[::-1]])
    assert above == below == 0
    assert falling <= 20  # three standard errors, one-sided: 1.4 in a thousand, twice over


def test_a_course_that_falls_is_seen():
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(200, 300, generator=generator)
    courses = 2.3 - torch.linspace(0, 0.2, 300) + noise
    assert sum(still_falling(course.tolist()) for course in courses) > 195
