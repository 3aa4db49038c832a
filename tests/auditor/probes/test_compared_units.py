"""Predictions and targets that validation compares in one unit, and in two (GEN105)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.checks.data.split_shift import SplitShift
from nnaudit.checks.gen.metric import MetricMeaning
from nnaudit.report import Status
from support.verdicts import ask_script

SCRIPT = """
import torch
from sklearn.metrics import mean_absolute_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(640, 4)
price = 400 + 150 * (x @ torch.tensor([1.0, 0.5, 0.0, -1.0]))[:, None]
mean, std = price[:512].mean(), price[:512].std()
scaled = (price - mean) / std
train = DataLoader(TensorDataset(x[:512], scaled[:512]), 32, shuffle=True)
val = DataLoader(TensorDataset(x[512:], {held}[512:]), 64)
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

def rmse(predicted, truth):
    return (predicted - truth).square().mean().sqrt().item()

for epoch in range(3):
    model.train()
    for a, b in train:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(a), b).backward()
        optimizer.step()
    model.eval()
    outputs, truths = [], []
    with torch.no_grad():
        for a, b in val:
            outputs.append(model(a))
            truths.append(b)
        output, truth = torch.cat(outputs), torch.cat(truths)
        print({metric})
"""

SKLEARN = "mean_absolute_error(truth.numpy(), {}.numpy())"
OWN = "rmse({}, truth)"
LOSS = "nn.functional.l1_loss({}, truth).item()"


@pytest.mark.parametrize("metric", [SKLEARN, OWN, LOSS])
@pytest.mark.parametrize(
    ("held", "given", "fails"),
    [
        ("price", "output", True),
        ("scaled", "(output * std + mean)", True),
        ("price", "(output * std + mean)", False),
        ("scaled", "output", False),
    ],
)
def test_units_in_validation(
    tmp_path: Path, metric: str, held: str, given: str, fails: bool
) -> None:
    source = SCRIPT.format(held=held, metric=metric.format(given))
    result = ask_script(MetricMeaning, tmp_path / "train.py", source)
    assert (result.status is Status.FAIL) is fails, result.message
    assert not fails or "two units" in result.message


@pytest.mark.parametrize(
    ("given", "status"), [("(output * std + mean)", Status.PASS), ("output", Status.FAIL)]
)
def test_targets_that_validation_keeps_in_their_unit(
    tmp_path: Path, given: str, status: Status
) -> None:
    """DATA109: predictions may be scaled back, and then compared with targets as they were."""
    source = SCRIPT.format(held="price", metric=SKLEARN.format(given))
    assert ask_script(SplitShift, tmp_path / "train.py", source).status is status


WITHIN = """        print({metric})
"""


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("(output - truth).abs().mean()", ""),
        ("(9 * output + 7 - (9 * truth + 7)).abs().mean()", ""),
        ("(output - (9 * truth + 7)).abs().mean()", "two units"),
        ("(output - truth.flip(1)).abs().mean()", "in another order"),
        ("(output - truth.flip(0)).abs().mean()", ""),  # rows of validation with one another
    ],
)
def test_differences_that_validation_takes(tmp_path: Path, metric: str, said: str) -> None:
    source = SCRIPT.format(held="scaled", metric=metric)
    source = source.replace("nn.Linear(16, 1)", "nn.Linear(16, 2)").replace(
        "scaled = (price - mean) / std", "scaled = torch.cat([(price - mean) / std, x[:, :1]], 1)"
    )
    source = source.replace(WITHIN.format(metric=metric), WITHIN.format(metric=metric)[4:])
    result = ask_script(MetricMeaning, tmp_path / "train.py", source)
    assert (result.status is Status.FAIL) is bool(said), result.message
    assert said in result.message
