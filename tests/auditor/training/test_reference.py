import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Clock
from nnaudit.loop.direct import DirectLoop
from nnaudit.targets.target import Target
from nnaudit.training.fitting import Limits, evaluate_rows
from nnaudit.training.reference import fit_reference


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ints(high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def tokens_loss(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, ids):
        return self.head(self.embed(ids))


class Pooled(Tagger):
    def forward(self, ids):
        return super().forward(ids).mean(1)


PROGRAMS = {
    "vectors": (nn.Linear(6, 3), rand(16, 6), ints(3, 16), F.cross_entropy, "perceptron"),
    "raw quantities": (
        nn.Linear(6, 1),
        rand(16, 6),
        500 + 90 * rand(16, 1),
        F.huber_loss,
        "percep",
    ),
    "images": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        rand(16, 1, 8, 8),
        ints(3, 16),
        F.cross_entropy,
        "small convolutional",
    ),
    "pixels": (
        nn.Conv2d(1, 2, 1),
        rand(8, 1, 8, 8),
        (rand(8, 1, 8, 8)[:, 0] > 0).long(),
        F.cross_entropy,
        "fully convolutional",
    ),
    "series": (
        nn.Sequential(nn.Flatten(), nn.Linear(60, 2)),
        rand(16, 3, 20),
        ints(2, 16),
        F.cross_entropy,
        "one-dimensional",
    ),
    "token by token": (Tagger(), ints(9, 8, 6), ints(9, 8, 6), tokens_loss, "recurrent"),
    "token pooled": (Pooled(), ints(9, 16, 6), ints(9, 16), F.cross_entropy, "recurrent"),
    "log-probabilities": (
        nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)),
        rand(16, 6),
        ints(3, 16),
        F.nll_loss,
        "perceptron",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_right_kind_fits_a_few_rows(name):
    model, x, y, loss, kind = PROGRAMS[name]
    target = Target(
        lambda: model, lambda: DataLoader(TensorDataset(x, y), batch_size=16), loss=loss
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    seen = evaluate_rows(loop, [next(loop.batches())])
    found = fit_reference(seen, limits=Limits(300, 300, 20.0), clock=Clock())
    assert found is not None
    assert kind in found[0]
    assert found[1].fitted


def test_a_linear_reference_cannot_solve_xor():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(4, 1)
    y = torch.tensor([0, 1, 1, 0]).repeat(4)
    target = Target(
        lambda: nn.Linear(2, 2),
        lambda: DataLoader(TensorDataset(x, y), batch_size=16),
        loss=F.cross_entropy,
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    seen = evaluate_rows(loop, [next(loop.batches())])
    limits = Limits(200, 200, 10.0)
    linear = fit_reference(seen, limits=limits, clock=Clock(), linear=True)
    curved = fit_reference(seen, limits=limits, clock=Clock())
    assert linear is not None
    assert curved is not None
    assert not linear[1].fitted
    assert curved[1].fitted
