import math

import pytest
import torch
import torch.nn.functional as F
from programs import blobs, mlp, target
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.replicate import replicated
from nnaudit.probes import training_run as probe
from nnaudit.probes.training_run import TrainingRun, squeezed, training_run

CE = F.cross_entropy


def run(**parts):
    loop = DirectLoop(target(**parts), torch.device("cpu"), seed=0)
    return Audit(loop, seed=0).probe(TrainingRun)


def test_a_healthy_run_is_recorded_from_end_to_end():
    seen = run(val_loader=blobs)
    assert len(seen.losses) == len(seen.rates) == len(seen.rows) == 300
    assert seen.epoch_starts[:3] == (0, 8, 16)
    assert len(seen.first_epoch) == 8
    assert [moment.step for moment in seen.moments] == [0, 10, 30, 100, 300]
    assert seen.moments[-1].fixed.loss < 0.5 * seen.moments[0].fixed.loss
    assert seen.moments[-1].val.loss < 0.5 * seen.moments[0].val.loss
    assert seen.val_whole
    assert seen.moments[-1].val.calls[0].input.shape == (32, 3)
    assert seen.moments[-1].fixed.outputs.shape == (32, 3)
    assert sum(seen.last()) / len(seen.last()) < 0.5 < seen.constant
    assert not (seen.cut or seen.warmed or seen.error)
    assert seen.broke is None
    assert set(seen.rates) == {0.1}


def test_a_loss_of_two_inputs_is_not_taken_for_a_comparison():
    def ranked(model, batch):
        score = model(batch[0])[:, 0]
        return F.margin_ranking_loss(score, score.roll(1), torch.ones(len(score)), margin=1.0)

    seen = run(training_step=ranked)
    assert len(seen.losses) == 300
    assert seen.calls == {}


def test_the_best_constant_is_the_entropy_of_the_classes():
    loop = DirectLoop(target(), torch.device("cpu"), seed=0)
    labels = torch.cat([batch[1] for batch in loop.batches()])
    share = torch.bincount(labels) / len(labels)
    entropy = float(-(share * share.log()).sum())
    assert math.isclose(Audit(loop).probe(TrainingRun).constant, entropy, abs_tol=0.01)


def test_what_is_unknown_is_not_guessed():
    composite = run(loss=lambda output, y: CE(output, y) + output.pow(2).mean())
    assert math.isnan(composite.constant)
    assert not composite.calls
    assert not composite.val
    assert math.isnan(composite.moments[0].val.loss)


def test_a_formula_written_by_hand_is_recognised():
    seen = run(loss=lambda output, y: -output.log_softmax(1)[torch.arange(len(y)), y].mean())
    assert 0.9 < seen.constant < 1.1


def test_everything_is_as_it_was():
    loop = DirectLoop(target(), torch.device("cpu"), seed=0)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    Audit(loop).probe(TrainingRun)
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_looking_at_the_network_does_not_change_the_run(monkeypatch):
    looked = run().losses
    monkeypatch.setattr(probe, "MOMENTS", (0,))
    assert run().losses == looked


def test_a_run_that_breaks_says_where():
    seen = run(optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e20))
    assert seen.broke is not None
    assert 0 < seen.broke <= 10
    assert len(seen.losses) <= seen.broke + 5


def test_one_step_without_a_number_is_no_end():
    calls = []

    def loss(output, y):
        calls.append(1)
        value = CE(output, y)
        return value * float("nan") if len(calls) == 40 else value

    class Skipping(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            if all(torch.isfinite(grad).all() for grad in grads):
                super().step()

    seen = run(loss=loss, optimizer=lambda m: Skipping(m.parameters(), 0.1))
    assert seen.broke is None
    assert len(seen.losses) == 300


def test_users_code_that_raises_in_the_middle_ends_the_run():
    class Refusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = mlp(), 0

        def forward(self, x):
            self.calls += self.training
            if self.calls > 20:
                raise ValueError("no more")
            return self.body(x)

    seen = run(model=Refusing)
    assert "no more" in seen.error
    assert seen.broke == len(seen.losses) - 1 == 20


def test_the_first_step_must_work():
    with pytest.raises(UserCodeError):
        run(loss=lambda output, y: CE(output, y.float()))
    with pytest.raises(TargetError):
        run(train_loader=lambda: DataLoader(TensorDataset(torch.zeros(3, 8)), 8, drop_last=True))


def test_an_epoch_that_nearly_fits_is_followed_into_the_next():
    x = torch.randn(320, 8)
    long = lambda: DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=1)  # noqa: E731
    seen = run(train_loader=long)
    assert seen.epoch_starts == (0, 320)
    assert len(seen.losses) == 370


def test_a_planned_warm_up_is_squeezed_into_the_run():
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1000)

    seen = run(scheduler=warm_up)
    assert seen.warmed
    assert seen.rates[0] < 0.01
    assert max(seen.rates) == 0.1
    assert seen.rates[-1] < 0.03
    assert squeezed(0.5) == 1.0


def test_slow_steps_are_cut(monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    seen = run()
    assert seen.cut
    assert len(seen.losses) == 1
    assert [moment.step for moment in seen.moments] == [0, 1]


def test_a_shorter_run_of_another_seed():
    loop = DirectLoop(target(), torch.device("cpu"), seed=0)
    audit = Audit(loop)
    one = training_run(audit, steps=12, val=False)
    with replicated(audit) as other:
        two = training_run(other, steps=12, val=False)
    assert [len(seen.losses) for seen in (one, two)] == [12, 12]
    assert one.losses != two.losses


def test_no_constant_is_known_where_the_program_fills_in_the_targets():
    """A generator is to make the discriminator say 1, whatever it is given."""
    bce = F.binary_cross_entropy_with_logits
    fooled = lambda model, batch: bce(model(batch[0])[:, 0], torch.ones(len(batch[0])))  # noqa: E731
    seen = run(training_step=fooled)
    assert seen.calls == {}
    assert math.isnan(seen.constant)


def test_one_label_for_all_rows_is_a_label_where_the_loader_gives_it():
    one = lambda: DataLoader(TensorDataset(torch.randn(64, 8), torch.ones(64).long()), 32)  # noqa: E731
    seen = run(train_loader=one)
    assert seen.calls
    assert seen.constant < 1e-3


def mixed(model, batch):
    """One share for the whole batch, as in mixup: its loss is a matter of luck."""
    x, y = batch
    share, order = torch.rand(()), torch.randperm(len(x))
    output = model(share * x + (1 - share) * x[order])
    return share * CE(output, y) + (1 - share) * CE(output, y[order])


def test_a_loss_that_draws_numbers_is_compared_under_the_same_draws():
    seen = run(val_loader=lambda: DataLoader(blobs().dataset, batch_size=32), training_step=mixed)
    at_first = seen.moments[0]
    assert at_first.fixed.loss == pytest.approx(at_first.val.loss, rel=0.1)
    spread = [
        abs(a - b) for a, b in zip(at_first.val.losses, at_first.val.losses[1:], strict=False)
    ]
    assert max(spread) < 0.1
