"""DATA104: a recurrent state that is carried from batch to batch, and the order of these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnaudit.checks.data.shuffling import Shuffling
from nnaudit.probes.recurrent_states import is_carried
from nnaudit.report import Status
from support.verdicts import ask_script

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(160, 7, 3)
y = x.cumsum(1)[..., :1]
loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=SHUFFLE, drop_last=True)
lstm, head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)
net = nn.ModuleList([lstm, head])
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for epoch in range(3):
    state = None
    for a, b in loader:
        h, state = lstm(a, state)
        loss = nn.functional.mse_loss(head(h), b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = KEPT
"""


@pytest.mark.parametrize(
    ("shuffle", "kept", "status"),
    [
        ("True", "tuple(s.detach() for s in state)", Status.WARN),
        ("True", "None", Status.PASS),
        ("False", "tuple(s.detach() for s in state)", Status.PASS),
    ],
)
def test_a_state_over_rows_drawn_at_random(
    tmp_path: Path, shuffle: str, kept: str, status: Status
) -> None:
    source = SCRIPT.replace("SHUFFLE", shuffle).replace("KEPT", kept)
    result = ask_script(Shuffling, tmp_path / "train.py", source)
    assert result.status is status, result.message
    assert ("unrelated rows" in result.message) is (status is Status.WARN)


def test_what_is_carried() -> None:
    one, two = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    assert is_carried([(None, one), (one, two), (two, one)])
    assert not is_carried([(None, one), (one, two), (None, one)])
    assert not is_carried([(None, one), (torch.zeros(1, 4, 8), two)])
    assert not is_carried([(two, one), (two, one)])  # a learnt state to begin with
    assert not is_carried([(None, one), (one[:, :2], two)])
    assert not is_carried([(None, one), None])
    assert not is_carried([(None, one)])
