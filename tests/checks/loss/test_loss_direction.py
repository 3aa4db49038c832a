from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.checks.data.class_balance import ClassBalance
from nnaudit.checks.loss.loss_direction import LossDirection
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
CLASSES = X[:, :3].argmax(1)
SIGNS = (X[:, :1] > 0).float()
QUANTITY = 30 + 5 * X[:, :1]


def audited(
    loss: Callable[..., Tensor], y: Tensor = CLASSES, last: nn.Module | None = None, **parts: Any
) -> Result:
    width = 3 if y.ndim == 1 else y.shape[1]

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), last or nn.Identity())

    data = DataLoader(TensorDataset(X, y), batch_size=32)
    target = Target(model, data, loss=loss, **parts)
    return run_check(LossDirection, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


MASK = (torch.randn(64, 20, generator=torch.Generator().manual_seed(1)) > 0).float()


def picked(output: Tensor, y: Tensor) -> Tensor:
    return output[torch.arange(len(y)), y]


def dice(output: Tensor, y: Tensor) -> Tensor:
    return (2 * (output * y).sum() + 1) / (output.sum() + y.sum() + 1)


FAULTS: list[tuple[Any, ...]] = [
    (lambda o, y: -F.cross_entropy(o, y),),
    (lambda o, y: F.nll_loss(-F.log_softmax(o, 1), y),),
    (lambda o, y: picked(o.log_softmax(1), y).mean(),),
    (lambda o, y: (picked(o.softmax(1), y) + 1e-8).log().mean(),),
    (lambda o, y: picked(o, y).mean(), CLASSES, nn.Softmax(1)),
    (lambda o, y: picked(o.log(), y).mean(), CLASSES, nn.Softmax(1)),
    (lambda o, y: ((2 * y - 1) * o).sigmoid().log().mean(), SIGNS),
    (lambda o, y: -((o - y) ** 2).mean(), QUANTITY),
    (lambda o, y: -F.l1_loss(o, y), QUANTITY),
    (dice, MASK, nn.Sigmoid()),
    (lambda o, y: dice(o.sigmoid(), y), MASK),
    (lambda o, y: (o.sigmoid() - y).abs().mean().neg(), MASK),
    (lambda o, y: (y * o.log() + (1 - y) * (1 - o).log()).mean(), SIGNS, nn.Sigmoid()),
    (lambda o, y: (y * o.log() + (1 - y) * (1 - o).log()).mean(), MASK, nn.Sigmoid()),
    (lambda o, y: F.binary_cross_entropy(y, o), SIGNS, nn.Sigmoid()),
    (lambda o, y: F.binary_cross_entropy_with_logits(y, o), SIGNS),
    (lambda o, y: F.poisson_nll_loss(y, o), QUANTITY),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "")
def test_a_loss_that_turns_the_output_away(fault: tuple[Any, ...]) -> None:
    result = audited(*fault)
    assert result.status is Status.FAIL
    assert result.fix


HEALTHY: list[tuple[Any, ...]] = [
    (F.cross_entropy,),
    (lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1),),
    (lambda o, y: F.cross_entropy(o, y) + 0.01 * o.square().mean(),),
    (lambda o, y: -picked(o.log_softmax(1), y).mean(),),
    (lambda o, y: -picked(o.log(), y).mean(), CLASSES, nn.Softmax(1)),
    (lambda o, y: -picked(o, y).mean(), CLASSES, nn.LogSoftmax(1)),
    (F.binary_cross_entropy, SIGNS, nn.Sigmoid()),
    (lambda o, y: -(y * o.log() + (1 - y) * (1 - o).log()).mean(), SIGNS, nn.Sigmoid()),
    (lambda o, y: F.relu(1 - (2 * y - 1) * o).mean(), SIGNS),
    (lambda o, y: 1 - dice(o, y), SIGNS, nn.Sigmoid()),
    (lambda o, y: 1 - dice(o.sigmoid(), y), MASK),
    (lambda o, y: ((o - y) ** 2).mean(), MASK),
    (lambda o, y: ((o - y) ** 2).mean(), QUANTITY),
    (lambda o, y: (o - y).abs().clamp(max=100).mean(), QUANTITY),
    (lambda o, y: torch.maximum(0.9 * (y - o), -0.1 * (y - o)).mean(), QUANTITY),
    (lambda o, y: 0.25 * F.mse_loss(o, y), QUANTITY),
]


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: "")
def test_a_loss_that_falls(healthy: tuple[Any, ...]) -> None:
    assert audited(*healthy).status is Status.PASS


