"""Healthy programs built in unusual ways: no check of the wiring may fail, few may warn.

Every check of the families INIT, LOSS, GRAD, STEP, MODE and NORM that takes a handful of steps is
asked about each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.registry import Registry
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.targets.target import Target

CHECKS = [
    check
    for check in Registry.load().select(["INIT", "LOSS", "GRAD", "STEP", "MODE", "NORM"])
    if not check.trains
]

X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
CLASSES = X[:, :3].argmax(1)
AMOUNTS = X[:, :1] - X[:, 1:2] ** 2


def loader(*tensors: Tensor, batch: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=True, **options)


def mlp(inputs: int = 8, outputs: int = 3, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)


def whole(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


# --- samples that see each other --------------------------------------------------------------


def row_attention() -> Target:
    class Saint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = (
                nn.Parameter(torch.randn(8, 8) / 3),
                nn.Parameter(torch.zeros(8)),
            )
            self.columns = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.rows = nn.TransformerEncoderLayer(64, 2, 32, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.columns(x[..., None] * self.scale + self.shift)
            h = self.rows(h.reshape(1, len(x), 64)).reshape(h.shape)
            return self.head(h[:, 0])

    return Target(Saint, loader(X, CLASSES), optimizer=whole)


def memory_of_the_batch() -> Target:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(8, 16), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            others = (h @ h.T / 4).masked_fill(torch.eye(len(h), dtype=torch.bool), -1e9)
            return self.head(torch.cat([h, others.softmax(1) @ h], 1))

    return Target(Memory, loader(X, CLASSES), optimizer=whole)


def redundancy_reduction() -> Target:
    class Barlow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
            self.project = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16, affine=False))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.project(self.body(a)).T @ self.project(self.body(b)) / len(a)

    def step(model: nn.Module, batch: Any) -> Tensor:
        correlation = model(noisy(batch[0]), noisy(batch[0]))
        diagonal = torch.diagonal(correlation)
        off = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + 0.005 * off

    return Target(Barlow, loader(X, batch=32), training_step=step, optimizer=adam)


# --- parts without a gradient -----------------------------------------------------------------


def straight_through_codes() -> Target:
    class VectorQuantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.codes, self.decode = mlp(8, 4), nn.Embedding(16, 4), mlp(4, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.encode(x)
            q = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
            commitment = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            return self.decode(z + (q - z).detach()), commitment

    def loss(output: Any, x: Tensor) -> Tensor:
        return F.mse_loss(output[0], x) + output[1]

    return Target(VectorQuantised, loader(X), loss=loss, optimizer=whole)


class Momentum(nn.Module):
    """An encoder, a copy that follows it, and a queue of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query = mlp(8, 8)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(32, 8), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        q = F.normalize(self.query(a), dim=1)
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
                key.lerp_(query, 0.01)
            k = F.normalize(self.key(b), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().T], 1) / 0.2
        if self.training:
            start = int(self.place)
            self.queue[start : start + len(k)] = k
            self.place.add_(len(k)).remainder_(32)
        return logits


def momentum_contrast() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        logits = model(noisy(batch[0]), noisy(batch[0]))
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    return Target(Momentum, loader(X), training_step=step, optimizer=adam)


