from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.noise import eps_of, tolerance
from nnaudit.probes.perturbation import (
    Call,
    Layout,
    ModelCall,
    Replay,
    compact,
    layout_of,
    outputs_of,
    padding_of,
    position_changed,
    samples,
    shift_of,
    stand_in,
)
from nnaudit.targets.target import Target


def loop_of(
    model: Callable[[], nn.Module], data: Any, loss: Any = F.cross_entropy, **parts: Any
) -> DirectLoop:
    return DirectLoop(Target(model, data, loss=loss, **parts), torch.device("cpu"), seed=0)


def call_of(loop: DirectLoop) -> Call:
    call = Audit(loop).probe(ModelCall)
    assert call is not None
    return call


def rows(n: int = 24, **options: Any) -> DataLoader:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(n) % 3), batch_size=8, **options)


class TestTolerance:
    def test_ten_times_what_two_identical_runs_differ_by(self) -> None:
        assert tolerance(torch.tensor([1.0]), torch.tensor([1.5])) == pytest.approx(5.0)

    def test_at_least_64_roundings_of_the_largest_value(self) -> None:
        values = torch.tensor([-100.0, 1.0])
        assert tolerance(values, values) == pytest.approx(64 * torch.finfo(torch.float32).eps * 100)
        assert tolerance(values, values, eps=0.5) == pytest.approx(3200)

    def test_the_coarsest_parameter_counts(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
        assert eps_of(net) == torch.finfo(torch.bfloat16).eps
        assert eps_of(nn.ReLU()) == 0.0


class TestTheCall:
    def test_it_is_what_the_training_calls_the_model_with(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            return F.cross_entropy(model(2 * batch[0]), batch[1])

        loop = loop_of(lambda: nn.Linear(5, 3), rows(), None, training_step=step)
        call = call_of(loop)
        assert torch.equal(call.inputs[0][0], 2 * call.batch[0])

    def test_it_is_known_even_where_the_loss_fails_in_eval_mode(self) -> None:
        class Classes(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                return y if self.training else y.argmax(1)

        call = call_of(loop_of(lambda: Classes(5, 3), rows()))
        assert call.error is not None

    def test_none_where_only_parts_of_the_model_are_called(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            return F.cross_entropy(model[0](batch[0]), batch[1])

        loop = loop_of(lambda: nn.Sequential(nn.Linear(5, 3)), rows(), None, training_step=step)
        assert Audit(loop).probe(ModelCall) is None


class TestReplay:
    def test_same_state_and_same_random_numbers(self) -> None:
        class Counts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(5, 3)
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return self.head(x.mul_(2.0)) + self.calls + torch.rand(3)

        loop = loop_of(Counts, rows())
        call = call_of(loop)
        loop.model.train()
        with Replay(loop, call) as replay:
            first, second, other = replay(), replay(), replay(seed=7)
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert loop.model.training
        assert float(loop.model.calls) == 0.0  # type: ignore[arg-type]

    def test_influence_of_token_ids_goes_through_their_embedding(self) -> None:
        ids = torch.randint(9, (24, 4))
        data = DataLoader(TensorDataset(ids, ids[:, 0] % 3), batch_size=8)
        net = lambda: nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3))  # noqa: E731
        loop = loop_of(net, data)
        with Replay(loop, call_of(loop)) as replay:
            found = replay.influence(lambda output: output[2].sum(), 8)
        assert found is not None
        assert (found > 0).tolist() == [i == 2 for i in range(8)]


class TestLayout:
    def test_a_loader_that_stacks(self) -> None:
        loop = loop_of(lambda: nn.Linear(5, 3), rows())
        assert layout_of(loop, call_of(loop)) == Layout(0, 8, True)

    def test_samples_along_the_second_dimension(self) -> None:
        def collate(items: list[Any]) -> Any:
            return torch.stack([x for x, _ in items], 1), torch.stack([y for _, y in items])

        loop = loop_of(_Transposed, rows(collate_fn=collate))
        assert layout_of(loop, call_of(loop)) == Layout(1, 8, True)

    def test_rows_of_a_list_may_be_anything(self) -> None:
        loop = loop_of(lambda: nn.Linear(5, 3), list(rows()))
        found = layout_of(loop, call_of(loop))
        assert found == Layout(0, 8, False)

    def test_a_stand_in_is_another_sample_that_differs(self) -> None:
        inputs = ((torch.tensor([[1.0], [1.0], [3.0]]), torch.tensor([5, 5, 5])), {})
        layout = Layout(0, 3, True)
        order = stand_in(inputs, layout, 0)
        assert order is not None
        assert order.tolist() == [2, 1, 2]
        assert samples(inputs, layout, order)[0][0].flatten().tolist() == [3.0, 1.0, 3.0]
        assert stand_in(((torch.ones(3, 1),), {}), layout, 0) is None


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.T)


class TestNextToken:
    def call(self, ids: Tensor, target: Tensor) -> Call:
        return Call((ids, target), ((ids,), {}), target)

    def test_shifted_in_either_layout(self) -> None:
        ids = torch.randint(1, 9, (6, 12))
        rows_first = shift_of(self.call(ids[:, :-1], ids[:, 1:].reshape(-1)))
        time_first = shift_of(self.call(ids.T[:-1], ids.T[1:].reshape(-1)))
        assert rows_first is not None
        assert (rows_first.time, rows_first.shifted) == (1, True)
        assert time_first is not None
        assert (time_first.time, time_first.shifted) == (0, True)

    def test_the_same_and_something_else(self) -> None:
        ids = torch.randint(1, 9, (6, 12))
        same = shift_of(self.call(ids, ids))
        assert same is not None
        assert not same.shifted
        assert shift_of(self.call(ids, torch.randint(1, 9, (6, 12)))) is None
        assert shift_of(self.call(ids, ids[:, 0])) is None

    def test_padding_is_left_alone(self) -> None:
        ids = torch.randint(1, 9, (6, 12))
        ids[:, 8:] = 0
        target = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        call = self.call(ids[:, :-1], target)
        shift = shift_of(call)
        assert shift is not None
        padding = padding_of(nn.Linear(1, 1), shift)
        assert 0 in padding
        assert position_changed(call, shift, 0, 9, padding) is None
        changed = position_changed(call, shift, 0, 3, padding)
        assert changed is not None
        different = (changed[0][0] != call.inputs[0][0]).nonzero().tolist()
        assert different == [[0, 3]]
        assert int(changed[0][0][0, 3]) not in padding


class TestCompact:
    def test_many_outputs_become_few_sums_that_change_with_each_of_them(self) -> None:
        values = torch.randn(64, 2**17)
        before = compact(values)
        values[3, 77] += 1.0
        change = (compact(values) - before).abs().amax(1)
        assert before.shape == (64, 16)
        assert (change > 0).nonzero().flatten().tolist() == [3]

    def test_all_floating_outputs_count(self) -> None:
        found = outputs_of({"a": torch.ones(2, 3), "b": [torch.arange(4), torch.ones(1) * 1j]})
        assert found is not None
        assert found.shape == (8,)
        assert outputs_of(torch.arange(3)) is None