UNCLEAR: list[tuple[Any, ...]] = [
    (lambda o, y: ((o - (y - 30) / 5) ** 2).mean(), QUANTITY),
    (lambda o, y: ((o + y) ** 2).mean(), QUANTITY),
    (lambda o, y: -picked(o.log_softmax(1), (y + 1) % 3).mean(),),
    (lambda o, y: (picked(o.log_softmax(1), y) * torch.linspace(-1, 1, len(y))).mean(),),
    (lambda o, y: o.square().mean(),),
    # Distances and energies: the least is best.
    (lambda o, y: -picked((-o).log_softmax(1), y).mean(),),
    (lambda o, y: F.cross_entropy(-o, y),),
    (lambda o, y: -(picked((-o).softmax(1), y) + 1e-8).log().mean(),),
    (lambda o, y: 1 - picked((-o).softmax(1), y).mean(),),
    (lambda o, y: dice((-o).sigmoid(), 1 - y), SIGNS),
    (lambda o, y: (y * o**2 + (1 - y) * F.relu(1 - o) ** 2).mean(), SIGNS, nn.Sigmoid()),
]


@pytest.mark.parametrize("unclear", UNCLEAR, ids=lambda unclear: "")
def test_no_answer_where_better_is_not_known(unclear: tuple[Any, ...]) -> None:
    assert audited(*unclear).status is not Status.FAIL


OPPOSED: list[tuple[Any, ...]] = [
    (lambda o, y: F.binary_cross_entropy_with_logits(o, y) + dice(o.sigmoid(), y), MASK),
    (lambda o, y: F.cross_entropy(o, y) + 0.5 * picked(o.log_softmax(1), y).mean(),),
]


def pinball(output: Tensor, y: Tensor, *, wrong: bool) -> Tensor:
    """The loss of three quantiles; one side of it has the wrong sign."""
    q, error = torch.tensor([0.1, 0.5, 0.9]), y[:, None] - output
    below = (1 - q) if wrong else (q - 1)
    return torch.where(error > 0, q * error, below * error).sum(1).mean()


ROWS = 2.0 * X[:, 0] + X[:, 1]


def test_a_loss_without_a_lower_bound_fails() -> None:
    result = audited(lambda o, y: pinball(o, y, wrong=True), ROWS)
    assert result.status is Status.FAIL
    assert "no lower bound" in result.message


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        (lambda o, y: pinball(o, y, wrong=False), None),
        (lambda o, y: (o[:, 0].exp() - y.abs() * o[:, 0]).mean(), None),  # Poisson
        (lambda o, y: -(o[:, 0] * y).mean(), nn.Tanh()),  # a return on what is bought
        (lambda o, y: -(o[:, 0] * y).mean(), None),  # rows of either sign
        (lambda o, y: o.mean() + 0 * y.mean(), None),  # a critic
    ],
)
def test_losses_that_only_seem_to_fall_for_ever(loss: Any, last: nn.Module | None) -> None:
    assert audited(loss, ROWS, last).status is not Status.FAIL