class Agent(nn.Module):
    """Action values, and the older ones that they are compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.values = mlp()
        self.target = copy.deepcopy(self.values)


def bellman(model: nn.Module, batch: Any) -> Tensor:
    state, action, reward, after = batch
    with torch.no_grad():
        worth = reward + 0.9 * model.target(after).amax(1)  # type: ignore[operator]
    taken = model.values(state).gather(1, action[:, None]).squeeze(1)  # type: ignore[operator]
    return F.smooth_l1_loss(taken, worth)


def target_network() -> Target:
    data = loader(X, CLASSES, torch.randn(128), torch.randn(128, 8))
    return Target(Agent, data, training_step=bellman, optimizer=lambda m: adam(m.values))


def target_network_in_the_optimizer() -> Target:
    data = loader(X, CLASSES, torch.randn(128), torch.randn(128, 8))
    return Target(Agent, data, training_step=bellman, optimizer=whole)


def features_in_eval_mode() -> Target:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
            self.head = nn.Linear(32, 3)

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.body.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)

    return Target(Features, loader(X, CLASSES), optimizer=whole)


def surrogate_gradient() -> Target:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x > 0).float()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient / (1 + 10 * ctx.saved_tensors[0].abs()) ** 2

    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            potential, total = torch.zeros(len(x), 64), torch.zeros(len(x), 3)
            for _ in range(6):
                potential = 0.9 * potential + self.first(x)
                spike = Spike.apply(potential - 1)
                potential = potential - spike
                total = total + self.last(spike)
            return total / 6

    return Target(Spiking, loader(X, CLASSES), optimizer=adam)


# --- losses -----------------------------------------------------------------------------------


def losses_of_the_model() -> Target:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.box = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 4)

        def forward(self, rows: Any, answers: Any = None) -> Any:
            h = self.body(torch.stack(list(rows))).relu()
            if not self.training:
                return [
                    {"boxes": b, "scores": k}
                    for b, k in zip(self.box(h), self.kind(h), strict=True)
                ]
            kinds = torch.stack([answer["kind"] for answer in answers])
            boxes = torch.stack([answer["box"] for answer in answers])
            return {
                "kind": F.cross_entropy(self.kind(h), kinds),
                "box": F.smooth_l1_loss(self.box(h), boxes),
            }

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, i: int) -> Any:
            return X[i], {"kind": CLASSES[i], "box": X[i, :4]}

    data: DataLoader[Any] = DataLoader(
        Rows(), batch_size=8, shuffle=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )

    def step(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack(list(model(*batch).values())).sum()

    return Target(Detector, data, training_step=step, optimizer=sgd)


def auxiliary_head_in_training_only() -> Target:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.early = mlp(8, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Any:
            h = self.body(x).relu()
            return (self.head(h), self.early(h)) if self.training else self.head(h)

    def loss(output: Any, y: Tensor) -> Tensor:
        if isinstance(output, tuple):
            return F.cross_entropy(output[0], y) + 0.3 * F.cross_entropy(output[1], y)
        return F.cross_entropy(output, y)

    return Target(Two, loader(X, CLASSES), loss=loss, optimizer=adam)


def variance_weighted_likelihood() -> Target:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        mean, variance = output[:, :1], F.softplus(output[:, 1:]) + 1e-4
        each = F.gaussian_nll_loss(mean, y, variance, reduction="none")
        return (each * variance.detach() ** 0.5).mean()

    return Target(lambda: mlp(8, 2), loader(X, AMOUNTS), loss=loss, optimizer=adam)


def partial_likelihood() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, time, event = batch
        order = time.argsort(descending=True)
        risk, event = model(x).squeeze(1)[order], event[order]
        return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum().clamp(min=1)

    data = loader(X, torch.rand(128), (torch.rand(128) < 0.7).float())
    return Target(lambda: mlp(8, 1), data, training_step=step, optimizer=adam)


def differential_equation() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        t = batch[0].requires_grad_()
        u = model(t)
        slope = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        return (slope + u).square().mean() + (model(torch.zeros(1, 1)) - 1).square().mean()

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    return Target(model, loader(torch.rand(128, 1)), training_step=step, optimizer=adam)


def normalising_flow() -> Target:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList(mlp(4, 8) for _ in range(3))
            for net in self.nets:
                nn.init.zeros_(net[2].weight)  # type: ignore[index]

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            volume = torch.zeros(len(x))
            for net in self.nets:
                a, b = x.chunk(2, 1)
                scale, shift = net(a).chunk(2, 1)
                x = torch.cat([b * scale.tanh().exp() + shift, a], 1)
                volume = volume + scale.tanh().sum(1)
            return x, volume

    def loss(output: Any, x: Tensor) -> Tensor:
        return (output[0].square().sum(1) / 2 - output[1]).mean()

    return Target(Flow, loader(X), loss=loss, optimizer=adam)


# --- steps that the program takes itself -------------------------------------------------------


def critic_with_gradient_penalty() -> Target:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.critic = mlp(4, 8), mlp(8, 1)

    def step(model: Any, batch: Any, optimizers: Any) -> Tensor:
        real, (first, second) = batch[0], optimizers
        fake = model.generator(torch.randn(len(real), 4)).detach()
        between = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        slope = torch.autograd.grad(model.critic(between).sum(), between, create_graph=True)[0]
        penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
        loss = model.critic(fake).mean() - model.critic(real).mean() + penalty
        second.zero_grad()
        loss.backward()
        second.step()
        first.zero_grad()
        (-model.critic(model.generator(torch.randn(len(real), 4))).mean()).backward()
        first.step()
        return loss

    def optimizers(model: Any) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(m.parameters(), 1e-4) for m in (model.generator, model.critic)]

    return Target(Both, loader(X), training_step=step, optimizer=optimizers)


def sharpness_aware() -> Target:
    def step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
        x, y = batch
        parameters = list(model.parameters())
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        size = torch.stack([g.norm() for g in gradients]).norm()
        moves = [0.05 * g / size for g in gradients]
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move)
        optimizer.step()
        return loss

    return Target(mlp, loader(X, CLASSES), training_step=step, optimizer=sgd)


def accumulated_and_clipped() -> Target:
    def step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        total = 0.0
        for x, y in zip(*(part.chunk(4) for part in batch), strict=True):
            loss = F.cross_entropy(model(x), y) / 4
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    return Target(mlp, loader(X, CLASSES), training_step=step, optimizer=sgd)  # type: ignore[arg-type]


def inner_loop() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        half, weights = len(x) // 2, dict(model.named_parameters())
        inner = F.cross_entropy(torch.func.functional_call(model, weights, x[:half]), y[:half])
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, fast, x[half:]), y[half:])

    return Target(mlp, loader(X, CLASSES), training_step=step, optimizer=adam)


# --- modules ----------------------------------------------------------------------------------


def scripted() -> Target:
    return Target(lambda: torch.jit.script(mlp()), loader(X, CLASSES), optimizer=adam)


def pruned() -> Target:
    def model() -> nn.Module:
        made = mlp()
        prune.l1_unstructured(made[0], "weight", 0.5)
        return made

    return Target(model, loader(X, CLASSES), optimizer=adam)


def reentrant_checkpointing() -> Target:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = mlp(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def part(self, h: Tensor) -> Tensor:
            return F.dropout(self.middle(h).relu(), 0.1, self.training)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.part, self.first(x), use_reentrant=True))

    return Target(Saving, loader(X, CLASSES), optimizer=adam)


def weights_made_by_a_network() -> Target:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.weights = nn.Parameter(torch.randn(4) / 4), nn.Linear(4, 24)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weights(self.code).view(3, 8))

    return Target(Hyper, loader(X, CLASSES), optimizer=adam)


def bags_of_instances() -> Target:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.weigh, self.head = mlp(8, 16), nn.Linear(16, 1), nn.Linear(16, 1)

        def forward(self, bag: Tensor) -> Tensor:
            h = self.embed(bag[0])
            return self.head((self.weigh(h).softmax(0) * h).sum(0, keepdim=True)).squeeze(1)

    bags = torch.randn(40, 7, 8, generator=torch.Generator().manual_seed(3))
    data = loader(bags, (bags.amax((1, 2)) > 2.2).float(), batch=1)
    loss = F.binary_cross_entropy_with_logits
    return Target(Bag, data, loss=loss, optimizer=adam)


def one_class() -> Target:
    return Target(mlp, loader(X, torch.zeros(128).long()), loss=F.cross_entropy, optimizer=adam)


def nothing_to_train() -> Target:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3]

    return Target(First, loader(X, CLASSES), loss=F.cross_entropy)


PROGRAMS: dict[Callable[[], Target], tuple[str, ...]] = {
    row_attention: ("GRAD103",),
    memory_of_the_batch: ("GRAD103",),
    redundancy_reduction: (),
    straight_through_codes: (),
    momentum_contrast: ("MODE103",),
    target_network: ("MODE108",),
    target_network_in_the_optimizer: ("GRAD107",),
    features_in_eval_mode: ("GRAD107",),
    surrogate_gradient: (),
    losses_of_the_model: (),
    auxiliary_head_in_training_only: (),
    variance_weighted_likelihood: (),
    partial_likelihood: (),
    differential_equation: (),
    normalising_flow: (),
    critic_with_gradient_penalty: (),
    sharpness_aware: (),
    accumulated_and_clipped: (),
    inner_loop: (),
    scripted: (),
    pruned: (),
    reentrant_checkpointing: (),
    weights_made_by_a_network: (),
    bags_of_instances: (),
    one_class: (),
    nothing_to_train: (),
}
"""Each program, and the checks that warn of it: what they say is true, and may be meant."""


@pytest.mark.parametrize(
    ("program", "warned"),
    [
        pytest.param(
            program,
            codes,
            id=program.__name__,
            marks=pytest.mark.slow if program is row_attention else (),
        )
        for program, codes in PROGRAMS.items()
    ],
)
def test_no_check_of_the_wiring_fails(
    program: Callable[[], Target], warned: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    audit = Audit(DirectLoop(program(), torch.device("cpu"), seed=0))
    results = [run_check(check, audit) for check in CHECKS]
    broken = (Status.FAIL, Status.ERROR)
    assert [(r.code, r.message) for r in results if r.status in broken] == []
    assert {r.code for r in results if r.status is Status.WARN} <= set(warned)
