import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.subset_choice import capture, choose
from nnaudit.probes.subsets import TinyFitting
from nnaudit.targets import batch as batches
from nnaudit.targets.target import Target

X = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (256,), generator=torch.Generator().manual_seed(1))


def loop_of(x, y, batch_size=64, **parts):
    target = Target(
        **{
            "model": lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
            "train_loader": lambda: DataLoader(TensorDataset(x, y), batch_size),
            "loss": F.cross_entropy,
            "optimizer": lambda m: torch.optim.Adam(m.parameters(), 1e-2),
        }
        | parts
    )
    return DirectLoop(target, torch.device("cpu"), seed=0)


def test_classes_take_turns():
    rare = torch.zeros(64, dtype=torch.long)
    rare[60:] = torch.tensor([1, 1, 2, 2])
    loop = loop_of(X[:64], rare)
    chosen = choose(loop, capture(loop, 2))
    assert len(chosen.parts) == 1
    assert set(chosen.parts[0][1].tolist()) == {0, 1, 2}


def test_sorted_batches_are_mixed():
    loop = loop_of(X, Y.sort().values)
    chosen = choose(loop, capture(loop, 64))
    assert len({int(y) for part in chosen.parts for y in part[1]}) > 1


@pytest.mark.parametrize("rows", [16, 20, 64, 256])
def test_a_second_subset_has_other_rows(rows):
    loop = loop_of(X[:rows], Y[:rows])
    captured = capture(loop, 16)
    one, other = (choose(loop, captured, second=second) for second in (False, True))
    digests = [
        [d for part in subset.parts for d in batches.row_digests(part[0])]
        for subset in (one, other)
    ]
    assert digests[0] != digests[1]
    if rows >= 64:
        assert not set(digests[0]) & set(digests[1])


def test_small_batches_are_taken_whole():
    loop = loop_of(X, Y, batch_size=2)
    chosen = choose(loop, capture(loop, 16))
    assert chosen.whole
    assert sum(batches.size(part) for part in chosen.parts) == 8


def test_a_program_that_refuses_a_few_rows_gets_whole_batches():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.state, self.head = torch.zeros(64, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x + self.state)

    tiny = Audit(loop_of(X, Y, model=Fixed)).probe(TinyFitting)
    assert tiny.whole
    assert tiny.evaluation.rows == 64


def test_fresh_targets_are_noticed():
    def step(model, batch):
        return F.mse_loss(model(batch[0]), torch.randn(len(batch[0]), 3))

    tiny = Audit(loop_of(X, Y, training_step=step)).probe(TinyFitting)
    assert tiny.fresh_targets
    assert not tiny.shuffled_targets
    assert not tiny.known


def test_one_fit_is_enough():
    tiny = Audit(loop_of(X, Y)).probe(TinyFitting)
    assert list(tiny.runs) == [1.0]
    assert tiny.best.fitted
