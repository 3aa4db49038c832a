from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nnaudit.checks.fit.prediction_collapse import PredictionCollapse, spread_of
from nnaudit.loop.losses import LossCall
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.compared_outputs import ComparedOutputs
from nnaudit.probes.training_run import EvalPoint, TrainingRun
from nnaudit.report import Status, Table
from nnaudit.targets.target import Target
from support.measurements import training
from support.verdicts import verdict

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


def test_a_sound_program_passes(tools, data):
    result = tools.ask(PredictionCollapse, images(tools, data))
    assert result.status is Status.PASS, result.message
    table = next(e for e in result.evidence if isinstance(e, Table))
    assert len(table.rows) == 10


def test_units_that_died_of_a_high_rate_are_a_warning(tools, data):
    deep = tools.perceptron(64, 16, 16, 16, 16, 10)
    target = images(tools, data, model=deep, optimizer=tools.adam(1.0))
    result = tools.ask(PredictionCollapse, target)
    assert result.status is Status.WARN, result.message
    assert "the output no longer depends on the input" in result.message


def test_representations_that_collapse_to_a_point_are_a_warning(tools, data):
    """Pairs are pulled together, and nothing keeps the rest apart."""

    def step(model, batch):
        x = batch[0]
        one, other = model(x + 0.1 * torch.randn_like(x)), model(x + 0.1 * torch.randn_like(x))
        return (one - other).square().mean() + one.var(0).mean()

    target = images(
        tools, data, model=tools.perceptron(64, 16), training_step=step, optimizer=tools.sgd(1.0)
    )
    result = tools.ask(PredictionCollapse, target)
    assert result.status is Status.WARN, result.message


def test_a_frequent_class_is_no_collapse(tools, data):
    rare = (data.y == 0).long()
    target = images(
        tools, data, model=tools.perceptron(64, 32, 2), train_loader=tools.loader(data.x, rare),
        optimizer=tools.sgd(1e-3),
    )  # fmt: skip
    assert tools.ask(PredictionCollapse, target).status in QUIET


def test_a_slow_start_is_no_collapse(tools, data):
    target = images(tools, data, optimizer=tools.sgd(1e-4))
    assert tools.ask(PredictionCollapse, target).status in QUIET


def test_noise_is_no_collapse(tools, data):
    noise = torch.randn(len(data.x), 1, generator=torch.Generator().manual_seed(0))
    target = images(
        tools, data, model=tools.perceptron(64, 1), train_loader=tools.loader(data.x, noise),
        loss=F.mse_loss,
    )  # fmt: skip
    assert tools.ask(PredictionCollapse, target).status in QUIET


def test_a_composite_loss_is_judged_by_the_outputs(tools, data):
    penalised = images(tools, data, loss=lambda o, y: CE(o, y) + 0.01 * o.pow(2).mean())
    assert tools.ask(PredictionCollapse, penalised).status is Status.PASS


def call(kind, given, wanted):
    return LossCall(kind, CE, {"input": given, "target": wanted}, None)


def test_one_class_is_seen_and_ignored_targets_are_not():
    given = torch.zeros(200, 3)
    given[:, 1] = 1 + torch.rand(200)
    wanted = torch.arange(200) % 3
    assert spread_of([call("cross_entropy", given, wanted)]).one_class
    wanted[wanted != 1] = -100
    assert not spread_of([call("cross_entropy", given, wanted)]).one_class


def test_per_pixel_and_binary_classes_are_understood():
    masks = spread_of([call("cross_entropy", torch.randn(4, 3, 8, 8), torch.randint(3, (4, 8, 8)))])
    assert abs(sum(masks.prior) - 1) < 1e-6
    assert len(masks.predicted) == 3
    logits = torch.randn(100, 1)
    binary = spread_of([call("bce_with_logits", logits, (logits > 0).float())])
    assert binary.predicted == binary.prior
    probable = spread_of([call("bce", torch.full((100, 1), 0.4), torch.ones(100, 1))])
    assert probable.most == 1.0
    assert probable.variation < 1e-6


def test_many_labels_have_a_spread_but_no_classes():
    many = spread_of([call("bce_with_logits", torch.randn(100, 5), torch.ones(100, 5))])
    assert many.variation > 0.5
    assert not many.predicted


@pytest.mark.parametrize(
    ("before", "after", "compared", "status"),
    [
        (0.4, 0.005, True, Status.WARN),
        (0.4, 0.005, False, Status.PASS),  # what the rows have in common may be large
        (0.04, 0.005, True, Status.PASS),  # they were near each other at the start
        (0.4, 0.03, True, Status.PASS),
    ],
)
def test_embeddings_that_draw_together(before, after, compared, status):
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    looks = [
        EvalPoint(step, EvalResult(outputs=1.0 + spread * noise), EvalResult())
        for step, spread in ((0, before), (300, after))
    ]
    seen = replace(training([0.5] * 300), moments=tuple(looks))
    measured = {TrainingRun: seen, ComparedOutputs: compared}
    assert verdict(PredictionCollapse, measured).status is status
