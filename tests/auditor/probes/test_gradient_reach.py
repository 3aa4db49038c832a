from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.context import Audit
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.gradient_reach import STEPS, GradientReach, Reach
from nnaudit.targets.target import Target


def reach_of(model: Any, **parts: Any) -> tuple[Reach, DirectLoop]:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, torch.arange(64) % 3), batch_size=8)
    target = Target(model, data, loss=F.cross_entropy, **parts)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    return Audit(loop).probe(GradientReach), loop


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        self.aside = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


def test_a_healthy_program_costs_the_first_steps_only() -> None:
    reach, loop = reach_of(lambda: nn.Linear(5, 3))
    assert (reach.parameters, reach.reached, reach.blocks) == (2, 2, ())
    assert loop.steps_taken == 5


def test_neighbours_without_gradient_are_one_block() -> None:
    reach, loop = reach_of(Net)
    blocks = {block.name: block for block in reach.blocks}
    assert set(blocks) == {"body", "aside"}
    assert len(blocks["body"].parameters) == 4
    assert (blocks["body"].called, blocks["body"].moves_loss) == (True, True)
    assert (blocks["aside"].called, blocks["aside"].moves_loss) == (False, False)
    assert loop.steps_taken == 5 + STEPS


def test_the_state_is_put_back() -> None:
    before: dict[str, Tensor] = {}

    def model() -> nn.Module:
        made = Net()
        if not before:  # it may be made anew
            before.update({n: p.detach().clone() for n, p in made.named_parameters()})
        return made

    _, loop = reach_of(model)
    assert all(torch.equal(p, before[n]) for n, p in loop.model.named_parameters())


def test_parameters_without_an_optimizer_are_no_concern() -> None:
    reach, _ = reach_of(Net, optimizer=lambda m: torch.optim.SGD(m.head.parameters(), lr=0.1))
    assert (reach.parameters, reach.blocks) == (2, ())
