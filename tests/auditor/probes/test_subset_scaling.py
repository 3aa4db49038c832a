import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.subset_scaling import SubsetScaling, plan_for
from nnaudit.probes.subsets import TinyFit
from nnaudit.targets.target import Target
from nnaudit.training.fitting import RowEvaluation, Run

X = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def scaling_of(rows, batch_size=64):
    target = Target(
        lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)),
        lambda: DataLoader(TensorDataset(X[:rows], Y[:rows]), batch_size, shuffle=True),
        loss=F.cross_entropy,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-2),
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    return Audit(loop).probe(SubsetScaling), loop


def test_subsets_grow_as_far_as_the_data_go():
    scaling, _ = scaling_of(600)
    assert [fit.rows for fit in scaling.subset_fits] == [16, 64, 256, 576]


def test_subsets_begin_at_the_same_weights():
    scaling, loop = scaling_of(600)
    first = [fit.evaluation.loss for fit in scaling.subset_fits]
    with torch.no_grad():
        now = [
            float(torch.stack([
                F.cross_entropy(loop.model(part[0]), part[1]) for part in fit.evaluation.parts
            ]).mean())
            for fit in scaling.subset_fits
        ]  # fmt: skip
    torch.testing.assert_close(torch.tensor(now), torch.tensor(first), rtol=1e-4, atol=1e-5)


def test_rows_in_the_order_of_their_labels_leave_nothing_to_fit():
    order = Y.argsort()
    target = Target(
        lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)),
        lambda: DataLoader(TensorDataset(X[order], Y[order]), 64),
        loss=F.cross_entropy,
    )
    scaling = Audit(DirectLoop(target, torch.device("cpu"), seed=0)).probe(SubsetScaling)
    assert not scaling.subset_fits
    assert "the same target" in scaling.reason


def test_held_out_rows_are_in_no_subset():
    scaling, _ = scaling_of(600, batch_size=8)
    taken = {tuple(row) for fit in scaling.subset_fits for part in fit.evaluation.parts
             for row in part[0].tolist()}  # fmt: skip
    held_out = {tuple(row) for part in scaling.held_out for row in part[0].tolist()}
    assert not taken & held_out


def tiny_with(seconds_per_step):
    evaluation = RowEvaluation((), (), (), None, (16,), 1.0, None)
    run = Run("", (1.0, 0.0), 50, 50 * seconds_per_step, fitted=True)
    return TinyFit(evaluation, False, {1.0: run})


def test_slow_steps_make_a_shorter_ladder():
    fast, slow = (plan_for(tiny_with(s), 15.0) for s in (0.001, 0.1))
    assert len(fast.sizes) == 4
    assert fast.steps == 200
    assert len(slow.sizes) < 4
    assert slow.steps * len(slow.sizes) * 0.1 <= 15
    assert plan_for(tiny_with(5.0), 15.0).sizes == ()
