"""What ``scripts/gpu`` can do without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("gpu_script", str(ROOT / "scripts" / "gpu"))
    spec = importlib.util.spec_from_loader("gpu_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_an_audit_in_this_process_changes_no_bit(script: ModuleType) -> None:
    assert script.bits("cpu") == []


def test_every_program_has_a_budget_and_together_they_end_in_time(script: ModuleType) -> None:
    assert set(script.BUDGETS) == {file.stem for file in script.PROGRAMS.glob("*.py")}
    assert sum(script.BUDGETS.values()) <= 6 * 60


def test_without_a_gpu_it_says_what_to_do(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="--device cpu"):
        script.main()
