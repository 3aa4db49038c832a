"""A check of a third party, installed as a package, is asked like nnaudit's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[1] / "assets"

TARGET = """
import torch
from torch import nn

def build_model():
    return nn.Linear(40, 30)

def train_loader():
    return [(torch.randn(8, 40), torch.randn(8, 30)) for _ in range(4)]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the package beside the environment, and return variables that make it seen."""
    pytest.importorskip("setuptools", reason="nothing here can build a package")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ASSETS / "plugin", folder / "source")
    words = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, folder / "site", folder / "source"],
        check=True,
    )
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def nnaudit(folder: Path, environment: dict[str, str], *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nnaudit", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_check_is_asked_and_configured(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    (tmp_path / "model.py").write_text(TARGET)
    words = ("model.py", "--select", "HOUSE", "--device", "cpu", "-o", "report.json")
    code, said = nnaudit(tmp_path, installed, *words)
    (result,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert (code, result["code"], result["status"]) == (1, "HOUSE101", "fail"), said
    assert result["message"] == "The network has 1230 parameters, the house allows 1000."
    (tmp_path / "pyproject.toml").write_text("[tool.nnaudit.thresholds.HOUSE101]\nlimit = 2000")
    code, said = nnaudit(tmp_path, installed, *words)
    assert code == 0, said


@pytest.mark.slow
def test_an_installed_check_explains_itself(tmp_path: Path, installed: dict[str, str]) -> None:
    code, said = nnaudit(tmp_path, installed, "rule", "parameter-budget")
    assert code == 0
    assert "our devices have little memory" in said
    assert '[tool.nnaudit.thresholds."HOUSE101"]' in said
