import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnaudit.checks.fit.target_leak import TargetLeak, column_of
from nnaudit.measure.permuted_labels import Permuted
from nnaudit.report import Status
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


def test_a_sound_program_passes_without_seeing_its_labels(tools, data):
    result = tools.ask(TargetLeak, images(tools, data))
    assert result.status is Status.PASS, result.message
    assert "the network does not see the labels" in result.message


def test_the_target_column_left_in_the_table_fails(tools, data):
    """``x = table.values`` where ``table.drop(columns='price')`` was meant."""
    table = torch.cat([data.features, 0.01 * data.quantity[:, None] - 3], 1)
    target = Target(
        tools.perceptron(11, 32, 1), tools.loader(table, data.quantity[:, None]), loss=F.mse_loss,
        optimizer=tools.adam(1e-2),
    )  # fmt: skip
    result = tools.ask(TargetLeak, target)
    assert result.status is Status.FAIL, result.message
    assert "element 10" in result.fix
    assert "take the target one step later" in result.fix  # a window of a series looks the same


def test_a_code_of_the_class_among_the_features_fails(tools, data):
    table = torch.cat([data.x.flatten(1), data.y[:, None].float()], 1)
    target = images(
        tools, data, model=tools.perceptron(65, 64, 10), train_loader=tools.loader(table, data.y)
    )
    result = tools.ask(TargetLeak, target)
    assert result.status is Status.FAIL, result.message
    assert result.fix == "leave element 64 out of the inputs"


class Reads(nn.Module):
    """Takes the label as a second input and uses it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.body = nn.Sequential(nn.Linear(80, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x, hint):
        return self.body(torch.cat([x.flatten(1), self.embed(hint)], 1))


def test_a_label_that_reaches_the_network_in_the_step_fails(tools, data):
    def step(model, batch):
        return CE(model(batch[0], (batch[1] + 3) % 10), batch[1])

    target = images(tools, data, model=Reads, training_step=step)
    result = tools.ask(TargetLeak, target)
    assert result.status is Status.FAIL, result.message
    assert result.fix


def test_a_condition_is_no_leak_where_the_loss_does_not_ask_for_it(tools, data):
    """A generator is told the class; the loss compares with ones that the program makes."""

    class Critic(Reads):
        def forward(self, x, hint):
            return super().forward(x, hint)[:, 0]

    def step(model, batch):
        out = model(batch[0], batch[1])
        return F.mse_loss(out, torch.ones_like(out))

    target = images(tools, data, model=Critic, training_step=step, loss=None)
    assert tools.ask(TargetLeak, target).status in QUIET


def test_a_model_that_takes_labels_for_its_loss_only_passes(tools, data):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tools.perceptron(64, 64, 10)()

        def forward(self, x, labels):
            return self.body(x), CE(self.body(x), labels)

    target = images(
        tools, data, model=Own, training_step=lambda m, b: m(b[0], b[1])[1], loss=None,
    )  # fmt: skip
    assert tools.ask(TargetLeak, target).status in QUIET


def test_strong_features_are_no_leak(tools, data):
    """Correlated at 0.999: a good feature, not the target."""
    near = data.quantity + 0.04 * torch.randn(len(data.quantity))
    table = torch.cat([data.features, near[:, None]], 1)
    target = Target(
        tools.perceptron(11, 32, 1), tools.loader(table, data.quantity[:, None]), loss=F.mse_loss,
        optimizer=tools.adam(1e-2),
    )  # fmt: skip
    result = tools.ask(TargetLeak, target)
    assert result.status is Status.PASS, result.message


def test_one_column_in_all_is_the_task(tools, data):
    x = torch.randn(400, 1)
    target = Target(
        lambda: nn.Linear(1, 1), tools.loader(x, 2 * x + 1), loss=F.mse_loss,
        optimizer=tools.sgd(0.05),
    )  # fmt: skip
    assert tools.ask(TargetLeak, target).status is Status.PASS


def test_an_autoencoder_is_not_asked(tools, data):
    flat = data.x.flatten(1)
    target = Target(tools.perceptron(64, 8, 64), tools.loader(flat, flat), loss=F.mse_loss)
    assert tools.ask(TargetLeak, target).status is Status.SKIP


def test_columns_by_class():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (200,), generator=g)
    noise = torch.randn(200, 3, generator=g)
    one_hot = F.one_hot(y, 4).float()
    found = column_of([torch.cat([noise, one_hot], 1)], y)
    assert found.element == 3
    assert "with 3 others" in found.words
    # One class has a mark of its own: it tells that class, not the others apart.
    assert column_of([torch.cat([noise, one_hot[:, :1]], 1)], y) is None
    wrong = one_hot.clone()
    wrong[0] = 1 - wrong[0]
    assert column_of([torch.cat([noise, wrong], 1)], y) is None
    constant = torch.cat([noise, torch.ones(200, 2)], 1)
    assert column_of([constant], y) is None
    one_row_each = torch.randn(4, 5, generator=g)[y]
    assert column_of([one_row_each], y) is None


@pytest.mark.parametrize("values", [2, 3])
def test_null_rejection_rate_of_columns(values):
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = torch.randint(values, (128, 500), generator=g)
        y = torch.randint(2, (128,), generator=g)
        assert column_of([x], y) is None


def test_null_rejection_rate_and_power_of_permuted_labels():
    g = torch.Generator().manual_seed(0)

    def run(gain: float) -> Permuted:
        return Permuted(tuple((2.3 - gain + 0.2 * torch.randn(80, generator=g)).tolist()), 2.3)

    assert not any(run(0.0).leaks for _ in range(2000))
    assert all(run(0.5).leaks for _ in range(200))


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(3), pytest.param(range(3, 8), marks=pytest.mark.exhaustive)]
)
def test_no_false_alarm_over_initialisations(tools, seeds):
    for seed in seeds:
        data = tools.Data(rows=800)
        result = tools.ask(TargetLeak, images(tools, data), seed=seed)
        assert result.status is Status.PASS, (seed, result.message)


def test_columns_with_the_order_of_a_quantity() -> None:
    noise = torch.randn(200, 3)
    y = torch.rand(200) + 0.1
    for made in (y.log(), -y.square(), y.double().exp().float()):
        found = column_of([torch.cat([noise, made[:, None]], 1)], y)
        assert found is not None
        assert (found.element, found.certain) == (3, False)
    linear = column_of([torch.cat([noise, 2 * y[:, None]], 1)], y)
    assert linear is not None
    assert linear.certain
    near = y.log()
    near[7] = near[11]  # one exception
    for made in (near, (y > 0.5).float(), torch.ones(200)):
        assert column_of([torch.cat([noise, made[:, None]], 1)], y) is None
    assert column_of([y.log()[:, None]], y) is None  # the only column
