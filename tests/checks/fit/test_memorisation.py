import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.fit.memorisation import Memorisation, boundary_of
from nnaudit.probes.training_run import Training
from nnaudit.report import Status
from nnaudit.targets.target import Target


class Lookup(nn.Module):
    """A vector per user: what was seen of a user is kept."""

    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(800, 16)

    def forward(self, ids):
        return self.users(ids).sum(1)


def ratings(rows=800):
    g = torch.Generator().manual_seed(0)
    return torch.arange(rows), torch.randn(rows, generator=g)


def by_heart(tools, **parts):
    usual = {
        "model": Lookup,
        "train_loader": tools.loader(*ratings(), batch_size=8),
        "loss": F.mse_loss,
        "optimizer": tools.sgd(0.2),
    }
    return Target(**usual | parts)


def made_of(losses, end) -> Training:
    n = len(losses)
    return Training(tuple(losses), (0.1,) * n, (0, end), (1,) * n, {}, 0.0, (), (), False, ())


def test_a_table_of_users_is_learnt_by_heart(tools):
    result = tools.ask(Memorisation, by_heart(tools))
    assert result.status is Status.WARN, result.message
    assert "weight decay" in result.fix


def test_a_program_that_generalises_passes(tools, data):
    target = Target(
        tools.perceptron(64, 32, 10), tools.loader(data.x, data.y, batch_size=16),
        loss=F.cross_entropy, optimizer=tools.adam(3e-3),
    )  # fmt: skip
    assert tools.ask(Memorisation, target).status is Status.PASS


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_falls_fast_anyway_is_not_memory(tools, data, seed):
    target = Target(
        tools.perceptron(64, 10), tools.loader(data.x, data.y, batch_size=32),
        loss=F.cross_entropy, optimizer=tools.sgd(0.1),
    )  # fmt: skip
    result = tools.ask(Memorisation, target, seed=seed)
    assert result.status in (Status.PASS, Status.NOTE), result.message


def test_a_fixed_order_says_nothing(tools):
    fixed = lambda: DataLoader(TensorDataset(*ratings()), batch_size=8)  # noqa: E731
    result = tools.ask(Memorisation, by_heart(tools, train_loader=fixed))
    assert result.status is Status.INCONCLUSIVE
    assert "same batch" in result.message


def test_short_and_long_epochs_say_nothing(tools):
    short = by_heart(tools, train_loader=tools.loader(*ratings(80), batch_size=8))
    assert "An epoch has 10 batches" in tools.ask(Memorisation, short).message
    long = by_heart(tools, train_loader=tools.loader(*ratings(800), batch_size=1))
    assert "did not end" in tools.ask(Memorisation, long).message


def test_null_rejection_rate_and_power():
    rng = np.random.default_rng(0)

    def judged(drop: float) -> bool:
        losses = 1.0 - 0.002 * np.arange(80) + rng.gamma(4, 0.05, 80)
        losses[40:] -= drop
        found = boundary_of(made_of(losses.tolist(), 40), rng)
        return found is not None and found.p < 1e-3 and found.share > 0.05

    assert sum(judged(0.0) for _ in range(30)) <= 1
    assert sum(judged(0.4) for _ in range(10)) >= 9
