from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nnaudit.context import Audit
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure import memory
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.probes.first_steps import STEPS, First, FirstSteps, initial_steps, observed_steps
from nnaudit.probes.plain_steps import PlainSteps
from nnaudit.targets.target import Target


def classes(rows: int = 64, size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=generator)
    data = TensorDataset(x, x[:, :3].argmax(1))
    return DataLoader(data, batch_size=size, shuffle=True)


def audit_of(**parts: Any) -> Audit:
    parts = {"model": lambda: nn.Linear(4, 3), "train_loader": classes, **parts}
    return Audit(DirectLoop(Target(**parts), torch.device("cpu"), seed=0))


def first_of(loss: Callable[[Any, Any], Tensor] | None = None, **parts: Any) -> First:
    return audit_of(loss=loss, **parts).probe(FirstSteps)


class TestTheSteps:
    def test_every_step_is_on_another_batch_and_observed(self) -> None:
        first = first_of()
        assert len(first.steps) == len(first.batches) == len(first.completed) == STEPS
        assert not first.repeats_one_batch
        assert all(torch.equal(y, batch[1]) for y, batch in zip(first.targets, first.batches))  # noqa: B905

    def test_a_short_epoch_is_begun_anew(self) -> None:
        first = first_of(train_loader=lambda: classes(rows=12))
        assert len(first.steps) == STEPS
        assert not first.repeats_one_batch

    def test_the_full_batch_is_known_as_such(self) -> None:
        loader = DataLoader(TensorDataset(torch.randn(9, 4), torch.zeros(9).long()), batch_size=9)
        assert first_of(train_loader=loader).repeats_one_batch

    def test_a_loader_that_can_be_read_once_gives_what_it_has(self) -> None:
        class Once(IterableDataset):
            def __init__(self) -> None:
                self.rows = iter([(torch.randn(4), 1)] * 20)

            def __iter__(self) -> Iterator[Any]:
                return self.rows

        loop = audit_of(train_loader=lambda: DataLoader(Once(), batch_size=8)).loop
        assert 0 < len(list(consecutive_batches(loop, STEPS))) <= 3

    def test_an_empty_loader_is_the_targets_fault(self) -> None:
        loop = audit_of(train_loader=lambda: DataLoader([], batch_size=8)).loop
        with pytest.raises(TargetError, match="no batch"):
            list(consecutive_batches(loop, STEPS))

    def test_what_raises_is_kept_with_what_was_seen(self) -> None:
        first = first_of(
            F.binary_cross_entropy,
            train_loader=lambda: DataLoader(
                TensorDataset(torch.randn(32, 4), torch.ones(32, 3)), batch_size=8
            ),
        )
        assert first.steps == ()
        assert first.partial is not None
        assert first.partial.loss_calls[0].kind == "bce"
        assert first.observations == (first.partial,)
        with pytest.raises(UserCodeError, match="between 0 and 1"):
            first.require()

    def test_large_inputs_are_cut_to_their_first_rows(self, monkeypatch) -> None:
        monkeypatch.setattr(memory, "MOST_BYTES", 3 * 4 * 5)
        first = first_of()
        (call,) = first.completed[0].loss_calls
        assert call.input.shape == (5, 3)
        assert call.target.shape == (5,)
        assert first.completed[0].output is None
        assert first.main_loss is not None


