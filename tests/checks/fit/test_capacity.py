from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.api import audit_loop
from nnaudit.checks.fit import capacity
from nnaudit.checks.fit.capacity import Candidate, Capacity, Rows, _gain, _much_faster
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.settings import Settings
from nnaudit.targets.target import Target
from nnaudit.training.fitting import Run
from nnaudit.training.loss_bounds import Bounds

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


@pytest.mark.exhaustive  # a program of the zoo fails in each change's tests
def test_one_hidden_unit_for_ten_classes_fails(tools):
    data = tools.Data(rows=640)
    result = tools.ask(Capacity, images(tools, data, narrow))
    assert result.status is Status.FAIL, result.message
    assert "widened 16 times" in result.message
    assert "1 has 1 outputs" in result.fix


@pytest.mark.exhaustive
def test_what_an_exact_failure_explains_is_not_looked_into(tools, data):
    parts = images(tools, data, lambda: nn.Sequential(narrow(2), nn.Softmax(1)))
    loop = DirectLoop(parts, torch.device("cpu"), seed=0)
    report = audit_loop(loop, Settings(select=("LOSS101", "FIT106")))
    said = {result.code: result for result in report.results}
    assert said["LOSS101"].status is Status.FAIL
    assert said["FIT106"].status is Status.INCONCLUSIVE
    assert "LOSS101 has failed" in said["FIT106"].message


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
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
def test_random_labels_are_not_blamed_on_the_network(tools):
    data = tools.Data(rows=640)
    labels = torch.randint(0, 10, (640,), generator=torch.Generator().manual_seed(1))
    target = images(tools, data, narrow, train_loader=tools.loader(data.x, labels))
    assert tools.ask(Capacity, target).status in (Status.PASS, Status.INCONCLUSIVE)


def test_a_linear_model_is_meant_to_be_one(tools):
    x = torch.randn(800, 2, generator=torch.Generator().manual_seed(0))
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    target = Target(lambda: nn.Linear(2, 2), tools.loader(x, y), loss=CE, optimizer=tools.sgd(0.1))
    result = tools.ask(Capacity, target)
    assert result.status is Status.WARN
    assert "perceptron" in result.message


@pytest.mark.exhaustive
def test_a_fault_that_width_does_not_cure_is_no_failure_of_width(tools, data):
    def build():
        return nn.Sequential(tools.perceptron(64, 64, 10)(), nn.Softmax(1))

    assert tools.ask(Capacity, images(tools, data, build)).status is not Status.FAIL


@pytest.mark.exhaustive
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


FLAT = tuple(1.0 for _ in range(40))
FALLING = tuple(1.0 - 0.02 * i for i in range(40))


def candidate(
    closed: float, held_out: float, losses: tuple[float, ...] = FLAT, wider: bool = True
) -> Candidate:
    """A network whose loss gap is closed so far, on the rows and on six batches of others."""
    unseen = tuple(held_out + 0.01 * (i % 2) for i in range(6))
    return Candidate("another", Run("", losses, 400, 0.0), closed, unseen, wider, size=1.0)


@pytest.fixture
def judged(monkeypatch):
    """Return what the check says of networks that were trained: no training."""
    bounds = Bounds(floor=0.0, constant=2.3, kind="cross_entropy", rows=256, distinct=256)
    rows = Rows(SimpleNamespace(rows=256, bounds=bounds), bounds, SimpleNamespace(bounds=bounds))
    loop = SimpleNamespace(model=narrow(), locate=lambda part: None)

    def judge(own, other, *, again=None, reset=0.1, by_design=False):
        pairs = iter([(own, [other]), again or (own, [other])])
        monkeypatch.setattr(capacity, "_compared", lambda *_: next(pairs))
        monkeypatch.setattr(capacity, "_train_candidate", lambda *_: candidate(reset, 0.0))
        monkeypatch.setattr(capacity, "_small_by_design", lambda _: by_design)
        monkeypatch.setattr(capacity, "replicated", nullcontext)
        top = SimpleNamespace(closed=own.closed, rows=256)
        audit = SimpleNamespace(loop=loop, seed=0)
        return Capacity()._compare(audit, rows, None, top)

    return judge


SMALL, LARGE = candidate(0.2, 0.2), candidate(0.95, 0.6)


def test_a_network_that_a_wider_one_leaves_far_behind_fails(judged):
    assert judged(SMALL, LARGE).status is Status.FAIL


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"by_design": True}, "underfits"),
        ({"reset": 0.8}, "default initial weights"),
        ({"again": (SMALL, [candidate(0.95, 0.25)])}, "it was not so"),
    ],
)
def test_what_could_excuse_it_makes_it_a_warning(judged, case, said):
    result = judged(SMALL, LARGE, **case)
    assert result.status is Status.WARN
    assert said in result.message


def test_where_only_another_network_fits_width_is_not_what_is_missing(judged):
    assert judged(SMALL, candidate(0.95, 0.6, wider=False)).status is Status.WARN


def test_noise_that_a_wider_network_learns_by_heart_is_no_lack_of_width(judged):
    assert judged(SMALL, candidate(0.95, 0.2)).status is Status.PASS


def test_where_no_network_fits_the_size_is_not_the_cause(judged):
    result = judged(SMALL, candidate(0.6, 0.5))
    assert result.status is Status.INCONCLUSIVE
    assert "The size is not the cause" in result.message


def test_a_network_that_still_learns_is_not_called_small(judged):
    assert judged(candidate(0.6, 0.4, FALLING), candidate(0.95, 0.55)).status is Status.PASS


def test_a_network_on_its_way_is_outrun_only_by_far():
    def trained(steps: int, *held_out: float) -> Candidate:
        return Candidate("", Run("", (1.0,), steps, 0.0), 0.0, held_out)

    own = trained(800, 0.2, 0.21, 0.19, 0.2)
    assert _much_faster(own, trained(200, 0.6, 0.6, 0.61, 0.6))
    assert not _much_faster(own, trained(600, 0.6, 0.6, 0.61, 0.6))  # it needed as long
    assert not _much_faster(own, trained(200, 0.3, 0.3, 0.31, 0.3))  # and gained little
    assert not _much_faster(own, trained(200, 0.9, 0.1, 0.9, 0.2))  # or here and there only


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
