import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.api import audit_loop
from nnaudit.checks.fit.capacity import Candidate, Capacity, _gain, _much_faster
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.settings import Settings
from nnaudit.targets.target import Target
from nnaudit.training.fitting import Run

CE = F.cross_entropy


def narrow(units=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))


def images(tools, data, model, **parts):
    return Target(
        **{
            "model": model,
            "train_loader": tools.loader(data.x, data.y),
            "loss": CE,
            "optimizer": tools.adam(1e-2),
        }
        | parts
    )


def test_one_hidden_unit_for_ten_classes_fails(tools):
    data = tools.Data(rows=640)
    result = tools.ask(Capacity, images(tools, data, narrow))
    assert result.status is Status.FAIL, result.message
    assert "widened 16 times" in result.message
    assert "1 has 1 outputs" in result.fix


@pytest.mark.slow
def test_what_an_exact_failure_explains_is_not_looked_into(tools, data):
    parts = images(tools, data, lambda: nn.Sequential(narrow(2), nn.Softmax(1)))
    loop = DirectLoop(parts, torch.device("cpu"), seed=0)
    report = audit_loop(loop, Settings(select=("LOSS101", "FIT106")))
    said = {result.code: result for result in report.results}
    assert said["LOSS101"].status is Status.FAIL
    assert said["FIT106"].status is Status.INCONCLUSIVE
    assert "LOSS101 has failed" in said["FIT106"].message


@pytest.mark.slow
def test_the_users_own_width_argument_is_used(tools, data):
    def build(width=1.0):
        return narrow(round(width))

    result = tools.ask(Capacity, images(tools, data, build))
    assert result.status is Status.FAIL, result.message
    assert "built 16 times as wide" in result.message


def test_a_large_enough_network_passes_at_no_cost(tools, data):
    result = tools.ask(Capacity, images(tools, data, tools.perceptron(64, 64, 10)))
    assert result.status is Status.PASS
    assert result.steps < 1000


def test_slow_is_not_small(tools, data):
    target = images(tools, data, tools.perceptron(64, 64, 10), optimizer=tools.sgd(1e-3))
    result = tools.ask(Capacity, target)
    assert result.status is Status.PASS, result.message


@pytest.mark.slow
def test_noise_learnt_by_heart_is_no_lack_of_capacity(tools, data):
    noisy = data.features[:, 0] + 1.5 * torch.randn(1600, generator=data.generator)
    target = Target(
        tools.perceptron(10, 3, 1),
        tools.loader(data.features, noisy[:, None]),
        loss=F.mse_loss,
        optimizer=tools.adam(1e-2),
    )
    assert tools.ask(Capacity, target).status in (Status.PASS, Status.INCONCLUSIVE)


@pytest.mark.slow
def test_random_labels_are_not_blamed_on_the_network(tools, data):
    labels = torch.randint(0, 10, (1600,), generator=torch.Generator().manual_seed(1))
    target = images(tools, data, narrow, train_loader=tools.loader(data.x, labels))
    assert tools.ask(Capacity, target).status in (Status.PASS, Status.INCONCLUSIVE)


def test_a_linear_model_is_meant_to_be_one(tools):
    x = torch.randn(800, 2, generator=torch.Generator().manual_seed(0))
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    target = Target(lambda: nn.Linear(2, 2), tools.loader(x, y), loss=CE, optimizer=tools.sgd(0.1))
    result = tools.ask(Capacity, target)
    assert result.status is Status.WARN
    assert "perceptron" in result.message


@pytest.mark.slow
def test_a_fault_that_width_does_not_cure_is_no_failure_of_width(tools, data):
    def build():
        return nn.Sequential(tools.perceptron(64, 64, 10)(), nn.Softmax(1))

    assert tools.ask(Capacity, images(tools, data, build)).status is not Status.FAIL


@pytest.mark.slow
def test_dead_initial_weights_are_told_from_a_small_network(tools, data):
    def build():
        model = tools.perceptron(64, 64, 10)()
        nn.init.constant_(model[1].bias, -100.0)
        return model

    result = tools.ask(Capacity, images(tools, data, build))
    assert result.status is Status.WARN
    assert "default initial weights" in result.message


def test_an_unexpected_loss_is_said(tools, data):
    target = images(
        tools, data, tools.perceptron(64, 64, 10), loss=lambda o, y: CE(o, y) + o.pow(2).mean()
    )
    assert tools.ask(Capacity, target).status is Status.INCONCLUSIVE


def test_a_network_on_its_way_is_outrun_only_by_far():
    def candidate(steps: int, *held_out: float) -> Candidate:
        return Candidate("", Run("", (1.0,), steps, 0.0), 0.0, held_out)

    own = candidate(800, 0.2, 0.21, 0.19, 0.2)
    assert _much_faster(own, candidate(200, 0.6, 0.6, 0.61, 0.6))
    assert not _much_faster(own, candidate(600, 0.6, 0.6, 0.61, 0.6))  # it needed as long
    assert not _much_faster(own, candidate(200, 0.3, 0.3, 0.31, 0.3))  # and gained little
    assert not _much_faster(own, candidate(200, 0.9, 0.1, 0.9, 0.2))  # or here and there only


def test_the_paired_t_rejects_equals_rarely_and_finds_what_matters():
    generator = torch.Generator().manual_seed(0)

    def t_of(shift: float) -> float:
        shared = torch.randn(8, generator=generator)
        own = shared + 0.1 * torch.randn(8, generator=generator)
        other = shared + shift + 0.1 * torch.randn(8, generator=generator)
        run = Run("", (1.0,), 1, 0.0)
        pair = [Candidate("", run, 0.0, tuple(v.tolist())) for v in (own, other)]
        gain, t = _gain(pair[0], pair[1])
        return t if gain >= 0.2 else 0.0

    assert sum(t_of(0.0) > 6 for _ in range(2000)) == 0
    assert sum(t_of(0.6) > 6 for _ in range(200)) > 190


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(8), pytest.param(range(8, 20), marks=pytest.mark.exhaustive)]
)
def test_no_false_alarm_over_small_sound_networks(tools, seeds):
    for seed in seeds:
        data = tools.Data(rows=1200)
        model = tools.perceptron(64, 12 + 4 * (seed % 4), 10)
        result = tools.ask(Capacity, images(tools, data, model), seed=seed)
        assert result.status is Status.PASS, (seed, result.message)
