import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.fit.input_dependence import InputDependence, memorises
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.training_run import EvalPoint, Training
from nnaudit.report import Status, Table
from nnaudit.targets.target import Target

CE = F.cross_entropy
QUIET = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE)


def images(tools, data, **parts):
    usual = {
        "model": tools.perceptron(64, 64, 10),
        "train_loader": tools.loader(data.x, data.y),
        "loss": CE,
        "optimizer": tools.adam(1e-2),
    }
    return Target(**usual | parts)


def shuffled(labels):
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def test_a_sound_program_passes_after_one_run(tools, data):
    result = tools.ask(InputDependence, images(tools, data))
    assert result.status is Status.PASS, result.message
    assert result.steps == 300


def test_validation_examples_are_looked_at_where_there_are_any(tools, data):
    held_out = lambda: DataLoader(TensorDataset(data.x[:400], data.y[:400]), 100)  # noqa: E731
    result = tools.ask(InputDependence, images(tools, data, val_loader=held_out))
    assert result.status is Status.PASS
    assert "validation" in result.message


def test_labels_shuffled_alone_fail(tools):
    """``random.shuffle(labels)``, or file names sorted and labels not."""
    data = tools.Data(rows=640)
    wrong = tools.loader(data.x, shuffled(data.y))
    result = tools.ask(InputDependence, images(tools, data, train_loader=wrong))
    assert result.status is Status.FAIL, result.message
    assert "one order" in result.fix
    assert isinstance(result.evidence[0], Table)


def test_a_smoke_test_on_random_numbers_is_a_warning(tools):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 24, generator=generator)
    y = torch.randint(0, 4, (1200,), generator=generator)
    target = Target(
        tools.perceptron(24, 128, 4), tools.loader(x, y), loss=CE, optimizer=tools.adam(1e-2)
    )
    result = tools.ask(InputDependence, target)
    assert result.status is Status.WARN, result.message
    assert "smoke test" in result.message
    mixed = tools.loader(x @ torch.randn(24, 24, generator=generator), y)
    target = Target(tools.perceptron(24, 128, 4), mixed, loss=CE, optimizer=tools.adam(1e-2))
    assert tools.ask(InputDependence, target).status is Status.FAIL


@pytest.mark.slow
def test_inputs_overwritten_by_noise_are_left_to_others(tools, data):
    def step(model, batch):
        x = torch.randn(
            batch[0].shape, generator=torch.Generator().manual_seed(int(batch[1].sum()))
        )
        return CE(model(x), batch[1])

    result = tools.ask(InputDependence, images(tools, data, training_step=step))
    assert result.status is Status.INCONCLUSIVE  # nothing is learnt, not even by heart: FIT101


@pytest.mark.slow
def test_noise_between_two_classes_is_a_warning_at_most(tools, data):
    coins = (torch.rand(len(data.x), generator=torch.Generator().manual_seed(1)) < 0.5).long()
    target = images(
        tools, data, model=tools.perceptron(64, 64, 2), train_loader=tools.loader(data.x, coins)
    )
    assert tools.ask(InputDependence, target).status in (Status.WARN, *QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 0.8])
def test_wrong_labels_among_right_ones_are_no_alarm(tools, data, noise):
    mixed = data.y.clone()
    wrong = torch.rand(len(mixed), generator=torch.Generator().manual_seed(2)) < noise
    mixed[wrong] = shuffled(data.y)[wrong]
    result = tools.ask(
        InputDependence, images(tools, data, train_loader=tools.loader(data.x, mixed))
    )
    assert result.status in QUIET, result.message


@pytest.mark.parametrize("rate", [1e-5, 1e-7])
def test_what_is_not_learnt_yet_proves_nothing(tools, data, rate):
    result = tools.ask(InputDependence, images(tools, data, optimizer=tools.sgd(rate)))
    assert result.status is Status.INCONCLUSIVE
    assert "too little was learnt" in result.message


def test_few_examples_prove_nothing(tools, data):
    few = tools.loader(data.x[:60], shuffled(data.y)[:60], batch_size=20)
    result = tools.ask(InputDependence, images(tools, data, train_loader=few))
    assert result.status is Status.INCONCLUSIVE, result.message


