import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.checks.fit.divergence import Course, Divergence, course_of
from nnaudit.probes.training_run import Training
from nnaudit.report import Status
from nnaudit.targets.target import Target
from support.measurements import loss_call

CE = F.cross_entropy
QUIET = (Status.PASS, Status.INCONCLUSIVE)


def numbers(tools, data, **parts):
    usual = {
        "model": tools.perceptron(10, 32, 1),
        "train_loader": tools.loader(data.features, data.quantity[:, None]),
        "loss": F.mse_loss,
        "optimizer": tools.sgd(0.05),
    }
    return Target(**usual | parts)


def made_of(losses, **parts) -> Training:
    n = len(losses)
    return Training(tuple(losses), (0.1,) * n, (0,), (1,) * n, {}, math.nan, (), (), False, (),
                    **parts)  # fmt: skip


def test_a_sound_program_passes(tools, data):
    result = tools.ask(Divergence, numbers(tools, data))
    assert result.status is Status.PASS, result.message
    assert result.steps == 300


@pytest.mark.parametrize("rate", [1e3, 30.0])
def test_a_rate_a_hundred_times_too_high_fails(tools, data, rate):
    linear = numbers(tools, data, model=lambda: nn.Linear(10, 1), optimizer=tools.sgd(rate))
    result = tools.ask(Divergence, linear)
    assert result.status is Status.FAIL, result.message
    assert "other weights" in result.message
    assert f"{rate:.2g}" in result.fix


def test_growth_that_stays_finite_fails(tools, data):
    """Just unstable: the loss grows by a few per cent a step."""
    x = data.features[:64]
    design = torch.cat([x, torch.ones(64, 1)], 1)
    curvature = float(torch.linalg.eigvalsh(2 * design.T @ design / 64).max())
    target = numbers(
        tools, data, model=lambda: nn.Linear(10, 1), optimizer=tools.sgd(2.05 / curvature),
        train_loader=tools.loader(x, data.quantity[:64, None]),
    )  # fmt: skip
    result = tools.ask(Divergence, target)
    assert result.status is Status.FAIL, result.message
    assert "diverges at your learning rate: the loss goes from" in result.message


def test_a_rate_three_times_too_high_is_no_divergence(tools, data):
    assert tools.ask(Divergence, numbers(tools, data, optimizer=tools.sgd(0.3))).status in QUIET


def test_a_loss_without_a_lower_bound_is_no_divergence(tools, data):
    sinking = numbers(tools, data, loss=lambda output, y: F.l1_loss(output, y) - 1e3)
    assert tools.ask(Divergence, sinking).status is Status.PASS


def test_several_optimizers_may_pull_against_each_other(tools, data):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(10, 1), nn.Linear(10, 1)

        def forward(self, x):
            return self.up(x) - self.down(x).detach()

    def two(model):
        return [torch.optim.SGD(model.up.parameters(), 0.1, maximize=True),
                torch.optim.SGD(model.down.parameters(), 0.1)]  # fmt: skip

    target = numbers(tools, data, model=Pair, optimizer=two, loss=lambda o, y: o.mean() + o.std())
    assert tools.ask(Divergence, target).status is not Status.FAIL


def test_a_warm_up_is_given_the_benefit_of_the_doubt(tools, data):
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 5000, 1))

    target = numbers(
        tools, data, model=lambda: nn.Linear(10, 1), optimizer=tools.sgd(1.2), scheduler=warm_up,
    )  # fmt: skip
    assert tools.ask(Divergence, target).status is not Status.FAIL


def test_users_code_that_raises_is_not_divergence():
    calm = made_of([1.0] * 40 + [math.nan], broke=40, error="ValueError: done")
    assert not course_of(calm).diverged
    wild = made_of([1.0] * 10 + [1e3 * i for i in range(30)] + [math.nan], broke=40, error="x")
    assert course_of(wild).diverged


def test_the_first_loss_must_be_a_number(tools, data):
    target = numbers(tools, data, loss=lambda output, y: F.mse_loss(output, y) / 0)
    assert tools.ask(Divergence, target).status is Status.INCONCLUSIVE


def test_healthy_noise_is_never_called_divergence_and_growth_is_found():
    rng = np.random.default_rng(0)
    null = 0
    for _ in range(5000):
        heavy = rng.standard_t(1.5, 300) ** 2  # losses with a tail that has no variance
        null += course_of(made_of(heavy.tolist())).diverged
    assert null == 0
    found = sum(
        course_of(made_of((1.02 ** np.arange(300) * rng.gamma(4, 0.25, 300)).tolist())).diverged
        for _ in range(200)
    )
    assert found >= 198


def test_few_losses_prove_nothing():
    assert not course_of(made_of([1.0] * 5 + [100.0] * 4)).diverged
    assert Course(None, 1.0, 100.0, 1e-3).diverged is False


def own_batches(losses, targets=()):
    calls = {i: loss_call("mse", torch.zeros(3), each) for i, each in enumerate(targets)}
    loop = SimpleNamespace(
        lacks=lambda need: "the script draws its batches itself", locate=lambda thing: None
    )
    measured = replace(made_of(losses), calls=calls)
    audit = SimpleNamespace(probe=lambda probe: measured, loop=loop)
    return measured, audit


def test_growth_says_nothing_where_the_program_makes_its_targets():
    """The loss of a value network grows with the returns that it is to predict."""
    growing = [1.0] * 5 + [50.0] * 100
    for targets in ((), [torch.rand(3) for _ in range(3)]):
        measured, audit = own_batches(growing, targets)
        assert course_of(measured).diverged
        assert not measured.has_labels
        result = Divergence().run(audit)
        assert result.status is Status.PASS
        assert "makes the targets itself" in result.message


def test_labels_are_classes_or_the_same_in_every_step():
    same = torch.rand(3)
    assert own_batches([1.0], [same, same.clone()])[0].has_labels
    classes = loss_call("cross_entropy", torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    assert replace(made_of([1.0]), calls={0: classes}).has_labels
