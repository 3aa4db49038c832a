import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.loop.losses import LOSS_FUNCTIONS, LossCall
from nnaudit.targets.model_inputs import ModelInputs
from nnaudit.training.loss_bounds import Bounds, best_constant, bounds


def call_of(function, prediction: Tensor, target: Tensor, **arguments) -> LossCall:
    made = {"input": prediction, "target": target, **arguments}
    return LossCall(LOSS_FUNCTIONS[function], function, made, function(**made))


def bounds_of(function, prediction, target, inputs=None, **arguments) -> Bounds:
    inputs = torch.randn(len(target), 3) if inputs is None else inputs
    call = call_of(function, prediction, target, **arguments)
    found = bounds([call], [ModelInputs((inputs,), {}, target)], [len(inputs)])
    assert found is not None
    return found


def descended(function, shape, target, groups: Tensor, **arguments) -> float:
    """The lowest loss that gradient descent finds when rows of one group share a prediction."""
    free = torch.zeros(int(groups.max()) + 1, *shape[1:], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = function(free[groups], target, **arguments)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(closure().detach())


def test_classes_can_be_known():
    found = bounds_of(F.cross_entropy, torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert found.floor == pytest.approx(0, abs=1e-9)
    assert found.constant == pytest.approx(math.log(3))


def test_an_ignored_class_does_not_count():
    found = bounds_of(F.cross_entropy, torch.randn(4, 3), torch.tensor([0, 1, -100, -100]))
    assert found.constant == pytest.approx(math.log(2))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0], dtype=torch.double)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equal_inputs_with_different_classes_cost_their_entropy(weight, smoothing, reduction):
    target = torch.tensor([0, 1, 1, 2, 0, 2])
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    arguments = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    found = bounds_of(
        F.cross_entropy,
        torch.zeros(6, 3, dtype=torch.double),
        target,
        rows[:, None].float(),
        **arguments,
    )
    assert found.distinct == 3
    best = descended(F.cross_entropy, (6, 3), target, rows, **arguments)
    assert found.floor == pytest.approx(best, abs=2e-3)
    flat = descended(F.cross_entropy, (6, 3), target, torch.zeros(6, dtype=torch.long), **arguments)
    assert found.constant == pytest.approx(flat, abs=2e-3)


def test_soft_classes_cost_their_entropy():
    soft = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 1)
    found = bounds_of(F.cross_entropy, torch.zeros(5, 4), soft)
    entropy = -(soft * soft.log()).sum(1).mean()
    assert found.floor == pytest.approx(float(entropy), rel=1e-4)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (F.mse_loss, {}),
        (F.l1_loss, {}),
        (F.binary_cross_entropy_with_logits, {}),
        (F.binary_cross_entropy_with_logits, {"pos_weight": torch.tensor([3.0, 0.5]).double()}),
        (F.multilabel_soft_margin_loss, {}),
        (F.poisson_nll_loss, {}),
    ],
)
def test_elementwise_losses_have_the_floor_that_descent_finds(function, arguments):
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(6, 2, generator=generator).double()
    rows = torch.tensor([0, 0, 0, 1, 2, 3])
    prediction = torch.zeros(6, 2, dtype=torch.double)
    found = bounds_of(function, prediction, target, rows[:, None].float(), **arguments)
    best = descended(function, (6, 2), target, rows, **arguments)
    assert found.floor == pytest.approx(best, abs=1e-2)


def test_grey_pixels_have_a_floor_under_bce():
    grey = torch.full((4, 10), 0.5)
    found = bounds_of(F.binary_cross_entropy, torch.rand(4, 10), grey, grey)
    assert found.floor == pytest.approx(math.log(2), rel=1e-4)
    assert found.reconstruction


def test_a_text_cannot_be_known_before_it_begins():
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 4], [1, 3, 3, 3], [1, 2, 4, 3]])
    target = torch.cat((tokens[:, 1:], torch.tensor([[0], [0], [0], [0]])), 1)
    call = call_of(F.cross_entropy, torch.zeros(16, 5), target.flatten())
    found = bounds([call], [ModelInputs((tokens,), {}, target)], [4])
    # After "1": 2 three times and 3 once. After "1 2": 4 twice and 3 once. After "1 2 4": 4 or 3.
    nats = 3 * math.log(4 / 3) + math.log(4) + 2 * math.log(3 / 2) + math.log(3) + 2 * math.log(2)
    assert found is not None
    assert found.floor == pytest.approx(nats / 16, rel=1e-5)


