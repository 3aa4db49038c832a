"""MODE106: frozen parts that move, and modes that thaw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nnaudit.checks.mode.frozen_set import FrozenSet
from nnaudit.report import Status


class Net(nn.Module):
    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.head = nn.Linear(24, 5)
        self.backbone.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Thawing(Net):
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if not mode:
            self.seen = True
        elif getattr(self, "seen", False):
            self.requires_grad_(True)
        return self


class Freezing(Net):
    """eval() freezes, and train() forgets to thaw."""

    def __init__(self) -> None:
        super().__init__(frozen=False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if not mode:
            self.requires_grad_(False)
        return self


@pytest.mark.parametrize("build", [Thawing, Freezing])
def test_a_mode_that_changes_what_is_trained_fails(build: Callable[[], nn.Module], ask) -> None:
    result = ask(FrozenSet, build)
    assert result.status is Status.FAIL
    assert "as around validation" in result.message


def test_statistics_of_a_frozen_backbone_that_drift_warn(ask) -> None:
    result = ask(FrozenSet, Net)
    assert result.status is Status.WARN
    assert result.module == "backbone.1"


class Decayed(torch.optim.SGD):
    """Decays every weight it holds, with or without a gradient."""

    def step(self, closure: object = None) -> None:
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.999)


def test_frozen_weights_that_the_optimizer_moves_fail(ask) -> None:
    result = ask(FrozenSet, Net, optimizer=lambda m: Decayed(m.parameters(), 0.01))
    assert result.status is Status.FAIL
    assert "frozen parameters change" in result.message


class Kept(Net):
    """Keeps its backbone in eval mode."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.eval()
        return self


class Toggling(Net):
    """Frozen in eval mode only."""

    def __init__(self) -> None:
        super().__init__(frozen=False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.requires_grad_(mode)
        return self


class Teacher(nn.Module):
    """A student and the moving average of it that teaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(frozen=False), Net(frozen=False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 0.1)
                self.teacher(x)
        return self.student(x)


def held(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(m.parameters(), 1e-3, weight_decay=0.1)


def test_frozen_parts_that_stay_put_pass(ask) -> None:
    for build in (Kept, Toggling, Teacher, lambda: Net(frozen=False)):
        assert ask(FrozenSet, build).status is Status.PASS
    # torch's own optimizers leave alone what has no gradient.
    assert ask(FrozenSet, Kept, optimizer=held).status is Status.PASS
