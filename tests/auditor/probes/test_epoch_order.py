from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.batch_rows import continues, is_next_token, row_targets
from nnaudit.measure.epoch_targets import codes_of, counts_of
from nnaudit.probes.epoch_order import EpochOrder, order_of
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.targets.target import Target


def audit_of(loader: Any) -> Audit:
    model = lambda: nn.Sequential(nn.Linear(3, 2))  # noqa: E731
    return Audit(DirectLoop(Target(model, loader), torch.device("cpu"), seed=0))


def rows(n: int = 256) -> TensorDataset:
    return TensorDataset(torch.randn(n, 3), torch.arange(n) * 4 // n)


def fed(inputs: Any, target: Any) -> ModelInputs:
    return ModelInputs((inputs,), {}, target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor([2, 0, 1]), [2, 0, 1]),
        (torch.tensor([[2], [0], [1]]), [2, 0, 1]),
        (torch.eye(3)[[2, 0, 1]], [2, 0, 1]),
        (torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]]), [1, 0, 0]),
        (torch.tensor([0.5, -2.0, 1.0]), [0.5, -2.0, 1.0]),
        (torch.tensor([0.5, -2.0, 1.0], dtype=torch.bfloat16), [0.5, -2.0, 1.0]),
        (torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]), [[1, 0, 1], [0, 0, 0], [1, 1, 0]]),
        (torch.tensor([[0.5, 1.5], [2.0, 0.1], [7.0, 0.0]]), [0.5, 2.0, 7.0]),
        ((torch.zeros(3, 4, 4), torch.tensor([2, 0, 1])), [2, 0, 1]),
        ({"boxes": torch.zeros(3, 4, 4), "label": torch.tensor([2, 0, 1])}, [2, 0, 1]),
        ([2, 0, 1], [2, 0, 1]),
        (torch.zeros(3, 5, 5, dtype=torch.long), None),
        (torch.randint(9, (3, 12)), None),
        (torch.randn(3, 64), None),
        (torch.tensor([2, 0]), None),
        (["a", "b", "c"], None),
        (None, None),
    ],
)
def test_one_target_per_row(target: Any, expected: Any) -> None:
    found = row_targets(fed(torch.randn(3, 2), target), 3)
    assert (None if found is None else found.tolist()) == expected


def test_an_input_that_is_its_own_target_has_none() -> None:
    x = torch.randn(4)
    assert row_targets(fed(x, x), 4) is None


def test_a_language_model_is_recognised() -> None:
    text = torch.randint(20, (4, 9))
    assert is_next_token(fed(text[:, :-1], text[:, 1:]))
    assert is_next_token(fed(text, text.clone()))
    assert is_next_token(fed(text, None))
    assert not is_next_token(fed(text, torch.randint(20, (4, 9))))
    assert not is_next_token(fed(torch.randn(4, 9), torch.randint(3, (4,))))


@pytest.mark.parametrize("time_first", [True, False])
def test_batches_that_go_on_are_recognised(time_first: bool) -> None:
    text = torch.randint(20, (4, 33))

    def batch(start: int) -> ModelInputs:
        x, y = text[:, start : start + 8], text[:, start + 1 : start + 9]
        return fed(x.T, y.T) if time_first else fed(x, y)

    assert continues(batch(0), batch(8))
    assert not continues(batch(0), batch(16))
    assert not continues(fed(torch.zeros(4, 8), torch.zeros(4, 8)), fed(torch.zeros(4, 8), None))


def test_codes_keep_sorted_values_sorted() -> None:
    codes = codes_of(np.repeat(np.arange(100), 5), most=16)
    assert (np.diff(codes) >= 0).all()
    assert len(np.unique(codes)) == 16
    assert codes_of(np.array([7, 3, 7])).tolist() == [1, 0, 1]


