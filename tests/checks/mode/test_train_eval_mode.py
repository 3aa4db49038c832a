from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.mode.train_eval_mode import TrainEvalMode
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.script import run_script
from nnaudit.report import Result, Status
from nnaudit.targets.layers import mode_matters
from nnaudit.targets.target import Target
from support.verdicts import ask_script


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def audited(model: Callable[[], nn.Module] | nn.Module = net, **parts: Any) -> Result:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    target = Target(model, data, loss=parts.pop("loss", F.cross_entropy), **parts)
    return run_check(TrainEvalMode, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def step_in_eval(model: nn.Module, batch: Any) -> Tensor:
    model.eval()
    return F.cross_entropy(model(batch[0]), batch[1])


class StaysInEval(nn.Sequential):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class SwitchesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        self.eval()
        return self.body(x)


class TestFaults:
    def test_a_training_step_that_evaluates_fails(self) -> None:
        result = audited(training_step=step_in_eval)
        assert result.status is Status.FAIL
        assert "BatchNorm1d, Dropout" in result.message
        assert "model.train()" in result.fix

    @pytest.mark.parametrize("model", [lambda: StaysInEval(*net()), SwitchesItself])
    def test_a_model_that_puts_itself_to_sleep_fails(self, model) -> None:
        result = audited(model)
        assert result.status is Status.FAIL
        assert result.location is not None
        assert result.location.file == __file__

    def test_dropout_alone_counts(self) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
        assert audited(model, training_step=step_in_eval).status is Status.FAIL


class Frozen(nn.Module):
    """Its batch normalisations stay in eval mode; the rest follows the mode."""

    def __init__(self, freeze: bool, dropout: bool = True) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.last = nn.Sequential(nn.Dropout(0.5 if dropout else 0.0), nn.Linear(8, 3))
        if freeze:
            self.norm.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


class TestNearMisses:
    def test_frozen_batch_normalisation_is_a_warning(self) -> None:
        for dropout in (True, False):
            result = audited(lambda dropout=dropout: Frozen(freeze=False, dropout=dropout))
            assert result.status is Status.WARN
            assert result.module == "norm"

    def test_with_frozen_parameters_it_passes(self) -> None:
        assert audited(lambda: Frozen(freeze=True)).status is Status.PASS

    def test_a_frozen_backbone_in_eval_passes_with_its_dropout(self) -> None:
        class Tuned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = net().requires_grad_(False)
                self.head = nn.Sequential(nn.Dropout(), nn.Linear(3, 3))

            def train(self, mode: bool = True) -> nn.Module:
                super().train(mode)
                self.backbone.eval()
                return self

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.backbone(x))

        assert audited(Tuned).status is Status.PASS

    def test_half_asleep_is_a_warning(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            model[3].eval()
            return F.cross_entropy(model(batch[0]), batch[1])

        assert audited(training_step=step).status is Status.WARN

    def test_pseudo_labels_in_eval_before_or_after_the_step_pass(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            model.eval()
            with torch.no_grad():
                labels = model(batch[0]).argmax(1)
            model.train()
            loss = F.cross_entropy(model(batch[0]), labels)
            model.eval()
            with torch.no_grad():
                model(batch[0])
            return loss

        assert audited(training_step=step).status is Status.PASS

    def test_where_the_mode_does_not_matter_it_passes(self) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.0), nn.Linear(8, 3))
        result = audited(model, training_step=step_in_eval)
        assert result.status is Status.PASS
        assert "No module" in result.message


class TestHandedOverInEval:
    def test_random_weights_are_a_failure(self) -> None:
        assert audited(lambda: net().eval()).status is Status.FAIL

    def test_loaded_weights_are_a_note(self) -> None:
        state = net().state_dict()

        def loaded() -> nn.Module:
            model = net()
            model.load_state_dict(state)
            return model.eval()

        assert audited(loaded).status is Status.NOTE

    def test_an_object_is_a_note(self) -> None:
        assert audited(net().eval()).status is Status.NOTE

    def test_no_matter_where_it_does_not_matter(self) -> None:
        assert audited(lambda: nn.Sequential(nn.Linear(6, 3)).eval()).status is Status.PASS


def test_which_modules_the_mode_matters_to() -> None:
    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x

    matters = [
        nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1), nn.BatchNorm2d(3), Custom(),
        nn.LSTM(2, 2, 2, dropout=0.1), nn.InstanceNorm2d(3, track_running_stats=True), nn.RReLU(),
    ]  # fmt: skip
    not_so = [
        nn.Dropout(0.0), nn.LSTM(2, 2, 2), nn.MultiheadAttention(4, 2), nn.InstanceNorm2d(3),
        nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Linear(2, 2), nn.Sequential(nn.Dropout()),
        nn.BatchNorm2d(3, track_running_stats=False), nn.TransformerEncoderLayer(4, 2),
    ]  # fmt: skip
    assert all(mode_matters(module) for module in matters)
    assert not any(mode_matters(module) for module in not_so)


