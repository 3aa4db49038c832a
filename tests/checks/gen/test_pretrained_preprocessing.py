"""GEN104: real ImageNet filters, given photographs in one way and another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from photographs import Stem, crops, imagenet_weights, loader
from torch import Tensor, nn

from nnaudit.checks.gen.pretrained_preprocessing import MEAN, SD, PretrainedPreprocessing
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.script import run_script
from nnaudit.probes import loaded_weights
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def ask(pictures: Tensor, model: Any = Stem, weights: dict[str, Tensor] | None = None) -> Result:
    """Ask about a network of ``model`` that loads ``weights``; by default ImageNet's."""
    weights = imagenet_weights() if weights is None else weights

    def build_model() -> nn.Module:
        made = model()
        made.load_state_dict(weights, strict=False)
        return made

    target = Target(model=build_model, train_loader=loader(pictures))
    return run_check(PretrainedPreprocessing, Audit(DirectLoop(target, torch.device("cpu"), 0)))


@pytest.mark.parametrize("scale", [1.0, 255.0], ids=["not standardised", "not divided"])
def test_pictures_that_were_not_prepared_warn(scale: float) -> None:
    result = ask(crops() * scale)
    assert result.status is Status.WARN, result.message
    assert "Normalize" in result.fix
    assert ("/ 255" in result.fix) is (scale > 1)


def test_another_familys_standard_warns_and_names_this_ones() -> None:
    """These weights were trained on [-1, 1], not on ImageNet's mean and sd."""
    mean, sd = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SD))
    result = ask((crops() - mean) / sd)
    assert result.status is Status.WARN, result.message
    assert "0.5" in result.fix


@pytest.mark.parametrize("side", [64, 96, 224])
def test_pictures_as_the_network_wants_them_pass(side: int) -> None:
    assert ask(crops(side=side) * 2 - 1).status is Status.PASS


def test_pictures_prepared_within_the_network_pass() -> None:
    assert ask(crops(), lambda: Stem(0.5, 2.0)).status is Status.PASS


@pytest.mark.parametrize("contrast", [0.5, 0.8, 1.25])
def test_paler_and_brighter_pictures_pass(contrast: float) -> None:
    pictures = (crops() - 0.5) * contrast + 0.5
    assert ask(pictures.clamp(0, 1) * 2 - 1).status is Status.PASS


def test_a_checkpoint_of_ones_own_on_pictures_in_0_1_passes() -> None:
    torch.manual_seed(0)
    own = Stem()
    for _ in range(40):
        own(crops())
    assert ask(crops(), weights=own.state_dict()).status is Status.PASS


def test_a_network_from_scratch_is_skipped() -> None:
    target = Target(model=Stem, train_loader=loader(crops()))
    loop = DirectLoop(target, torch.device("cpu"), 0)
    assert run_check(PretrainedPreprocessing, Audit(loop)).status is Status.SKIP


class Patches(nn.Module):
    """A network without batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("prepared", "status"),
    [
        (lambda x: x, Status.WARN),
        (lambda x: x * 255, Status.WARN),
        (lambda x: x * 2 - 1, Status.PASS),
    ],
)
def test_without_a_record_torchvisions_description_decides(
    monkeypatch: pytest.MonkeyPatch, prepared: Any, status: Status
) -> None:
    class Weights(SimpleNamespace):
        def transforms(self) -> Any:
            return SimpleNamespace(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])

    real = loaded_weights.Watch
    monkeypatch.setattr(
        loaded_weights, "Watch", lambda: real(published=[Weights(name="IMAGENET1K_V1")])
    )
    state = Patches().state_dict()
    result = ask(prepared(crops()), Patches, state)
    assert result.status is status, result.message
    if status is Status.WARN:
        assert "transforms()" in result.fix


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 3),
)
model.load_state_dict(torch.load("{weights}"))
x = {scale} * torch.rand(64, 3, 16, 16)
loader = DataLoader(TensorDataset(x, torch.arange(64) % 3), batch_size=16, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(("scale", "status"), [(255, Status.WARN), (1, Status.PASS)])
def test_a_script_whose_checkpoint_recorded_pixels_in_0_1(
    tmp_path: Path, scale: int, status: Status
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    for _ in range(40):
        model(torch.rand(64, 3, 16, 16))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(weights=tmp_path / "weights.pt", scale=scale))
    result = run_script(
        path, [], "cpu", 0, lambda loop: run_check(PretrainedPreprocessing, Audit(loop))
    )
    assert result.status is status, result.message


def test_without_either_it_is_inconclusive() -> None:
    assert ask(crops(), Patches, Patches().state_dict()).status is Status.INCONCLUSIVE
