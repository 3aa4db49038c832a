"""PERF103: exact arithmetic where fast would do. The rules are tried without the hardware."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.perf.precision import Hardware, PrecisionChoice
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.precision import Precision
from nnaudit.report import Status
from nnaudit.targets.target import Target

MODERN, EXACT = (8, 0), True


def wide(width: int = 1024) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def judged(model: nn.Module, used: Precision, capability=MODERN, exact: bool = EXACT):
    return PrecisionChoice().judge(model, used, Hardware(capability, exact))


def test_exact_32_bits_on_a_modern_gpu_are_worth_a_note() -> None:
    result = judged(wide(), Precision())
    assert result.status is Status.NOTE
    assert "set_float32_matmul_precision" in result.fix


def test_what_is_already_fast_passes() -> None:
    assert judged(wide(), Precision(), exact=False).status is Status.PASS
    assert judged(wide(), Precision(), capability=(7, 5)).status is Status.PASS
    assert judged(wide(), Precision(autocasts={torch.bfloat16})).status is Status.PASS
    assert judged(wide().to(torch.bfloat16), Precision()).status is Status.PASS


def test_small_networks_pass() -> None:
    assert judged(wide(64), Precision()).status is Status.PASS


def test_awkward_sizes_in_16_bits_are_worth_a_note() -> None:
    result = judged(wide(1001), Precision(autocasts={torch.float16}))
    assert result.status is Status.NOTE
    assert "1001" in result.message


def test_without_cuda_it_does_not_apply() -> None:
    x = torch.randn(64, 8)
    target = Target(
        model=lambda: nn.Linear(8, 3),
        train_loader=DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16),
    )
    loop = DirectLoop(target, torch.device("cpu"), 0)
    assert run_check(PrecisionChoice, Audit(loop)).status is Status.SKIP
