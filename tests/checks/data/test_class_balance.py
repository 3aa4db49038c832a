from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from nnaudit.checks.data.class_balance import ClassBalance, Counts
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.stats import ALPHA, clopper_pearson
from nnaudit.targets.target import Target

SILENT = (Status.PASS, Status.SKIP, Status.NOTE)


def labels(*counts: int, seed: int = 0) -> Tensor:
    found = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]


def rows(y: Tensor, seed: int = 0) -> TensorDataset:
    return TensorDataset(torch.randn(len(y), 4, generator=torch.Generator().manual_seed(seed)), y)


def ask(
    y: Tensor,
    val: Tensor | None = None,
    loss: Any = F.cross_entropy,
    outputs: int = 5,
    net: Any = None,
    **loading: Any,
) -> Result:
    loading = loading or {"shuffle": True}
    target = Target(
        net or (lambda: nn.Linear(4, outputs)),
        lambda: DataLoader(rows(y), 32, **loading),
        val_loader=None if val is None else lambda: DataLoader(rows(val, 1), 64),
        loss=loss,
    )
    return run_check(ClassBalance, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def binary(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output[:, 0], target.float())


# --- missing ------------------------------------------------------------------------------------


def test_a_class_that_only_validation_has_fails() -> None:
    result = ask(labels(100, 100, 100, 100, 0), labels(25, 25, 25, 25, 25))
    assert result.status is Status.FAIL
    assert "Class 4" in result.message
    assert "stratify" in result.fix


def test_half_the_classes_lost_to_a_sorted_split_fail() -> None:
    assert ask(labels(120, 120, 60, 0, 0), labels(0, 0, 30, 60, 60)).status is Status.FAIL


def test_a_rare_class_may_be_absent_by_chance() -> None:
    result = ask(labels(150, 150, 150, 149, 0), labels(50, 50, 50, 50, 1))
    assert result.status in SILENT


def test_classes_that_the_network_has_no_output_for_are_not_missed() -> None:
    val = labels(0, 0, 0, 60, 60)
    assert ask(labels(100, 100, 100), val, outputs=3).status is Status.PASS
    assert ask(labels(100, 100, 100), val).status is Status.FAIL


def test_a_gap_in_the_numbers_warns() -> None:
    result = ask(labels(100, 100, 0, 100, 100))
    assert result.status is Status.WARN
    assert "class 2" in result.message


@pytest.mark.parametrize("counts", [(0, 100, 100, 100, 100), (100, 100, 100, 0, 0)])
def test_outputs_without_a_class_are_noted(counts: tuple[int, ...]) -> None:
    assert ask(labels(*counts)).status is Status.NOTE


def test_a_large_head_is_noted() -> None:
    assert ask(labels(300, 300, 300), outputs=40).status is Status.NOTE
    pretrained = ask(labels(100, 100, 100), outputs=1000)
    assert pretrained.status is Status.NOTE
    assert "997" in pretrained.message or "992 more" in pretrained.message


def test_a_long_tail_of_classes_that_were_not_read_is_not_noted() -> None:
    ones = labels(100, 100, 100, *(1 for _ in range(20)))
    assert ask(ones, outputs=1000).status is not Status.NOTE
    gaps = labels(50, 50, 0, 50, *(0 for _ in range(50)), 50)
    assert ask(gaps, outputs=1000).status is not Status.NOTE


def test_few_rows_of_few_classes_prove_nothing() -> None:
    assert ask(labels(2, 2), outputs=4).status is not Status.NOTE


# --- rare ---------------------------------------------------------------------------------------


def test_a_class_twenty_times_rarer_warns_and_names_the_metric() -> None:
    result = ask(labels(500, 400, 300, 300, 20))
    assert result.status is Status.WARN
    assert "F1" in result.message
    assert "f1_score" in result.fix
    assert ask((labels(950, 40) > 0).float(), loss=binary, outputs=1).status is Status.WARN


def test_twelve_to_one_in_few_rows_may_be_ten_to_one() -> None:
    assert ask(labels(60, 60, 60, 60, 5)).status is Status.PASS


def weighted(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, weight=torch.tensor([1.0, 1, 1, 1, 9]))


def focal(output: Tensor, target: Tensor) -> Tensor:
    each = F.cross_entropy(output, target, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def hard_examples(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none").topk(8).values.mean()


def positives_weighted(output: Tensor, target: Tensor) -> Tensor:
    weight = torch.tensor(20.0)
    return F.binary_cross_entropy_with_logits(output[:, 0], (target > 3).float(), pos_weight=weight)


def with_weights(*weights: float) -> Any:
    return lambda output, target: F.cross_entropy(output, target, weight=torch.tensor(weights))


def with_pos_weight(weight: float) -> Any:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            output[:, 0], target.float(), pos_weight=torch.tensor(weight)
        )

    return loss


@pytest.mark.parametrize(
    ("counts", "loss"),
    [
        ((600, 60), with_weights(0.1, 100.0)),
        ((600, 60), with_weights(3.0, 1.0)),
        ((600, 60), with_pos_weight(200.0)),
        ((300, 300, 300), with_weights(1.0, 1.0, 40.0)),
    ],
)
def test_weights_that_make_it_worse_warn(counts: tuple[int, ...], loss: Any) -> None:
    result = ask(labels(*counts), loss=loss, outputs=len(counts))
    assert result.status is Status.WARN
    assert "With the class weights of the loss" in result.message


@pytest.mark.parametrize(
    ("counts", "loss"),
    [
        ((600, 60), with_weights(0.91, 0.09)),
        ((600, 200), with_weights(0.75, 0.25)),
        ((600, 200), with_weights(3.0**0.5, 1.0)),
        ((600, 200), with_pos_weight(1 / 3)),
        ((600, 300, 150), with_weights(4.0, 2.0, 1.0)),
    ],
)
def test_the_shares_instead_of_their_inverse_fail(counts: tuple[int, ...], loss: Any) -> None:
    result = ask(labels(*counts), loss=loss, outputs=len(counts))
    assert result.status is Status.FAIL
    assert "rise with the number of rows" in result.message


@pytest.mark.parametrize(
    ("counts", "loss"),
    [
        ((600, 200), with_weights(1.3, 1.0)),  # of two classes, any weights are on a line
        ((600, 200), with_pos_weight(0.5)),
        ((600, 300, 150), with_weights(2.0, 1.0, 2.0)),
        ((600, 500), with_weights(600.0, 500.0)),  # hardly uneven
        ((600, 60), with_weights(0.1, 1.0)),
        ((600, 60), with_weights(0.1, 3.0)),  # more than balance, for the sake of recall
        ((900, 20), with_weights(1.0, 45.0**0.5)),
        ((600, 40), with_pos_weight(15.0)),
        ((600, 40), with_pos_weight(60.0)),
        ((300, 300, 300), with_weights(1.0, 2.0, 5.0)),
        ((400, 3), with_weights(0.01, 20.0)),  # too few rows to be sure
    ],
)
def test_weights_that_help_are_left_alone(counts: tuple[int, ...], loss: Any) -> None:
    result = ask(labels(*counts), loss=loss, outputs=len(counts))
    assert result.status in SILENT, result.message


def test_null_rejection_rate_and_power_of_weights() -> None:
    """Rows at exactly 10 : 1 with weights, and at 30 : 1."""
    rng = np.random.default_rng(0)
    weights = np.array([1.0, 40.0])

    def alarms(share: float) -> bool:
        found = Counts(rng.multinomial(800, (1 - share, share))).weighed(weights)
        return found is not None and found.ratio > 10 and found.p_within(10.0) < ALPHA

    assert sum(alarms(0.2) for _ in range(3000)) <= 2  # 0.2 x 40 : 0.8 is 10 : 1
    assert all(alarms(3 / 7) for _ in range(100))


@pytest.mark.parametrize("loss", [weighted, focal, hard_examples, positives_weighted])
def test_a_loss_that_knows_is_left_alone(loss: Callable[..., Tensor]) -> None:
    assert ask(labels(500, 400, 300, 300, 20), loss=loss).status in SILENT


def test_a_sampler_that_knows_is_left_alone() -> None:
    y = labels(500, 400, 300, 300, 20)
    weights = (1 / torch.bincount(y).float())[y]
    sampler = WeightedRandomSampler(weights.tolist(), len(y))
    assert ask(y, sampler=sampler).status in SILENT


def test_an_option_sets_the_ratio() -> None:
    y = labels(500, 400, 300, 300, 20)
    target = Target(lambda: nn.Linear(4, 5), lambda: DataLoader(rows(y), 32), loss=F.cross_entropy)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    options = {"DATA110": {"imbalance": 60.0}}
    assert run_check(ClassBalance, Audit(loop, options=options)).status is Status.PASS


# --- nothing to say -------------------------------------------------------------------------------


def mean_squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output[:, 0], target.float())


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(output[:, 0], target.float())


@pytest.mark.parametrize("loss", [mean_squares, log_likelihood])
def test_quantities_are_no_classes(loss: Callable[..., Tensor]) -> None:
    assert ask(labels(500, 300, 100, 20, 2), loss=loss).status is Status.SKIP


def test_pairs_of_a_contrastive_loss_are_no_classes() -> None:
    def contrast(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    y = labels(500, 400, 300, 300, 20)
    assert ask(y, loss=contrast, drop_last=True).status is Status.SKIP


def test_several_labels_per_row_are_left_alone() -> None:
    y = (torch.rand(400, 5, generator=torch.Generator().manual_seed(0)) < 0.03).float()
    assert ask(y, loss=F.binary_cross_entropy_with_logits).status in SILENT


def test_balanced_and_mildly_uneven_classes_pass() -> None:
    assert ask(labels(90, 110, 100, 95, 105), labels(20, 20, 20, 20, 20)).status is Status.PASS
    assert ask(labels(400, 300, 200, 100, 60), labels(80, 60, 40, 20, 12)).status is Status.PASS


def test_unlabelled_rows_are_not_counted() -> None:
    y = torch.cat([labels(100, 100, 100, 100, 100), torch.full((30,), -100)])
    assert ask(y).status is Status.PASS


def test_soft_labels_count_by_their_most_probable_class() -> None:
    y = F.one_hot(labels(100, 100, 100, 100, 100), 5).float() * 0.9 + 0.02
    assert ask(y).status is Status.PASS


def test_one_class_of_few_rows_is_no_question() -> None:
    assert ask(torch.zeros(40), loss=binary, outputs=1).status in SILENT


def test_one_class_of_many_rows_is_nothing_to_learn() -> None:
    assert ask(torch.zeros(200), loss=binary, outputs=1).status is Status.WARN


def test_pixels_are_noted_at_most() -> None:
    net = lambda: nn.Sequential(nn.Linear(4, 2 * 64), nn.Unflatten(1, (2, 8, 8)))  # noqa: E731
    mask = (torch.rand(200, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.01).long()
    result = ask(mask, net=net)
    assert result.status is Status.NOTE
    assert "IoU" in result.message


@pytest.mark.parametrize(("power", "status"), [(1, Status.FAIL), (-1, Status.PASS)])
def test_weights_of_flattened_tokens_are_judged(power: int, status: Status) -> None:
    net = lambda: nn.Sequential(nn.Linear(4, 8 * 3), nn.Unflatten(1, (8, 3)))  # noqa: E731
    draw = torch.rand(200, 8, generator=torch.Generator().manual_seed(0))
    tags = (draw > 0.8).long() + (draw > 0.95)
    weight = torch.bincount(tags.flatten()).float() ** power

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.reshape(-1, 3), target.reshape(-1), weight)

    assert ask(tags, net=net, loss=loss).status is status
    plain = lambda o, t: F.cross_entropy(o.reshape(-1, 3), t.reshape(-1))  # noqa: E731
    assert ask(tags, net=net, loss=plain).status is Status.SKIP


def test_a_crash_of_the_step_is_for_others_to_say() -> None:
    def odd(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no idea")

    assert ask(labels(100, 100), loss=odd).status is Status.SKIP


def test_ten_to_one_is_rejected_no_more_often_than_its_level() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([10, 10, 10, 1, 1]) / 32
    ps = np.array([Counts(rng.multinomial(400, shares)).p_within(10.0) for _ in range(2000)])
    for level in (0.05, 0.01):
        low, _ = clopper_pearson(int((ps < level).sum()), len(ps), 0.999)
        assert low <= level
    assert Counts(np.array([1000, 20])).p_within(10.0) < ALPHA


class Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(("divisor", "status"), [(255.0, Status.FAIL), (1.0, Status.PASS)])
def test_masks_whose_classes_are_cut_off_fail(divisor: float, status: Status) -> None:
    mask = torch.randint(0, 5, (64, 1, 6, 6), generator=torch.Generator().manual_seed(0)) / divisor
    data = DataLoader(TensorDataset(torch.randn(64, 1, 6, 6), mask), batch_size=8)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target.long().squeeze(1))

    target = Target(Masks, data, loss=loss)
    result = run_check(ClassBalance, Audit(DirectLoop(target, torch.device("cpu"), 0)))
    assert (result.status is Status.FAIL) is (status is Status.FAIL), result.message
    if status is Status.FAIL:
        assert "1 of 5 classes" in result.message


# --- one label ----------------------------------------------------------------------------------


def test_one_label_for_all_rows_warns_and_a_step_that_makes_others_does_not() -> None:
    result = ask(labels(200, 0), outputs=2)
    assert result.status is Status.WARN
    assert "All 200 training rows" in result.message

    def with_negatives(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y) + F.cross_entropy(o.roll(1, 0), 1 - y)

    assert ask(labels(200, 0), loss=with_negatives, outputs=2).status in SILENT


# --- weights of a loss that is written by hand ----------------------------------------------------


def by_hand(weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        right = output.log_softmax(1).gather(1, target[:, None])[:, 0]
        return -(weights[target] * right).mean()

    return loss


UNEVEN = labels(300, 150, 75, 40, 20)


@pytest.mark.parametrize(
    ("power", "status"), [(1.0, Status.FAIL), (0.5, Status.FAIL), (-1.0, Status.SKIP)]
)
def test_weights_by_hand_that_rise_with_the_rows_fail(power: float, status: Status) -> None:
    weights = torch.bincount(UNEVEN).float() ** power
    assert ask(UNEVEN, loss=by_hand(weights / weights.mean())).status is status


def test_weights_by_row_of_a_function_of_torch_are_read_too() -> None:
    shares = torch.bincount(UNEVEN).float() / len(UNEVEN)
    result = ask(
        UNEVEN, loss=lambda o, y: (shares[y] * F.cross_entropy(o, y, reduction="none")).mean()
    )
    assert result.status is Status.FAIL, result.message


def test_rows_without_weights_have_none() -> None:
    assert ask(UNEVEN, loss=by_hand(torch.ones(5))).status in SILENT


def test_one_output_for_each_row_without_a_dimension_of_its_own() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[:, 0]

    def loss(output: Tensor, y: Tensor) -> Tensor:
        rows = torch.where(y == 1, 0.25, 0.75)  # the shares, not their inverse
        return (rows * F.softplus(torch.where(y == 1, -output, output))).mean()

    result = ask(labels(300, 100), loss=loss, net=Flat)
    assert result.status is Status.FAIL, result.message


def test_a_class_that_the_loss_ignores_warns() -> None:
    y = labels(100, 100, 100)
    result = ask(y, loss=nn.CrossEntropyLoss(ignore_index=0), outputs=3)
    assert result.status is Status.WARN
    assert "100 of 300" in result.message
    assert ask(y, loss=nn.CrossEntropyLoss(ignore_index=7), outputs=3).status is Status.PASS


@pytest.mark.parametrize("root", [1.0, 0.5])
def test_weights_of_other_classes_fail(root: float) -> None:
    """Inverse shares in the order of frequency, given to classes in the order of their numbers."""
    counts = (40, 400, 130, 220)
    weights = [(sum(counts) / each) ** root for each in sorted(counts, reverse=True)]
    result = ask(labels(*counts), loss=with_weights(*weights), outputs=4)
    assert result.status is Status.FAIL, result.message
    assert "another order" in result.message


@pytest.mark.parametrize("root", [1.0, 0.5, 0.3])
def test_weights_of_their_own_classes_do_not(root: float) -> None:
    counts = (40, 400, 130, 220)
    weights = [(sum(counts) / each) ** root for each in counts]
    assert ask(labels(*counts), loss=with_weights(*weights), outputs=4).status is Status.PASS


def test_weights_that_were_chosen_otherwise_are_not_called_misplaced() -> None:
    result = ask(labels(40, 400, 130, 220), loss=with_weights(1.0, 2.0, 1.0, 3.0), outputs=4)
    assert "another order" not in result.message