def test_data_in_the_order_of_their_labels_prove_nothing(tools, data):
    order = data.y.argsort()
    ordered = lambda: DataLoader(TensorDataset(data.x[order], data.y[order]), 64)  # noqa: E731
    result = tools.ask(InputDependence, images(tools, data, train_loader=ordered))
    assert result.status in QUIET, result.message


def test_an_autoencoder_depends_on_its_inputs(tools, data):
    flat = data.x.flatten(1)
    target = Target(
        tools.perceptron(64, 32, 64), tools.loader(flat, flat), loss=F.mse_loss,
        optimizer=tools.adam(1e-3),
    )  # fmt: skip
    assert tools.ask(InputDependence, target).status is Status.PASS


def test_without_targets_it_is_not_asked(tools, data):
    target = Target(
        tools.perceptron(64, 16), lambda: DataLoader(TensorDataset(data.x), 64),
        training_step=lambda model, batch: model(batch[0]).var(0).mean(),
    )  # fmt: skip
    assert tools.ask(InputDependence, target).status in (Status.SKIP, Status.INCONCLUSIVE)


def test_contrastive_pairs_are_no_alarm(tools, data):
    def step(model, batch):
        x = batch[0]
        one, other = model(x + 0.1 * torch.randn_like(x)), model(x + 0.1 * torch.randn_like(x))
        logits = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / 0.2
        return CE(logits, torch.arange(len(x)))

    target = images(tools, data, model=tools.perceptron(64, 32, 16), training_step=step)
    assert tools.ask(InputDependence, target).status in QUIET


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 32), nn.Linear(32, 12)

    def forward(self, ids):
        return self.head(self.embed(ids))


def test_a_language_model_passes(tools):
    g = torch.Generator().manual_seed(0)
    start = torch.randint(12, (600, 1), generator=g)
    text = (start + torch.arange(9) * 5 + torch.randint(2, (600, 9), generator=g)) % 12
    target = Target(
        Language, tools.loader(text[:, :-1], text[:, 1:], batch_size=32),
        loss=lambda o, y: CE(o.flatten(0, 1), y.flatten()), optimizer=tools.adam(1e-2),
    )  # fmt: skip
    assert tools.ask(InputDependence, target).status is Status.PASS


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(4), pytest.param(range(4, 12), marks=pytest.mark.exhaustive)]
)
def test_no_false_alarm_over_sound_programs_that_learn_by_heart(tools, seeds):
    """Few rows, hard classes, a network far too large: the worst that is still sound."""
    for seed in seeds:
        data = tools.Data(rows=700)
        noise = 3.0 * torch.randn(700, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        target = images(
            tools, data, model=tools.perceptron(64, 256, 10),
            train_loader=tools.loader(data.x + noise, data.y, batch_size=70),
        )  # fmt: skip
        result = tools.ask(InputDependence, target, seed=seed)
        assert result.status in QUIET, (seed, result.message)


def run_of(losses, constant=2.3, epoch=22):
    """A run of which nothing is known but its losses."""
    steps = len(losses)
    return Training(
        losses=tuple(losses), rates=(0.1,) * steps, epoch_starts=tuple(range(0, steps, epoch)),
        rows=(64,) * steps, calls={}, constant=constant, fixed=(), val=(), val_whole=False,
        moments=(EvalPoint(0, EvalResult(), EvalResult()),),
    )  # fmt: skip


def test_the_losses_of_a_run_show_that_rows_are_learnt_by_heart():
    """Under the null the losses scatter about the constant; 64 rows do so by 0.03 to 0.1."""
    draws = np.random.default_rng(0)
    chance = draws.normal(2.3, 0.1, (4000, 300))
    assert sum(memorises(run_of(losses)) for losses in chance) <= 1
    fallen = draws.normal(2.3 - np.linspace(0, 0.12, 300), 0.1, (200, 300))  # 5 % in the end
    assert all(memorises(run_of(losses)) for losses in fallen)


def test_losses_of_rows_not_met_before_say_nothing_of_learning_by_heart():
    fallen = 2.3 - np.linspace(0, 0.5, 300)
    assert memorises(run_of(fallen))
    assert not memorises(run_of(fallen, epoch=250))
    assert not memorises(run_of(fallen, constant=float("nan")))