def test_counts() -> None:
    assert counts_of([0, 1, 1, 2, 0], [2, 3]).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_shuffled_order_is_not_read_twice() -> None:
    order = audit_of(lambda: DataLoader(rows(), 16, shuffle=True)).probe(EpochOrder)
    assert order.second is None
    assert order.later is None
    assert order.repeated is None
    assert order.asked_again is not None
    assert order.asked_again.count < 10
    assert order.first.rows == 256
    assert order.first.ended


def test_a_fixed_order_is_proved_by_index_and_content() -> None:
    order = audit_of(lambda: DataLoader(rows(), 16)).probe(EpochOrder)
    assert order.repeated is not None
    assert order.repeated.count == 256
    assert order.rows_are_exchangeable


def test_the_rest_of_a_long_epoch_is_looked_up() -> None:
    order = audit_of(lambda: DataLoader(rows(20_000), 100)).probe(EpochOrder)
    assert order.targets is not None
    assert order.targets.near == 1100
    assert set(order.targets.values[:1100]) == {0}
    assert set(order.targets.values) == {0, 1, 2, 3}


def test_a_data_set_that_cannot_be_indexed_here_is_only_read() -> None:
    class Shy(TensorDataset):
        opened = False

        def __getitem__(self, index: Any) -> Any:
            if not self.opened:
                raise RuntimeError("opened by the worker")
            return super().__getitem__(index)

    def wake(worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        info.dataset.opened = True

    data = Shy(torch.randn(3000, 3), torch.arange(3000) // 1000)
    loader = lambda: DataLoader(data, 100, num_workers=1, worker_init_fn=wake)  # noqa: E731
    order = audit_of(loader).probe(EpochOrder)
    assert order.later is None
    assert order.repeated is not None


def test_reading_leaves_the_random_numbers_to_the_runner() -> None:
    audit = audit_of(lambda: DataLoader(rows(), 16, shuffle=True))
    before = torch.get_rng_state()
    audit.probe(EpochOrder)
    assert torch.equal(before, torch.get_rng_state())


def test_two_measurements_see_two_epochs() -> None:
    audit = audit_of(lambda: DataLoader(rows(), 16, shuffle=True))
    first, second = order_of(audit), order_of(audit)
    assert first.indices != second.indices


def test_batches_a_loop_cannot_take_apart_are_still_read() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    def step(model: nn.Module, batch: Any) -> Tensor:
        return model.weight.sum()

    loader = lambda: DataLoader(rows(), 16, shuffle=True)  # noqa: E731
    loop = DirectLoop(Target(Own, loader, training_step=step), torch.device("cpu"), seed=0)
    order = Audit(loop).probe(EpochOrder)
    assert order.first.rows == 256


class Feeds:
    """A loop that feeds every batch in one way."""

    def __init__(self, fed: ModelInputs) -> None:
        self._fed = fed

    def split_batch(self, batch: Any) -> ModelInputs:
        return self._fed


@pytest.mark.parametrize("flat", [False, True])
def test_labels_that_the_model_is_given_are_its_target_and_no_input(flat: bool) -> None:
    ids, mask, labels = torch.arange(6).view(2, 3), torch.ones(2, 3), torch.arange(6).view(2, 3)
    keywords = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    seen = inputs_and_target(
        Feeds(ModelInputs((), keywords, labels.view(-1) if flat else labels)), None
    )
    assert list(seen.kwargs) == ["input_ids", "attention_mask"]
    assert seen.target is labels


@pytest.mark.parametrize(
    "made",
    [
        ModelInputs(
            (), {"labels": torch.arange(3)}, torch.arange(3)
        ),  # nothing else would be an input
        ModelInputs(
            (), {"x": torch.ones(3), "y": torch.zeros(3)}, torch.arange(3)
        ),  # y is an input
        ModelInputs((torch.ones(3),), {"labels": None}, None),
        fed(torch.ones(3), torch.arange(3)),
    ],
)
def test_other_inputs_stay_what_they_are(made: ModelInputs) -> None:
    assert inputs_and_target(Feeds(made), None) is made
