from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.reseeded import differing_weights
from nnaudit.targets.target import Target

LOADED = torch.nn.Linear(4, 5).state_dict()


def build() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    model[0].load_state_dict(LOADED)
    return model


def test_random_weights_follow_the_seed_and_loaded_ones_do_not() -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8).long()), batch_size=4)
    loop = DirectLoop(Target(build, loader), torch.device("cpu"), seed=0)
    with loop.relaunched(1) as other:
        found = differing_weights(loop, other)
    # The gains and biases of the normalisation are the same under any seed, and say nothing.
    assert found == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}
