"""MODE106: frozen parts that move, and modes that thaw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnaudit.checks.mode.frozen_set import FrozenSet
from nnaudit.measure.frozen_names import freezing_loops
from nnaudit.report import Status
from nnaudit.targets.source import source_of


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


class Misspelt(Net):
    def __init__(self) -> None:
        super().__init__(frozen=False)
        for p in self.backbone.parameters():
            p.require_grad = False


class OnAModule(Net):
    def __init__(self) -> None:
        super().__init__(frozen=False)
        self.backbone.requires_grad = False


class Setting(nn.Linear):
    """Keeps a setting of its own by that name."""

    def __init__(self) -> None:
        super().__init__(12, 5)
        self.requires_grad = False


@pytest.mark.parametrize(
    ("build", "said"), [(Misspelt, "require_grad = False is set on 4"), (OnAModule, "1 module")]
)
def test_a_flag_that_freezes_nothing_fails(build: Callable[[], nn.Module], said: str, ask) -> None:
    result = ask(FrozenSet, build)
    assert result.status is Status.FAIL
    assert said in result.message


FREEZING = """
def freeze(net):
    for name, p in net.named_parameters():
        if CONDITION:
            p.requires_grad = False
CALL
"""


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("name.startswith('encoder')", [0]),
        ("'backbone' in name and 'norm' not in name", [2]),
        ("any(k in name for k in ('fc', 'classifier'))", [0]),
        ("not name.startswith(('head', 'fc'))", [2]),
        ("name.startswith(prefix)", []),  # who knows
        ("remove(name)", []),
    ],
)
def test_what_a_freezing_loop_meets(tmp_path: Path, condition: str, matches: list[int]) -> None:
    names = ["backbone.0.weight", "backbone.0.bias", "head.weight"]
    file = tmp_path / "train.py"
    text = FREEZING.replace("CONDITION", condition)
    file.write_text(text.replace("CALL", "freeze(model)"))
    assert [each.matches for each in freezing_loops(source_of(file), names)] == matches
    file.write_text(text.replace("CALL", "if args.freeze:\n    freeze(model)"))
    assert not [*freezing_loops(source_of(file), names)]


def test_a_setting_of_the_class_s_own_is_no_flag(ask) -> None:
    assert ask(FrozenSet, Setting).status is Status.PASS


def test_a_flag_on_what_is_frozen_passes(ask) -> None:
    def build() -> nn.Module:
        head = nn.Sequential(nn.Linear(12, 8).requires_grad_(False), nn.Linear(8, 5))
        head[0].requires_grad = False
        return head

    assert ask(FrozenSet, build).status is Status.PASS


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


FREEZES_IN_TRAIN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(12, 24), nn.Linear(24, 5)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.requires_grad_(False)
        return self

    def forward(self, x):
        return self.head(self.backbone(x).relu())

torch.manual_seed(0)
x = torch.randn(128, 12)
loader = DataLoader(TensorDataset(x, x[:, :5].argmax(1)), batch_size=32)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(3):
    BEFORE
    for x, y in loader:
        WITHIN
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def freezing_in_train(before: str = "pass", within: str = "pass") -> str:
    return FREEZES_IN_TRAIN.replace("BEFORE", before).replace("WITHIN", within)


def test_a_train_that_freezes_and_is_never_called_fails(ask_script) -> None:
    result = ask_script(FrozenSet, freezing_in_train())
    assert result.status is Status.FAIL
    assert "2 trained parameters" in result.message


def test_a_train_that_freezes_and_is_called_in_the_loop_passes(ask_script) -> None:
    for script in (
        freezing_in_train(before="model.train()"),
        freezing_in_train(within="model.train()"),
    ):
        assert ask_script(FrozenSet, script).status is Status.PASS
