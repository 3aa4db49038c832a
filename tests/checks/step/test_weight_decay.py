"""STEP110: weight decay that is not what it seems, or too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from author import ask, target
from torch import nn

from nnaudit.checks.step.weight_decay import WeightDecay
from nnaudit.measure.decayed_names import unmet_names
from nnaudit.report import Status
from nnaudit.targets.source import source_of
from support.verdicts import ask_script


def decay(optimizer: type[torch.optim.Optimizer], amount: float, lr: float = 1e-3) -> Any:
    return target(optimizer=lambda m: optimizer(m.parameters(), lr=lr, weight_decay=amount))


@pytest.mark.parametrize(
    "what",
    [
        decay(torch.optim.Adam, 0.01),
        decay(torch.optim.Adam, 0.1),
        decay(torch.optim.RMSprop, 0.05),
        decay(torch.optim.SGD, 0.5, 0.1),
        decay(torch.optim.AdamW, 20.0),
    ],
    ids=["Adam 0.01", "Adam 0.1", "RMSprop", "SGD 0.5", "AdamW 20"],
)
def test_decay_that_is_not_meant_warns(what: Any) -> None:
    result = ask(WeightDecay, what)
    assert result.status is Status.WARN
    assert "weight_decay" in result.fix


def groups(m: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in m.parameters() if p.ndim > 1]
    rest = [p for p in m.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    )


@pytest.mark.parametrize(
    "what",
    [
        decay(torch.optim.AdamW, 0.01),
        decay(torch.optim.AdamW, 0.0),
        decay(torch.optim.Adam, 5e-4),
        decay(torch.optim.SGD, 5e-4, 0.1),
        target(optimizer=groups),
        target(optimizer=lambda m: torch.optim.LBFGS(m.parameters())),
        target(
            optimizer=lambda m: torch.optim.Adam(
                m.parameters(), weight_decay=0.01, decoupled_weight_decay=True
            )
        ),
    ],
)
def test_usual_decays_pass(what: Any) -> None:
    assert ask(WeightDecay, what).status is Status.PASS


def test_strong_decay_of_biases_is_noted() -> None:
    assert ask(WeightDecay, decay(torch.optim.AdamW, 0.3)).status is Status.NOTE


def test_a_default_optimizer_is_skipped() -> None:
    assert ask(WeightDecay, target(optimizer=None)).status is Status.SKIP


@pytest.mark.parametrize(
    ("listed", "unmet"),
    [
        ('["bias", "LayerNorm.weight"]', ["LayerNorm.weight"]),
        ('("bias", "ln_1", "ln_f")', []),
        ('{"bias", "ln_1.weight", "norm"}', ["norm"]),
        ('["LayerNorm.bias", "LayerNorm.weight"]', []),  # of another network
        ('["weight", "LayerNorm"]', []),  # no list of what is left out of decay
        ('["bias", 3]', []),
    ],
)
def test_names_that_no_parameter_has(tmp_path: Path, listed: str, unmet: list[str]) -> None:
    file = tmp_path / "train.py"
    file.write_text(f"no_decay = {listed}\n")
    names = ["h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.mlp.weight", "ln_f.weight"]
    assert [each.name for each in unmet_names(source_of(file), names)] == unmet


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(96, 6)
train = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
no_decay = LISTED
rest = {n: p for n, p in model.named_parameters() if any(part in n for part in no_decay)}
groups = [
    {"params": [p for n, p in model.named_parameters() if n not in rest], "weight_decay": 0.01},
    {"params": list(rest.values()), "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=1e-3)
for epoch in range(4):
    for inputs, labels in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("listed", "status"),
    [
        ('["bias", "LayerNorm.weight"]', Status.WARN),
        ('["bias", "1.weight"]', Status.PASS),
        ('["bias", "1.weight", "LayerNorm.weight"]', Status.PASS),  # for several networks
        ('["bias"]', Status.PASS),
    ],
)
def test_gains_that_go_by_another_name(tmp_path: Path, listed: str, status: Status) -> None:
    source = SCRIPT.replace("LISTED", listed)
    result = ask_script(WeightDecay, tmp_path / "train.py", source)
    assert result.status is status, result.message