def test_a_step_that_breaks_off_after_the_model_ran_is_answered() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        raise KeyError("label")

    assert audited(loss=loss).status is Status.PASS


def test_one_that_breaks_off_before_is_an_error() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("label")

    assert audited(training_step=step).status is Status.ERROR


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(96, 6)
data = TensorDataset(x, x[:, :3].argmax(1))
held_out = TensorDataset(x[:32], x[:32, :3].argmax(1))
loader, val_loader = DataLoader(data, 16, shuffle=True), DataLoader(held_out, 32)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model.train()
for epoch in range(EPOCHS):
    EVERY_EPOCH
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        print(sum(float((model(a).argmax(1) == b).sum()) for a, b in val_loader))
"""


class TestScripts:
    """The commonest way into eval mode: validation, after which nobody goes back."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[..., Result]:
        def run(epochs: int, every_epoch: str, validation: str = "model.eval()") -> Result:
            path = tmp_path / "train.py"
            text = SCRIPT.replace("EPOCHS", str(epochs)).replace("EVERY_EPOCH", every_epoch)
            path.write_text(text.replace("model.eval()", validation))
            return run_script(
                path, [], "cpu", 0, lambda loop: run_check(TrainEvalMode, Audit(loop, seed=0))
            )

        return run

    def test_a_validation_that_leaves_eval_mode_behind_fails(self, run: Any) -> None:
        result = run(5, "pass")
        assert result.status is Status.FAIL
        assert "(Dropout) is in eval mode in training steps after the first epoch" in (
            result.message
        )
        assert "at the start of every epoch" in result.fix
        assert result.location.file.endswith("train.py")

    @pytest.mark.parametrize(("epochs", "every_epoch"), [(5, "model.train()"), (1, "pass")])
    def test_one_that_is_followed_by_train_or_by_nothing_passes(
        self, run: Any, epochs: int, every_epoch: str
    ) -> None:
        assert run(epochs, every_epoch).status is Status.PASS

    def test_a_validation_in_train_mode_fails(self, run: Any) -> None:
        result = run(5, "pass", "pass")
        assert result.status is Status.FAIL
        assert "(Dropout) is in train mode while the script validates" in result.message
        assert "model.eval()" in result.fix

    @pytest.mark.parametrize(
        "validation",
        [
            "model.eval(); model[2].train()",  # Monte Carlo dropout
            "val_loader = DataLoader(data, 32)",  # the score of the training set
            "val_loader = [(torch.randn(4, 6), 0)]",  # samples of a generator
        ],
    )
    def test_a_reason_for_train_mode_passes(self, run: Any, validation: str) -> None:
        assert run(5, "model.train()", validation).status is Status.PASS


WITHOUT_LOADER = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(96, 6)
y = x.argmax(1)
x_train, y_train, x_val, y_val = x[:64], y[:64], x[64:], y[64:]
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 6))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(9):
    model.train()
    order = torch.randperm(64)
    for i in range(0, 64, 8):
        rows = order[i : i + 8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[rows]), y_train[rows]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        print(float((model(x_val).argmax(1) == y_val).float().mean()))
"""


@pytest.mark.parametrize("modes", ["model.eval()", "pass"])
def test_a_validation_on_rows_of_no_loader(modes: str, ask_script: Any) -> None:
    result = ask_script(TrainEvalMode, WITHOUT_LOADER.replace("model.eval()", modes))
    assert result.status is (Status.FAIL if modes == "pass" else Status.PASS), result.message


AVERAGED = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(x[:32], x[:32, :3].argmax(1)), batch_size=16)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    model.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        average.update_parameters(model)
    model.eval()
    BETWEEN
"""

VALIDATED = "right = sum((average(a).argmax(1) == b).sum().item() for a, b in held_out)"


@pytest.mark.parametrize(
    ("between", "status"),
    [
        (f"with torch.no_grad(): {VALIDATED}", Status.FAIL),
        (f"average.eval(); {VALIDATED}", Status.PASS),
        ("with torch.no_grad(): [average(a) for a, _ in train]", Status.PASS),  # its statistics
    ],
)
def test_an_average_that_is_validated_in_train_mode(
    between: str, status: Status, tmp_path: Path
) -> None:
    source = AVERAGED.replace("BETWEEN", between)
    result = ask_script(TrainEvalMode, tmp_path / "train.py", source)
    assert result.status is status, result.message
