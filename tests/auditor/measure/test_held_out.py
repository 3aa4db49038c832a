import torch
from programs import target

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.held_out import held_out_run
from nnaudit.measure.replicate import replicated


def audit(**parts):
    return Audit(DirectLoop(target(**parts), torch.device("cpu"), seed=0), seed=0)


def test_rows_are_trained_on_or_held_out_and_the_state_is_put_back():
    asked = audit()
    before = {name: value.clone() for name, value in asked.loop.model.state_dict().items()}
    run = held_out_run(asked, steps=60)
    assert len(run.trained) == 5
    assert len(run.unseen) == 3
    assert len(run.losses) == 60
    assert run.on_trained.loss < 0.7 * run.losses[0]
    assert run.on_unseen.calls[0].input.shape == (32, 3)
    after = asked.loop.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_too_few_batches_give_nothing():
    asked = audit(train_loader=lambda: [(torch.randn(8, 8), torch.arange(8) % 3)] * 3)
    assert held_out_run(asked) is None


def test_anew_has_other_weights_and_the_next_seed():
    asked = audit()
    with replicated(asked) as other:
        assert other.seed == 1
        assert not torch.equal(asked.loop.model[0].weight, other.loop.model[0].weight)


def test_anew_keeps_a_model_that_cannot_be_built_again():
    asked = audit(model=torch.nn.Linear(8, 3))
    with replicated(asked) as other:
        assert other.loop is asked.loop
        first = torch.rand(3)
    with replicated(asked):
        assert torch.equal(torch.rand(3), first)
