"""GEN102: photographs and random filters together are worth a note, nothing else is."""

from __future__ import annotations

import pytest
import torch
from photographs import Stem, crops, imagenet_weights, loader
from torch import Tensor, nn

from nnaudit.checks.gen.transfer_learning import (
    TransferLearning,
    filter_autocorrelation,
    looks_photographic,
)
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def ask(pictures: Tensor, model: type[nn.Module] | object = Stem) -> Result:
    """Ask about ``model`` on ``pictures``."""
    target = Target(model=model, train_loader=loader(pictures))  # type: ignore[arg-type]
    return run_check(TransferLearning, Audit(DirectLoop(target, torch.device("cpu"), 0)))


def test_photographs_and_random_filters_are_worth_a_note() -> None:
    result = ask(crops())
    assert result.status is Status.NOTE, result.message
    assert 'weights="DEFAULT"' in result.fix


def test_trained_filters_are_not() -> None:
    weights = imagenet_weights()

    def build_model() -> nn.Module:
        model = Stem()
        model.load_state_dict(weights, strict=False)
        return model

    assert ask(crops(), build_model).status is Status.PASS


def stripes(count: int = 16) -> Tensor:
    """Spectrograms in false colour: smooth along one axis only."""
    columns = torch.rand(count, 1, 96, 1).expand(-1, 1, -1, 96)
    return torch.cat([columns, columns**2, 1 - columns], 1) + 0.01 * torch.rand(count, 3, 96, 96)


@pytest.mark.parametrize(
    "pictures",
    [
        crops(side=32),
        crops().mean(1, keepdim=True).expand(-1, 3, -1, -1),
        torch.rand(16, 3, 96, 96),
        stripes(),
        torch.zeros(16, 3, 96, 96),
    ],
    ids=["tiny", "grey", "noise", "spectrograms", "empty"],
)
def test_what_is_no_photograph_is_skipped(pictures: Tensor) -> None:
    assert ask(pictures).status is Status.SKIP


def test_digits_are_skipped() -> None:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    assert ask(crops()[:, :1], Grey).status is Status.SKIP


def test_random_filters_are_not_smooth_and_published_ones_are() -> None:
    """The null distribution is that of a standard normal; real filters are far out in it."""
    torch.manual_seed(0)
    drawn = [filter_autocorrelation(nn.Conv2d(3, 16, k).weight.detach()) for k in (3, 5, 7) * 20]
    random = torch.tensor([z for z in drawn if z is not None])
    assert random.abs().max() < 4.0
    assert 0.7 < float(random.std()) < 1.3
    trained = filter_autocorrelation(imagenet_weights()["conv.weight"])
    assert trained is not None
    assert trained > 8.0


def test_photographs_are_told_from_noise() -> None:
    assert looks_photographic(crops())
    assert looks_photographic(crops(side=224) * 2 - 1)
    assert not looks_photographic(torch.randn(16, 3, 64, 64))
