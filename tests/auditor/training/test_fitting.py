import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Clock
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.observer import Observer
from nnaudit.loop.total_loss import call_of_total, call_worth
from nnaudit.targets.target import Target
from nnaudit.training.fitting import (
    Head,
    Limits,
    Run,
    evaluate_rows,
    fit,
    head_of,
    train,
    updates_by,
)

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def loop_with(optimizer, loss=F.cross_entropy, model=None):
    target = Target(
        model or (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))),
        lambda: DataLoader(TensorDataset(X, Y), batch_size=16),
        loss=loss,
        optimizer=optimizer,
    )
    return DirectLoop(target, torch.device("cpu"), seed=0)


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.5, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.5, weight_decay=0.1),
    "rprop": lambda m: torch.optim.Rprop(m.parameters(), 0.5),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_can_be_switched_off(name):
    loop = loop_with(OPTIMIZERS[name])
    before = [p.clone() for p in loop.model.parameters()]
    with updates_by(loop, None):
        for batch in loop.batches():
            loop.step(batch)
    assert all(map(torch.equal, before, loop.model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adam_can_take_the_optimizers_place(name):
    loop = loop_with(OPTIMIZERS[name])
    plain = loop_with(lambda m: torch.optim.Adam(m.parameters(), 0.01))
    with updates_by(loop, 0.01):
        for batch in loop.batches():
            loop.step(batch)
    for batch in plain.batches():
        plain.step(batch)
    for a, b in zip(loop.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def trained(losses, level=None, limits=None):
    taken = iter(losses)
    limits = limits or Limits(40, 200, 10.0)
    return train(
        lambda part: next(taken), 1, label="", level=level, floor=0.0, limits=limits, clock=Clock()
    )


def test_a_fitted_run_stops_at_once():
    run = trained([1.0, 0.5, 0.1, 0.05, 0.05, 0.05], level=0.1)
    assert run.fitted
    assert run.steps <= 6


def test_a_plateau_ends_a_run_and_a_fall_extends_it():
    assert trained(0.5 for _ in range(1000)).steps == 40
    falling = trained(math.exp(-0.01 * i) for i in range(1000))
    assert falling.steps == 200
    assert falling.falling()


def test_a_run_that_explodes_is_not_a_fit():
    run = trained([1.0, 10.0, 1e30, math.nan], level=0.1)
    assert run.diverged
    assert run.final == math.inf
    assert not run.falling()


def test_noise_is_no_fall():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        losses = tuple((1 + 0.1 * torch.randn(200, generator=generator)).tolist())
        assert not Run("", losses, 200, 1.0).falling(share=0.0)


@pytest.mark.parametrize(
    ("output", "view"),
    [
        (torch.randn(3, 5, 7), lambda t: t.flatten(0, 1)),
        (torch.randn(3, 5, 7), lambda t: t.transpose(1, 2)),
        (torch.randn(3, 5, 7), lambda t: t[:, :-1].reshape(-1, 7)),
        (torch.randn(3, 1), lambda t: t.squeeze(1)),
        (torch.randn(3, 7), lambda t: t.log_softmax(1)),
        ({"logits": torch.randn(3, 7)}, lambda t: t["logits"]),
    ],
)
def test_the_way_from_output_to_loss_is_found(output, view):
    from nnaudit.loop.losses import LossCall

    wanted = view(output)
    call = LossCall("mse", F.mse_loss, {"input": wanted, "target": wanted}, None)
    head = head_of(output, call)
    assert isinstance(head, Head)
    torch.testing.assert_close(head(output, wanted.shape), wanted)
    other = LossCall("mse", F.mse_loss, {"input": wanted * 3 + 1, "target": wanted}, None)
    assert head_of(output, other) is None


def test_elements_averaged_by_hand_are_still_that_loss():
    def loss(output, target):
        return F.cross_entropy(output, target, reduction="none").mean()

    loop = loop_with(OPTIMIZERS["sgd"], loss)
    seen = evaluate_rows(loop, list(loop.batches()))
    assert seen.bounds is not None
    assert seen.rows == 32


def test_a_penalised_loss_has_no_known_floor():
    def loss(output, target):
        return F.cross_entropy(output, target) + output.pow(2).mean()

    loop = loop_with(OPTIMIZERS["sgd"], loss)
    seen = evaluate_rows(loop, list(loop.batches()))
    assert seen.bounds is None
    assert "composite" in seen.unknown


def test_a_loss_without_one_input_and_one_target_is_no_comparison() -> None:
    with Observer(nn.Identity()) as observer:
        log_probabilities = torch.randn(9, 2, 5).log_softmax(-1)
        lengths = torch.tensor([9, 9]), torch.tensor([3, 2])
        loss = F.ctc_loss(log_probabilities, torch.tensor([1, 2, 3, 4, 1]), *lengths)
    seen = observer.observation
    seen.total_loss = float(loss)
    main = call_worth(seen.loss_calls, seen.total_loss)
    assert main is not None and main.kind == "ctc"
    assert call_of_total(seen) is None


class Confident:
    """Cross-entropy, and one of pseudo-labels of the rows that the network is sure about."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, output, y):
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        sure = output.softmax(1).max(1).values > 0.9
        made = F.cross_entropy(9 * noise, output.argmax(1), reduction="none") + output.sum(1) ** 2
        return F.cross_entropy(output, y) + self.share * (made * sure).mean()


@pytest.mark.parametrize(("share", "joined"), [(1.0, True), (0.0, False)])
def test_a_term_that_was_zero_at_first_is_noticed(share, joined):
    loop = loop_with(lambda m: torch.optim.Adam(m.parameters(), 0.05), Confident(share))
    parts = [next(iter(loop.batches()))]
    limits = Limits(60, 60, 5.0) if joined else Limits(3, 3, 5.0)
    seen = evaluate_rows(loop, parts)
    assert seen.bounds is not None
    run = fit(loop, seen, label="", limits=limits, clock=Clock(None))
    assert not run.fitted
    assert run.joined is joined