class TestTheMainLoss:
    def test_it_is_the_call_that_makes_the_total(self) -> None:
        main = first_of(F.cross_entropy).main_loss
        assert main is not None
        assert (main.calls[0].kind, main.factor, main.whole) == ("cross_entropy", 1.0, True)
        assert len(main.calls) == STEPS

    def test_an_accumulation_divisor_is_undone(self) -> None:
        main = first_of(lambda output, y: F.cross_entropy(output, y) / 4).main_loss
        assert main is not None
        assert main.factor == pytest.approx(0.25)

    def test_an_average_by_hand_counts(self) -> None:
        main = first_of(lambda output, y: F.cross_entropy(output, y, reduction="none").mean())
        assert main.main_loss is not None

    def test_a_masked_average_by_hand_counts(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            each = F.cross_entropy(output, y, reduction="none")
            mask = (y > 0).float() + 0.5
            return (each * mask).sum() / mask.sum()

        assert first_of(loss).main_loss is not None

    def test_a_metric_under_no_grad_is_not_taken_for_it(self) -> None:
        def loss(output: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                F.mse_loss(output, torch.zeros_like(output))
            return F.cross_entropy(output, y)

        main = first_of(loss).main_loss
        assert main is not None
        assert main.calls[0].kind == "cross_entropy"

    @pytest.mark.parametrize(
        "loss",
        [
            lambda out, y: F.cross_entropy(out, y) + out.square().mean(),
            lambda out, y: F.cross_entropy(out, y) * (1 + out.detach().std()),
            lambda out, y: out.square().mean() + y.sum() * 0,
        ],
    )
    def test_several_terms_have_none(self, loss) -> None:
        assert first_of(loss).main_loss is None

    def test_terms_on_the_loaders_own_targets_are_still_known(self) -> None:
        first = first_of(lambda out, y: F.cross_entropy(out, y) + 0.1 * F.mse_loss(out, out * 0))
        (term,) = first.supervised
        assert (term.calls[0].kind, term.whole) == ("cross_entropy", False)

    def test_targets_that_the_program_makes_are_not(self) -> None:
        def loss(out: Tensor, y: Tensor) -> Tensor:
            scores = out @ out.T
            return F.cross_entropy(scores, torch.arange(len(out))) + out.square().mean()

        assert first_of(loss).supervised == ()

    @pytest.mark.parametrize(
        ("loss", "kind"),
        [
            (lambda out, y: -out.log_softmax(1)[torch.arange(len(y)), y].mean(), "cross_entropy"),
            (lambda out, y: -out.softmax(1).log()[range(len(y)), y].mean(), "cross_entropy"),
            (lambda out, y: (out - F.one_hot(y, 3)).square().mean(), None),
        ],
    )
    def test_formulas_written_out_are_recognised(self, loss, kind) -> None:
        main = first_of(loss).main_loss
        assert (main.calls[0].kind if main is not None else None) == kind
        assert main is None or main.formula is not None

    def test_a_squared_error_written_out(self) -> None:
        loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 3)), batch_size=8)
        main = first_of(lambda out, y: ((out - y) ** 2).mean(), train_loader=loader).main_loss
        assert main is not None
        assert main.calls[0].kind == "mse"

    @pytest.mark.parametrize(
        ("loss", "factor"),
        [
            (lambda out, y: 0.5 * ((out - y) ** 2).mean(), 0.5),
            (lambda out, y: ((out - y) ** 2).sum(1).mean(), 3.0),
            (lambda out, y: -((out - y) ** 2).mean(), None),
            (lambda out, y: ((out - y) ** 2).mean() + out.square().mean(), None),
        ],
    )
    def test_a_squared_error_times_a_constant(self, loss, factor) -> None:
        loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 3)), batch_size=8)
        main = first_of(loss, train_loader=loader).main_loss
        assert (main.factor if main is not None else None) == pytest.approx(factor)


class TestRuns:
    def test_initial_steps_all_begin_from_the_same_weights(self) -> None:
        audit = audit_of()
        before = [p.detach().clone() for p in audit.loop.model.parameters()]
        batch = next(consecutive_batches(audit.loop, 1))
        losses = [step.loss for step in initial_steps(audit, [batch, batch, batch])]
        assert len(set(losses)) == 1
        after = list(audit.loop.model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_observed_steps_repeat_the_plain_ones_bit_for_bit(self) -> None:
        audit = audit_of(
            model=lambda: nn.Sequential(nn.Linear(4, 9), nn.Dropout(), nn.Linear(9, 3))
        )
        plain = audit.probe(PlainSteps).losses
        assert [step.loss for step in observed_steps(audit, len(plain))] == list(plain)
