"""STEP111: updates that low-precision weights round away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.step.rounded_updates import RoundedUpdatesOfWeights
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.rounded_updates import RoundedUpdates
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def judged(seen: RoundedUpdates | None, dtype: torch.dtype = torch.bfloat16) -> Result:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=dtype))], 0.1)
    loop = SimpleNamespace(optimizers=(optimizer,), locate=lambda thing: None)
    audit = SimpleNamespace(probe=lambda probe: seen, loop=loop, options={})
    return RoundedUpdatesOfWeights().run(cast(Audit, audit))


def test_the_verdict_follows_the_share_that_is_lost() -> None:
    result = judged(RoundedUpdates("bfloat16", 48, 1000, 600, 500, 2e-5))
    assert result.status is Status.FAIL
    assert "83% of the weights stood still" in result.message
    assert judged(RoundedUpdates("bfloat16", 48, 1000, 600, 300, 2e-5)).status is Status.PASS
    few = RoundedUpdates("bfloat16", 48, 1000, 90, 90, 2e-5)
    assert judged(few).status is Status.INCONCLUSIVE
    assert judged(None).status is Status.INCONCLUSIVE
    assert judged(None, torch.float32).status is Status.SKIP


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(self.layers[0].weight.dtype)).float()


class Compensated(torch.optim.Optimizer):
    """Gradient descent that carries over what rounding has taken (Kahan summation)."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                carried = self.state[p].setdefault("carried", torch.zeros_like(p).float())
                wanted = p.float() - group["lr"] * p.grad.float() + carried
                p.copy_(wanted)
                carried.copy_(wanted - p.float())


def audited(optimizer: Any, *, low: bool = True) -> Result:
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    target = Target(
        (lambda: Net().bfloat16()) if low else Net,
        DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32),
        loss=F.cross_entropy,
        optimizer=optimizer,
    )
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    return run_check(RoundedUpdatesOfWeights, audit)


def test_small_updates_of_bfloat16_weights_fail() -> None:
    result = audited(lambda m: torch.optim.AdamW(m.parameters(), 5e-5, weight_decay=0.0))
    assert result.status is Status.FAIL, result.message
    assert "bfloat16" in result.message


def test_large_updates_compensated_ones_and_float32_do_not() -> None:
    assert audited(lambda m: torch.optim.AdamW(m.parameters(), 1e-2)).status is Status.PASS
    compensated = audited(lambda m: Compensated(m.parameters(), 0.01))
    assert compensated.status in (Status.PASS, Status.INCONCLUSIVE), compensated.message
    assert audited(lambda m: torch.optim.SGD(m.parameters(), 1e-4), low=False).status is Status.SKIP