def test_the_two_zeros_are_equal():
    found = bounds_of(
        F.cross_entropy, torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([[0.0], [-0.0]])
    )
    assert found.distinct == 1
    assert not found.informative


def test_several_batches_are_taken_together_and_a_sum_is_per_step():
    target = torch.tensor([0, 1, 0, 1])
    inputs = torch.zeros(4, 1)
    calls = [call_of(F.cross_entropy, torch.zeros(4, 2), target, reduction="sum")] * 2
    found = bounds(calls, [ModelInputs((inputs,), {}, target)] * 2, [4, 4])
    assert found is not None
    assert found.floor == pytest.approx(4 * math.log(2))


def test_a_quantity_is_judged_against_its_mean():
    target = torch.tensor([99.0, 100.0, 101.0, 100.0])
    found = bounds_of(F.mse_loss, torch.zeros(4), target)
    assert found.constant == pytest.approx(0.5)
    assert found.level(initial=10_000.0) == pytest.approx(0.05)


@pytest.mark.parametrize("function", [F.gaussian_nll_loss, F.hinge_embedding_loss])
def test_no_theory_no_bounds(function):
    extra = {"var": torch.ones(4)} if function is F.gaussian_nll_loss else {}
    call = call_of(function, torch.zeros(4), torch.ones(4), **extra)
    assert bounds([call], [ModelInputs((torch.randn(4, 2),), {}, None)], [4]) is None


def test_batches_of_other_lengths_are_averaged():
    calls, feds = [], []
    for length in (4, 6):
        target = torch.arange(2 * length).reshape(2, length) % 3
        calls.append(call_of(F.cross_entropy, torch.zeros(2, 3, length), target))
        feds.append(ModelInputs((torch.randn(2, length),), {}, target))
    found = bounds(calls, feds, [2, 2])
    assert found is not None
    assert (found.rows, found.distinct) == (4, 4)
    assert 0 < found.constant <= math.log(3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_single_pictures_of_other_sizes_have_one_constant_together(reduction):
    """The best constant of a batch of one picture is that picture."""
    g = torch.Generator().manual_seed(0)
    masks = [(torch.rand(1, 1, side, side, generator=g) < 0.2).float() for side in (8, 12, 16, 20)]
    calls = [
        call_of(F.binary_cross_entropy_with_logits, torch.zeros_like(m), m, reduction=reduction)
        for m in masks
    ]
    elements = torch.cat([m.reshape(-1) for m in masks])
    share = float(elements.mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    expected = entropy if reduction == "mean" else entropy * len(elements) / len(masks)
    assert best_constant(calls) == pytest.approx(expected, rel=1e-4)
    feds = [ModelInputs((torch.randn_like(m),), {}, m) for m in masks]
    found = bounds(calls, feds, [1] * len(masks))
    assert found is not None
    assert found.informative
    assert found.constant == pytest.approx(expected, rel=1e-4)
    assert found.floor < 1e-3 * expected


def test_texts_of_other_lengths_have_the_shares_of_all_their_words():
    g = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 50, (2, length), generator=g) for length in (5, 7, 9, 11)]
    calls = [call_of(F.cross_entropy, torch.zeros(2, 50, t.shape[1]), t) for t in texts]
    shares = torch.bincount(torch.cat([t.reshape(-1) for t in texts]), minlength=50) / 64
    assert best_constant(calls) == pytest.approx(float(torch.special.entr(shares).sum()), rel=1e-4)


def test_what_is_more_than_its_elements_is_not_laid_flat():
    """A weight for each class of a row, or a divergence of rows, is averaged batch by batch."""
    calls = [
        call_of(
            F.binary_cross_entropy_with_logits, torch.zeros(4, width), torch.ones(4, width),
            pos_weight=torch.ones(width),
        )
        for width in (3, 5)
    ]  # fmt: skip
    assert best_constant(calls) == pytest.approx(0.0, abs=1e-5)
