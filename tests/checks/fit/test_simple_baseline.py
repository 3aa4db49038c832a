from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.fit.predictions import PredictionScore
from nnaudit.checks.fit.simple_baseline import SimpleBaseline, _ahead
from nnaudit.probes import training_run
from nnaudit.report import Status, Table
from nnaudit.targets.target import Target

CE = F.cross_entropy
QUIET = (Status.PASS, Status.NOTE, Status.INCONCLUSIVE)


def images(tools, data, **parts):
    usual = {
        "model": tools.perceptron(64, 64, 10),
        "train_loader": tools.loader(data.x[400:], data.y[400:]),
        "val_loader": lambda: DataLoader(TensorDataset(data.x[:400], data.y[:400]), 100),
        "loss": CE,
        "optimizer": tools.adam(3e-3),
    }
    return Target(**usual | parts)


class Corner(nn.Module):
    def forward(self, x):
        return x[:, :2]


def test_a_good_network_needs_no_comparison(tools, data):
    result = tools.ask(SimpleBaseline, images(tools, data))
    assert result.status is Status.PASS, result.message
    assert result.steps == 300


def test_a_run_of_few_steps_is_not_compared(tools, data, monkeypatch):
    monkeypatch.setattr(training_run, "SECONDS", 0.0)
    result = tools.ask(SimpleBaseline, images(tools, data))
    assert result.status is Status.INCONCLUSIVE
    assert "too few" in result.message
    assert result.steps == 1


def test_a_network_whose_units_died_is_behind(tools, data):
    deep = tools.perceptron(64, 16, 16, 16, 16, 10)
    result = tools.ask(SimpleBaseline, images(tools, data, model=deep, optimizer=tools.adam(1.0)))
    assert result.status is Status.WARN, result.message
    assert isinstance(result.evidence[0], Table)
    assert "begin with" in result.fix


def test_a_run_that_was_cut_short_is_a_note(tools, data, monkeypatch):
    measured = training_run.TrainingRun.measure
    monkeypatch.setattr(
        training_run.TrainingRun,
        "measure",
        lambda probe, audit: replace(measured(probe, audit), cut=True),
    )
    deep = tools.perceptron(64, 16, 16, 16, 16, 10)
    result = tools.ask(SimpleBaseline, images(tools, data, model=deep, optimizer=tools.adam(1.0)))
    assert result.status is Status.NOTE, result.message
    assert "no time" in result.message


def test_the_wrong_axis_of_a_softmax_is_behind(tools, data):
    def wrong():
        return nn.Sequential(tools.perceptron(64, 64, 10)(), nn.Softmax(dim=0), nn.Linear(10, 10))

    result = tools.ask(SimpleBaseline, images(tools, data, model=wrong, optimizer=tools.sgd(0.1)))
    assert result.status in (Status.WARN, Status.NOTE), result.message


def test_learning_by_heart_what_a_corner_shows_is_not_on_its_way(tools, data):
    def build():
        return nn.Sequential(nn.Flatten(), Corner(), tools.perceptron(2, 128, 10)())

    result = tools.ask(SimpleBaseline, images(tools, data, model=build, optimizer=tools.adam(1e-2)))
    assert result.status is Status.WARN, result.message


@pytest.mark.parametrize("rate", [1e-2, 1e-4])
def test_a_slow_network_is_a_note_at_most(tools, data, rate):
    result = tools.ask(SimpleBaseline, images(tools, data, optimizer=tools.sgd(rate)))
    assert result.status in QUIET, result.message


def test_noise_is_no_reason_to_warn(tools, data):
    noise = torch.randn(len(data.x), 1)
    target = images(
        tools, data, model=tools.perceptron(64, 1), loss=F.mse_loss,
        train_loader=tools.loader(data.x[400:], noise[400:]),
        val_loader=lambda: DataLoader(TensorDataset(data.x[:400], noise[:400]), 100),
    )  # fmt: skip
    result = tools.ask(SimpleBaseline, target)
    assert result.status is Status.PASS, result.message
    assert "linear" in result.message or "convolutional" in result.message


def test_strong_regularisation_is_no_fault(tools, data):
    def build():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 10))

    assert tools.ask(SimpleBaseline, images(tools, data, model=build)).status in QUIET


def test_a_composite_loss_is_inconclusive(tools, data):
    penalised = images(tools, data, loss=lambda o, y: CE(o, y) + 0.01 * o.pow(2).mean())
    assert tools.ask(SimpleBaseline, penalised).status is Status.INCONCLUSIVE


def test_targets_made_within_the_step_are_not_compared(tools, data):
    """Diffusion: the noise to be predicted is drawn anew whenever the batch is taken apart."""

    def step(model, batch):
        x = batch[0].flatten(1)
        noise = torch.randn_like(x)
        return F.mse_loss(model(x + noise), noise)

    target = images(tools, data, model=tools.perceptron(64, 64, 64), training_step=step)
    assert tools.ask(SimpleBaseline, target).status is Status.INCONCLUSIVE


def test_without_validation_it_is_skipped(tools, data):
    assert tools.ask(SimpleBaseline, images(tools, data, val_loader=None)).status is Status.SKIP


def test_null_rejection_rate_and_power():
    g = torch.Generator().manual_seed(0)

    def told(right: float) -> PredictionScore:
        seen = float((torch.rand(400, generator=g) < right).float().mean())
        return PredictionScore(400, (seen - 0.1) / 0.9, 9.0, 1.0, seen, 0.1, 10)

    assert not any(_ahead(told(0.6), told(0.6)) for _ in range(2000))
    assert sum(_ahead(told(0.4), told(0.7)) for _ in range(200)) > 190
