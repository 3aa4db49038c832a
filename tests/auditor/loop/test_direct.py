"""The loop that nnaudit writes itself, for targets handed over in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programs import blobs, mlp, target
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.total_loss import call_of_total
from nnaudit.state.snapshot import preserved
from nnaudit.targets.target import Target

CPU = torch.device("cpu")


def loop_of(**parts: object) -> DirectLoop:
    return DirectLoop(target(**parts), CPU, seed=0)


def weights(loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in loop.model.parameters()])


def test_a_step_is_the_plain_loop_of_a_tutorial() -> None:
    loop = loop_of()
    batch = next(loop.batches())
    torch.manual_seed(0)
    loop.step(batch)
    after = weights(loop)

    reference = loop_of()
    batch = next(reference.batches())
    optimizer = torch.optim.SGD(reference.model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy(reference.model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    assert torch.equal(after, weights(reference))


def test_steps_are_counted_with_those_of_relaunched_runs() -> None:
    loop = loop_of()
    batch = next(loop.batches())
    loop.step(batch)
    with loop.relaunched(1) as other:
        other.step(batch)
    assert loop.steps_taken == 2


def test_an_observed_step_shows_loss_gradients_and_modes() -> None:
    loop = loop_of()
    step = loop.step(next(loop.batches()), observe=True)
    seen = step.observation
    assert seen is not None
    main = call_of_total(seen)
    assert main is not None
    assert main.kind == "cross_entropy"
    assert seen.total_loss == pytest.approx(step.loss)
    assert {g.parameter for g in seen.gradients} == {n for n, _ in loop.model.named_parameters()}
    assert all(g.norm and g.update_norm for g in seen.gradients)
    assert all(seen.training_flags.values())


def test_observing_changes_nothing() -> None:
    ends = []
    for observe in (False, True):
        loop = loop_of()
        batch = next(loop.batches())
        for _ in range(3):
            loop.step(batch, observe=observe)
        ends.append(weights(loop))
    assert torch.equal(*ends)


def test_forward_updates_nothing_and_puts_modes_back() -> None:
    loop = loop_of()
    loop.model[2].eval()
    modes, before = [m.training for m in loop.model.modules()], weights(loop)
    batch = next(loop.batches())
    first, second = loop.forward(batch), loop.forward(batch)
    assert first.loss == second.loss
    assert loop.forward(batch, train=True).loss != first.loss
    assert [m.training for m in loop.model.modules()] == modes
    assert torch.equal(before, weights(loop))


def test_relaunching_under_the_same_seed_is_the_same_run() -> None:
    loop = loop_of()
    runs = []
    for seed in (5, 5, 6):
        with loop.relaunched(seed) as run:
            batch = next(run.batches())
            runs.append((weights(run), batch[0], run.step(batch).loss))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_relaunching_leaves_the_random_state_alone() -> None:
    loop = loop_of()
    state = torch.get_rng_state()
    with loop.relaunched(9):
        torch.rand(3)
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_draws_from_the_generators_that_its_functions_name_as_the_first_did() -> None:
    own = torch.Generator().manual_seed(5)

    def noise() -> Tensor:
        return torch.randn(3, generator=own)

    def training_step(model: nn.Module, batch: Any) -> Tensor:
        drawn.append(noise())
        return model(batch[0]).square().mean()

    drawn: list[Tensor] = []
    loop = loop_of(training_step=training_step)
    state = own.get_state()
    with preserved(loop.subjects):
        loop.step(next(loop.batches()))
        for _ in range(2):
            with loop.relaunched(7) as again:
                again.step(next(again.batches()))
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(own.get_state(), state)


def test_a_width_argument_scales_the_model() -> None:
    def build(width: float = 1.0) -> nn.Module:
        return nn.Linear(8, int(3 * width))

    loop = loop_of(model=build)
    assert loop.lacks(Needs.WIDTH) == ""
    with loop.relaunched(0, width=2.0) as wide:
        assert wide.model.out_features == 6


def test_whole_numbers_of_units_stay_whole() -> None:
    def build(hidden: int = 10) -> nn.Module:
        return nn.Sequential(nn.Linear(8, hidden), nn.Linear(hidden, 3))

    with loop_of(model=build).relaunched(0, width=1.5) as wide:
        assert wide.model[0].out_features == 15


def test_what_is_missing_is_said() -> None:
    loop = DirectLoop(Target(model=mlp()), CPU, seed=0)
    for need in (Needs.TRAIN_LOADER, Needs.VAL_LOADER, Needs.STEPS, Needs.TARGETS, Needs.OPTIMIZER):
        assert "train" in loop.lacks(need) or "defined" in loop.lacks(need)
    assert "function" in loop.lacks(Needs.FRESH_RUN)
    assert loop_of().lacks(Needs.TARGETS) == ""
    inputs_only = DataLoader(TensorDataset(torch.randn(8, 8)), batch_size=4)
    alone = loop_of(model=lambda: nn.Linear(8, 8), train_loader=inputs_only, loss=nn.MSELoss())
    assert "inputs only" in alone.lacks(Needs.TARGETS)


def test_a_frozen_model_takes_no_steps() -> None:
    loop = loop_of(model=lambda: mlp().requires_grad_(False))
    assert "no trainable parameter" in loop.lacks(Needs.STEPS)


def test_a_training_step_of_the_users_own() -> None:
    def training_step(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return model(batch[0]).square().mean()

    loop = loop_of(training_step=training_step, loss=None)
    batch = next(loop.batches())
    losses = [loop.step(batch).loss for _ in range(20)]
    assert losses[-1] < losses[0]
    assert loop.forward(batch).loss is not None


def test_lbfgs_gets_its_closure() -> None:
    loop = loop_of(optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5))
    batch = next(loop.batches())
    assert loop.step(batch).loss > loop.step(batch).loss


def test_lazy_modules_are_given_their_shape_before_the_optimizer() -> None:
    loop = loop_of(model=lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3)))
    assert loop.step(next(loop.batches())).loss > 0


def test_a_loader_written_as_a_generator_function_has_many_epochs() -> None:
    def batches():
        yield from blobs()

    loop = loop_of(train_loader=batches)
    assert len(list(loop.batches())) == len(list(loop.batches())) == 8


def test_a_loader_class_is_made() -> None:
    class Loader:
        def __iter__(self):
            return iter(blobs())

    assert len(list(loop_of(train_loader=Loader).batches())) == 8


def test_a_generator_object_is_refused() -> None:
    with pytest.raises(TargetError, match="only once"):
        loop_of(train_loader=(batch for batch in blobs()))


def test_what_a_training_step_makes_of_a_batch_is_what_the_model_is_called_with() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0] * 2 - 1), batch[1])

    loop = loop_of(training_step=step)
    batch, before = next(loop.batches()), weights(loop)
    fed = loop.called_with(batch)
    assert torch.equal(fed.args[0], batch[0] * 2 - 1)
    assert torch.equal(fed.target, batch[1])
    assert torch.equal(before, weights(loop))
    assert not loop.model._forward_pre_hooks


def test_a_training_step_that_calls_only_parts_of_the_model_leaves_the_convention() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model[2](model[1](model[0](batch[0]))), batch[1])

    loop = loop_of(training_step=step)
    batch = next(loop.batches())
    assert loop.called_with(batch).args[0] is batch[0]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"model": lambda: 5}, "returned a int"),
        ({"train_loader": lambda: 5}, "cannot be iterated"),
        ({"optimizer": lambda model: 5}, "torch.optim.Optimizer"),
        (
            {"loss": lambda o, t: nn.functional.cross_entropy(o, t, reduction="none")},
            r"shape \(32,\).*mean",
        ),
        ({"loss": lambda o, t: 1.0}, "float"),
        (
            {"train_loader": DataLoader(TensorDataset(torch.zeros(0, 8)), batch_size=4)},
            "no batch",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_refused_in_a_sentence(parts: dict, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        loop = loop_of(**parts)
        loop.split_batch(loop._first_batch())
        loop.step(next(loop.batches()))


def test_what_the_users_code_raises_is_told_from_ours() -> None:
    loop = loop_of(model=lambda: nn.Linear(9, 3))
    with pytest.raises(UserCodeError, match="while computing the training loss"):
        loop.step(next(loop.batches()))


def test_a_step_that_raises_still_shows_what_was_seen() -> None:
    def labels_from_one() -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(8, 8), torch.full((8,), 3)), batch_size=8)

    loop = loop_of(train_loader=labels_from_one)
    with pytest.raises(UserCodeError) as caught:
        loop.step(next(loop.batches()), observe=True)
    (call,) = caught.value.observation.loss_calls
    assert call.target.max() == 3


def test_info_says_what_is_the_users_and_what_stands_in() -> None:
    loop = loop_of(optimizer=None)
    origins = {part.name: part.origin for part in loop.info().parts}
    assert origins["model"] == "user"
    assert origins["optimizer"] == "default"
    assert origins["val_loader"] == "absent"


def test_steps_are_undone_by_a_snapshot_of_the_subjects() -> None:
    loop = loop_of()
    batch, before = next(loop.batches()), weights(loop)
    with preserved(loop.subjects):
        first = [loop.step(batch).loss for _ in range(5)]
    assert torch.equal(before, weights(loop))
    with preserved(loop.subjects):
        assert [loop.step(batch).loss for _ in range(5)] == first


class TestTrainingStepThatUpdates:
    """A training_step that asks for the optimizer does the whole step itself."""

    @staticmethod
    def whole(model, batch, optimizer):
        x, y = batch
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def test_it_takes_the_place_of_the_plain_step(self) -> None:
        ours, theirs = loop_of(), loop_of(training_step=self.whole, loss=None)
        for loop in (ours, theirs):
            torch.manual_seed(0)
            loop.step(next(loop.batches()))
        assert torch.equal(weights(ours), weights(theirs))

    def test_gradients_are_not_zeroed_for_it(self) -> None:
        def forgetful(model, batch, optimizer):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            return loss

        loop = loop_of(training_step=forgetful)
        batch = next(loop.batches())
        for parameter in loop.model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)
        loop.step(batch)
        assert all(float(p.grad.mean()) > 90 for p in loop.model.parameters())

    def test_several_optimizers_and_the_scheduler_are_handed_over(self) -> None:
        seen: dict[str, Any] = {}

        def step(model, batch, optimizers, scheduler=None):
            seen.update(optimizers=optimizers, scheduler=scheduler)
            return TestTrainingStepThatUpdates.whole(model, batch, optimizers[0])

        loop = loop_of(
            training_step=step,
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5),
        )
        loop.step(next(loop.batches()))
        assert seen["optimizers"] == loop.optimizers
        assert seen["scheduler"] is loop.schedulers[0]

    @pytest.mark.parametrize("loss", [nn.functional.cross_entropy, None])
    def test_a_forward_pass_has_the_loss_of_a_step_and_none_of_its_effects(self, loss: Any) -> None:
        loop = loop_of(training_step=self.whole, loss=loss)
        batch, before = next(loop.batches()), weights(loop)
        torch.manual_seed(1)
        done = loop.forward(batch, train=True)
        torch.manual_seed(1)
        assert done.loss == pytest.approx(loop.step(batch).loss)
        assert done.output.shape == (len(batch[1]), 3)
        assert [call.kind for call in done.loss_calls] == ["cross_entropy"]
        assert not torch.equal(before, weights(loop))
        assert torch.equal(before, weights(loop_of(training_step=self.whole, loss=loss)))

    def test_networks_that_train_each_other_have_no_loss_of_a_forward_pass(self) -> None:
        def step(model, batch, optimizers):
            return self.whole(model, batch, optimizers[0])

        loop = loop_of(
            training_step=step,
            loss=None,
            optimizer=lambda model: [torch.optim.SGD(model.parameters(), 0.1) for _ in range(2)],
        )
        assert loop.forward(next(loop.batches())).loss is None
