import torch
import torch.nn.functional as F

from nnaudit.checks.fit.predictions import score_of
from nnaudit.loop.losses import LossCall


def call(kind, given, wanted):
    return LossCall(kind, F.cross_entropy, {"input": given, "target": wanted}, None)


def guesses(generator, skill, rows=500, classes=10):
    wanted = torch.randint(classes, (rows,), generator=generator)
    given = torch.randn(rows, classes, generator=generator)
    known = torch.rand(rows, generator=generator) < skill
    given[known] += 100 * F.one_hot(wanted[known], classes)
    return score_of([call("cross_entropy", given, wanted)])


def test_null_rejection_rate_and_power_for_classes():
    g = torch.Generator().manual_seed(0)
    null = [guesses(g, 0.0) for _ in range(300)]
    assert sum(told.z > 4 for told in null) == 0
    # A network of which 15 % is known is taken for one that knows nothing in 1 of 10,000 cases.
    real = [guesses(g, 0.15) for _ in range(300)]
    assert sum(told.upper < 0.15 for told in real) <= 1
    assert sum(told.upper < 0.15 and told.z < 2 for told in null) > 285
    assert all(told.z > 4 for told in (guesses(g, 0.3) for _ in range(30)))


def test_null_rejection_rate_and_power_for_quantities():
    g = torch.Generator().manual_seed(0)

    def told(strength: float):
        wanted = torch.randn(400, 1, generator=g)
        given = strength * wanted + torch.randn(400, 1, generator=g)
        return score_of([call("mse", given.exp(), wanted)])  # ranks, so any scale will do

    assert sum(told(0.0).z > 4 for _ in range(300)) <= 1
    assert sum(told(0.3).z > 4 for _ in range(100)) > 90


def test_the_most_frequent_class_is_told_by_chance():
    wanted = (torch.arange(300) % 10 == 0).long()
    always = torch.tensor([1.0, 0.0]).repeat(300, 1)
    told = score_of([call("cross_entropy", always, wanted)])
    assert told.right == 0.9
    assert abs(told.share) < 1e-6
    assert abs(told.z) < 1e-3


def test_rows_with_many_targets_count_once():
    wanted = torch.randint(5, (20, 50))
    given = F.one_hot(wanted, 5).float().movedim(-1, 1)
    told = score_of([call("cross_entropy", given, wanted)])
    assert told.rows == 20
    assert told.share == 1.0
    assert told.classes == 5


def test_many_outputs_are_centred_one_by_one():
    level = 10 * torch.randn(1, 6)
    told = score_of([call("mse", level + torch.randn(200, 6), level + torch.randn(200, 6))])
    assert abs(told.share) < 0.3


def test_what_cannot_be_compared_is_none():
    assert score_of([]) is None
    assert score_of([call("mse", torch.randn(20, 3), torch.randn(20, 2))]) is None
    two = [
        call("mse", torch.randn(9, 3), torch.randn(9, 3)),
        call("l1", torch.ones(9), torch.ones(9)),
    ]
    assert score_of(two) is None