class Several(nn.Module):
    """Returns what it makes of its inputs, and two numbers more for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.encoder(x).chunk(2, 1)
        return self.decoder(first), first, second


def autoencoding(made: tuple[Tensor, Tensor, Tensor], x: Tensor, sign: float) -> Tensor:
    recon, mu, logvar = made
    divergence = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
    return F.mse_loss(recon, x) + sign * 0.1 * divergence


def beside(loss: Callable[..., Tensor]) -> Result:
    data = DataLoader(TensorDataset(X, X), batch_size=32)
    target = Target(Several, data, loss=loss)
    return run_check(LossDirection, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_a_divergence_with_the_wrong_sign_fails() -> None:
    result = beside(lambda made, x: autoencoding(made, x, sign=-1.0))
    assert result.status is Status.FAIL, result.message
    assert "output[1]" in result.message and "no lower bound" in result.message


@pytest.mark.parametrize(
    "loss",
    [
        lambda made, x: autoencoding(made, x, sign=1.0),
        # A flow: the logarithm of a determinant may grow for ever.
        lambda made, x: (0.5 * made[0] ** 2).mean() - made[1].mean() + 0 * x.mean(),
        # A critic's value, and an advantage that goes on to it.
        lambda made, x: (
            ((made[1] - x[:, :3]) ** 2).mean()
            - (made[0].log_softmax(1)[:, 0] * (x[:, 0] - made[1][:, 0])).mean()
        ),
        # A variance that is learnt.
        lambda made, x: (0.5 * (made[1] - x[:, :3]) ** 2 * (-made[2]).exp() + made[2] / 2).mean(),
        # Outputs that are to differ from one another.
        lambda made, x: F.mse_loss(made[0], x) - 0.1 * made[1].var(0).mean(),
    ],
)
def test_other_outputs_that_may_grow_pass(loss: Any) -> None:
    assert beside(loss).status is not Status.FAIL


def test_a_network_that_returns_its_loss_beside_rows_is_not_judged() -> None:
    class Own(Several):
        def forward(self, x: Tensor) -> Any:
            made = super().forward(x)
            return {"total": F.mse_loss(made[0], x), "code": made[1]}

    def step(model: nn.Module, batch: Any) -> Tensor:
        total: Tensor = model(batch[0])["total"]
        return total + 0.1 * batch[1].mean()

    data = DataLoader(TensorDataset(X, X), batch_size=32)
    loop = DirectLoop(Target(Own, data, training_step=step), torch.device("cpu"), seed=0)
    assert run_check(LossDirection, Audit(loop)).status is Status.INCONCLUSIVE


@pytest.mark.parametrize("fault", OPPOSED, ids=lambda fault: "")
def test_one_term_with_the_wrong_sign_fails(fault: tuple[Any, ...]) -> None:
    result = audited(*fault)
    assert result.status is Status.FAIL, result.message
    assert "One term" in result.message


def focal(o: Tensor, y: Tensor, inverted: bool = False, detached: bool = False) -> Tensor:
    log_p = picked(o.log_softmax(1), y)
    p = log_p.exp().detach() if detached else log_p.exp()
    return -((p if inverted else 1 - p) ** 2 * log_p).mean()


def test_a_focal_loss_with_its_exponent_on_the_easy_rows_fails() -> None:
    result = audited(lambda o, y: focal(o, y, inverted=True))
    assert result.status is Status.FAIL, result.message
    assert "further away" in result.message


def test_a_focal_loss_and_easy_rows_first_do_not_fail() -> None:
    assert audited(focal).status is Status.PASS
    easy_first = audited(lambda o, y: focal(o, y, inverted=True, detached=True))
    assert easy_first.status is not Status.FAIL


UNITED: list[tuple[Any, ...]] = [
    (lambda o, y: F.binary_cross_entropy_with_logits(o, y) + 1 - dice(o.sigmoid(), y), MASK),
    # A penalty on confident outputs pushes them back, whatever the target.
    (lambda o, y: F.cross_entropy(o, y) + (o.softmax(1) * o.log_softmax(1)).sum(1).mean(),),
    (lambda o, y: F.mse_loss(o, y) + 0.1 * o.square().mean(), QUANTITY),
]


@pytest.mark.parametrize("healthy", UNITED, ids=lambda healthy: "")
def test_terms_that_pull_together_or_do_not_ask_for_the_target(healthy: tuple[Any, ...]) -> None:
    assert audited(*healthy).status is Status.PASS


def climbing(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)


def test_an_optimizer_that_climbs_a_loss_fails() -> None:
    result = audited(F.cross_entropy, optimizer=climbing)
    assert result.status is Status.FAIL
    assert "maximize=True" in result.message


def test_an_optimizer_that_climbs_a_likelihood_passes() -> None:
    result = audited(lambda o, y: picked(o.log_softmax(1), y).mean(), optimizer=climbing)
    assert result.status is Status.PASS


def test_a_reversed_divergence_is_legitimate() -> None:
    teacher = torch.randn(64, 3).softmax(1)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(y.log(), output.softmax(1), reduction="batchmean")

    data = DataLoader(TensorDataset(X, teacher), batch_size=32)
    target = Target(lambda: nn.Linear(6, 3), data, loss=loss)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    assert run_check(LossDirection, Audit(loop)).status is not Status.FAIL


def test_a_hand_written_step() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return picked(model(x).log_softmax(1), y).mean()

    assert audited(F.cross_entropy, training_step=step).status is Status.FAIL


def one_number_a_row(data: TensorDataset) -> Target:
    """A batch of one row, for which the network gives a number without a dimension."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0][0]).squeeze(), batch[1][0])

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).squeeze()

    return Target(Single, lambda: DataLoader(data, batch_size=1), training_step=step)


@pytest.mark.parametrize("check", [LossDirection, ClassBalance])
def test_numbers_without_a_dimension_are_no_crash(check: type[Check]) -> None:
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(64, 6, generator=g), (torch.arange(64) % 2).float())
    audit = Audit(DirectLoop(one_number_a_row(data), torch.device("cpu"), seed=0))
    assert run_check(check, audit).status is not Status.ERROR


def likelihood(mean: Tensor, log_variance: Tensor, y: Tensor) -> Tensor:
    return -0.5 * (log_variance + (y - mean) ** 2 / log_variance.exp()).mean()


def two_classes(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o, (y[:, 0] > 0).long())


@pytest.mark.parametrize(
    ("loss", "fails"),
    [
        (lambda o, y: likelihood(o[:, :1], o[:, 1:], y), True),
        (lambda o, y: -likelihood(o[:, :1], o[:, 1:], y), False),
        (lambda o, y: -likelihood(o[:, 1:], o[:, :1], y), False),
        (two_classes, False),
    ],
)
def test_a_mean_beside_its_variance(loss: Callable[..., Tensor], fails: bool) -> None:
    result = audited(loss, X[:, :1], nn.Linear(1, 2))
    assert (result.status is Status.FAIL) is fails, result.message
