from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.loaded_weights import LoadedWeights, watching_loads
from nnaudit.targets import target as targets

PROGRAM = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def net(weights=None, pretrained=False):
    return nn.Linear(4, 2)

def build_model():
    return net({arguments})

def train_loader():
    x = torch.randn(32, 4)
    return DataLoader(TensorDataset(x, x[:, :2].argmax(1)), batch_size=8)
"""


@pytest.mark.parametrize(
    ("arguments", "loads"),
    [
        ("weights=None", False),
        ("pretrained = False", False),
        ("weights='DEFAULT'", True),
        ("pretrained=True", True),
    ],
)
def test_only_a_program_that_may_load_weights_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, loads: bool
) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.replace("{arguments}", arguments))
    loop = DirectLoop(targets.load(file), torch.device("cpu"), 0)
    begun: list[int] = []
    real = loop.relaunched

    def relaunched(seed: int) -> Any:
        begun.append(seed)
        return real(seed)

    monkeypatch.setattr(loop, "relaunched", relaunched)
    Audit(loop).probe(LoadedWeights)
    assert bool(begun) is loads


def test_weights_that_transformers_loads_are_seen(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, intermediate_size=8, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "user.py").write_text(
        "from transformers import BertForSequenceClassification\n"
        "def load(path):\n"
        "    return BertForSequenceClassification.from_pretrained(path)\n"
    )
    user = _module(tmp_path / "user.py")
    with watching_loads() as watch:
        user["load"](tmp_path / "bert")
    (loading,) = watch.loadings
    assert loading.changed == len(loading.taken) > 5
    assert list(loading.missing) == ["classifier.weight"]
    assert loading.location is not None
    assert loading.location.line == 3


def _module(path: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names
