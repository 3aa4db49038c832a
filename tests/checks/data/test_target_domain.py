from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.data.target_domain import TargetDomain
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

Loss = Callable[[Tensor, Tensor], Tensor]


def ask(target: Tensor, loss: Loss, outputs: int = 3, net: Any = None, **parts: Any) -> Result:
    x = torch.randn(len(target), 4, generator=torch.Generator().manual_seed(0))
    made = net or (lambda: nn.Linear(4, outputs))
    loader = lambda: DataLoader(TensorDataset(x, target), 8)  # noqa: E731
    loop = DirectLoop(Target(made, loader, loss=loss, **parts), torch.device("cpu"), seed=0)
    return run_check(TargetDomain, Audit(loop))


def cycle(n: int = 64, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def with_one(value: float, at: int, target: Tensor) -> Tensor:
    changed = target.clone()
    changed[at] = value
    return changed


def nll(output: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(output, 1), target)


def flat(loss: Loss) -> Loss:
    return lambda output, target: loss(output[:, 0], target)


def handwritten(output: Tensor, target: Tensor) -> Tensor:
    return -output.log_softmax(1)[torch.arange(len(target)), target].mean()


FAULTS: dict[str, tuple[Tensor, Loss, str]] = {
    "classes from 1": (cycle() + 1, F.cross_entropy, "target - 1"),
    "a class too many": (with_one(7, 2, cycle()), F.cross_entropy, "nn.Linear(..., 8)"),
    "unlabelled": (with_one(-1, 2, cycle()), F.cross_entropy, "ignore_index=-1"),
    "a rare one later": (with_one(3, 60, cycle()), F.cross_entropy, "target - 1"),
    "nll": (cycle() + 1, nll, "target - 1"),
    "margin": (cycle() + 1, F.multi_margin_loss, "target - 1"),
    "handwritten": (cycle() + 1, handwritten, "target - 1"),
    "signs for bce": (
        2.0 * cycle(classes=2) - 1, flat(F.binary_cross_entropy_with_logits), "(target + 1) / 2"
    ),
    "normalised for bce": (
        torch.linspace(-0.8, 2.0, 64), flat(F.binary_cross_entropy_with_logits), "no Normalize()"
    ),
    "0 to 255 for bce": (
        255.0 * cycle(classes=2), flat(F.binary_cross_entropy_with_logits), "target / 255"
    ),
    "one -1 later": (
        with_one(-1.0, 60, cycle(classes=2).float()),
        flat(F.binary_cross_entropy_with_logits),
        "",
    ),
    "2 for bce": (
        cycle().float(), flat(lambda o, t: F.binary_cross_entropy(o.sigmoid(), t)), "target / 2"
    ),
    "zeros for margins": (cycle(classes=2).float(), flat(F.soft_margin_loss), "2 * target - 1"),
    "negative counts": (cycle().float() - 1, flat(F.poisson_nll_loss), "min=0"),
    "float classes": (cycle().float(), F.cross_entropy, "target.long()"),
    "short classes": (cycle().int(), F.cross_entropy, "target.long()"),
    "whole for bce": (
        cycle(classes=2), flat(F.binary_cross_entropy_with_logits), "target.float()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_target_the_loss_is_not_defined_for_fails(name: str) -> None:
    target, loss, fix = FAULTS[name]
    result = ask(target, loss)
    assert result.status is Status.FAIL, result.message
    assert fix in result.fix


def soft(n: int = 64) -> Tensor:
    return torch.softmax(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), 1)


def ignoring(value: int) -> Loss:
    return lambda output, target: F.cross_entropy(output, target, ignore_index=value)


def masked_by_sign(output: Tensor, target: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")
    return each[target >= 0].mean()


def masked_by_value(output: Tensor, target: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")
    return (each * (target != -1)).sum() / (target != -1).sum()


def weighted(output: Tensor, target: Tensor) -> Tensor:
    known = (target != -1).float()
    return F.binary_cross_entropy_with_logits(output[:, 0], target, weight=known)


def clamped(output: Tensor, target: Tensor) -> Tensor:
    known = (target >= 0).float()
    each = F.binary_cross_entropy_with_logits(output[:, 0], target.clamp(min=0), reduction="none")
    return (each * known).mean()


def without_the_unlabelled(output: Tensor, target: Tensor) -> Tensor:
    known = target >= 0
    return F.cross_entropy(output[known], target[known])


UNLABELLED = with_one(-1.0, 60, with_one(-1.0, 2, cycle(classes=2).float()))

SOUND: dict[str, tuple[Tensor, Loss]] = {
    "classes": (cycle(), F.cross_entropy),
    "bytes": (cycle(), lambda o, t: F.cross_entropy(o, t.long())),
    "default ignore": (with_one(-100, 2, cycle()), F.cross_entropy),
    "own ignore": (with_one(255, 2, cycle()), ignoring(255)),
    "nll": (cycle(), nll),
    "soft labels": (soft(), F.cross_entropy),
    "label smoothing": (cycle(), lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1)),
    "a column": (cycle()[:, None], lambda o, t: F.cross_entropy(o, t[:, 0])),
    "binary": (cycle(classes=2).float(), flat(F.binary_cross_entropy_with_logits)),
    "whole, cast": (
        cycle(classes=2), flat(lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()))
    ),
    "graded": (torch.rand(64), flat(F.binary_cross_entropy_with_logits)),
    "signs": (2.0 * cycle(classes=2) - 1, flat(F.soft_margin_loss)),
    "counts": (cycle().float(), flat(F.poisson_nll_loss)),
    "masked by sign": (UNLABELLED, masked_by_sign),
    "weighted": (UNLABELLED, weighted),
    "clamped": (UNLABELLED, clamped),
    "unlabelled left out": (with_one(-1, 60, cycle()), without_the_unlabelled),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_target_in_the_domain_passes(name: str) -> None:
    target, loss = SOUND[name]
    result = ask(target, loss)
    assert result.status is Status.PASS or name == "soft labels", result.message
    assert result.status in (Status.PASS, Status.SKIP)


def test_a_mask_that_cannot_be_seen_through_is_not_blamed() -> None:
    assert ask(UNLABELLED, masked_by_value).status in (Status.PASS, Status.INCONCLUSIVE)


def test_noisy_binary_labels_warn_at_most() -> None:
    target = 0.7 + 0.5 * torch.rand(64, generator=torch.Generator().manual_seed(2))
    result = ask(target, flat(F.binary_cross_entropy_with_logits))
    assert result.status is Status.WARN


def test_probabilities_that_do_not_sum_to_one_warn() -> None:
    several = (torch.rand(64, 3, generator=torch.Generator().manual_seed(3)) < 0.7).float()
    assert ask(several, F.cross_entropy).status is Status.WARN


@pytest.mark.parametrize("loss", [flat(F.mse_loss), handwritten])
def test_without_a_domain_there_is_no_question(loss: Loss) -> None:
    target = cycle() if loss is handwritten else cycle().float()
    assert ask(target, loss).status is Status.SKIP


def test_pixels() -> None:
    net = lambda: nn.Sequential(nn.Linear(4, 3 * 5 * 5), nn.Unflatten(1, (3, 5, 5)))  # noqa: E731
    mask = torch.randint(3, (32, 5, 5))
    assert ask(mask, F.cross_entropy, net=net).status is Status.PASS
    mask[1, 2, 3] = 255
    assert ask(mask, F.cross_entropy, net=net).status is Status.FAIL
    assert ask(mask, ignoring(255), net=net).status is Status.PASS


def ctc(output: Tensor, target: Tensor) -> Tensor:
    steps = output.reshape(len(output), 6, 4).log_softmax(2).transpose(0, 1)
    lengths = torch.full((len(output),), 6), torch.full((len(output),), 2)
    return F.ctc_loss(steps, target, *lengths)


def test_ctc_reads_only_what_is_not_padding() -> None:
    target = torch.tensor([[1, 2, 0], [3, 1, 0]]).repeat(16, 1)
    assert ask(target, ctc, outputs=24).status is Status.PASS
    target[0, 1] = 0
    assert ask(target, ctc, outputs=24).status is Status.FAIL


def test_a_step_that_raises_for_another_reason_is_not_blamed_on_the_targets() -> None:
    def odd(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no idea")

    result = ask(cycle(), odd)
    assert result.status is Status.ERROR
    assert "no idea" in result.message


def test_zeros_for_signs_in_a_step_with_two_inputs() -> None:
    def asked(low: float, masked: bool = False) -> Result:
        label = torch.where(cycle(classes=2) == 1, 1.0, low)
        a, b = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(0))

        def step(model: nn.Module, batch: list[Tensor]) -> Tensor:
            a, b, label = batch
            if not masked:
                return F.cosine_embedding_loss(model(a), model(b), label)
            each = F.cosine_embedding_loss(model(a), model(b), label, reduction="none")
            return each[label == 1].mean()

        loader = lambda: DataLoader(TensorDataset(a, b, label), 8)  # noqa: E731
        target = Target(lambda: nn.Linear(4, 3), loader, training_step=step)
        return run_check(TargetDomain, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))

    wrong = asked(0.0)
    assert wrong.status is Status.FAIL
    assert "-1 or 1" in wrong.message
    assert asked(-1.0).status is Status.PASS
    assert asked(0.0, masked=True).status is not Status.FAIL


def test_an_autoencoders_target_is_its_input_whatever_the_labels_are() -> None:
    pictures, labels = torch.randn(64, 4), cycle(classes=10)
    target = Target(
        lambda: nn.Linear(4, 4),
        lambda: DataLoader(TensorDataset(pictures, labels), 8),
        training_step=lambda model, batch: F.binary_cross_entropy_with_logits(
            model(batch[0]), batch[0].view(-1, 4)
        ),
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    result = run_check(TargetDomain, Audit(loop))
    assert result.status is Status.FAIL, result.message
