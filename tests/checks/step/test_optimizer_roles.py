"""STEP113: two optimizers, and who trains whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nnaudit.checks.grad.optimizer_coverage import OptimizerCoverage
from nnaudit.checks.step.optimizer_roles import OptimizerRoles
from nnaudit.probes.adversaries import Adversaries, Round, way_of
from nnaudit.probes.gradient_origins import (
    Doubled,
    GradientOrigins,
    Leftover,
    Origins,
    SharedGradient,
    outputs_alone,
)
from nnaudit.report import Result, Status
from support.programs import target
from support.verdicts import verdict

HEALTHY = Origins(("Adam", "Adam"), ("generator", "critic"), (4, 4))
SHARED = SharedGradient(0, 1, 4, contained=True, cosine=0.1, downstream=True, location=None)
LEFT = Leftover(0, 1, cosine=-0.9, share=1.0, location=None)


def judged(origins: Origins, *rounds: Round) -> Result:
    pair = target(optimizer=lambda m: [torch.optim.Adam(p.parameters()) for p in (m[0], m[-1])])
    return verdict(OptimizerRoles, {GradientOrigins: origins, Adversaries: rounds}, target=pair)


def test_each_with_its_own_passes() -> None:
    assert judged(HEALTHY).status is Status.PASS
    assert judged(Origins()).status is Status.SKIP
    assert judged(replace(HEALTHY, steps=(0, 4))).status is Status.INCONCLUSIVE


def test_a_generator_that_steps_its_critic_fails() -> None:
    result = judged(replace(HEALTHY, shared=(SHARED,) * 4))
    assert result.status is Status.FAIL
    assert "4 tensors that the optimizer of critic trains" in result.message


def test_a_generator_that_is_told_that_its_outputs_are_fake_fails() -> None:
    against = Round(1, 0, real=1, made=-1, through=1, location=None)
    with_it = replace(against, through=-1)
    result = judged(HEALTHY, *[with_it] * 4)
    assert result.status is Status.FAIL
    assert "both lower what the first network says" in result.message
    assert judged(HEALTHY, *[against] * 4).status is Status.PASS
    assert judged(HEALTHY, with_it, against, with_it).status is Status.PASS
    assert judged(HEALTHY, with_it).status is Status.PASS


def test_what_an_opponents_loss_left_fails_whatever_its_angle() -> None:
    aside = replace(LEFT, optimizer=1, other=0, cosine=0.05)
    against = Round(1, 0, real=1, made=-1, through=1, location=None)
    left = replace(HEALTHY, leftovers=(aside,) * 4)
    result = judged(left, *[against] * 4)
    assert result.status is Status.FAIL
    assert "the other way (cosine 0.05)" in result.message
    assert judged(left).status is Status.PASS
    assert judged(left, against, replace(against, through=-1, made=-1)).status is Status.PASS


def test_two_optimizers_that_step_on_one_gradient_of_the_same_parameters_warn() -> None:
    result = judged(replace(HEALTHY, doubled=(Doubled(0, 1, 6, None),) * 4))
    assert result.status is Status.WARN
    assert "6 tensors are held by" in result.message


@pytest.mark.parametrize(
    ("gradient", "way"),
    [([0.5, 1.0], -1), ([-0.5, -1.0], 1), ([1.0, -1.0], 0), ([0.0, 0.0], None)],
)
def test_which_way_a_gradient_pulls(gradient: list[float], way: int | None) -> None:
    assert way_of(torch.tensor(gradient)) == way


def test_an_optimizer_of_what_stays_frozen_warns() -> None:
    result = judged(replace(HEALTHY, frozen=(1,)))
    assert result.status is Status.WARN
    assert "optimizer of critic" in result.message


def test_an_optimizer_that_no_loss_reaches_fails() -> None:
    result = judged(replace(HEALTHY, unreached=(0,)))
    assert result.status is Status.FAIL
    assert "optimizer of generator" in result.message and "no loss reaches it" in result.message
    assert judged(replace(HEALTHY, unreached=(0,), steps=(1, 4))).status is Status.INCONCLUSIVE


def test_parameters_shared_by_two_tasks_pass() -> None:
    beside = replace(SHARED, downstream=False, contained=False)
    assert judged(replace(HEALTHY, shared=(beside,) * 4)).status is Status.PASS
    # Once in a while two losses disagree.
    apart = replace(beside, cosine=-0.5)
    assert judged(replace(HEALTHY, shared=(beside, apart, apart))).status is Status.PASS
    assert judged(replace(HEALTHY, shared=(apart,) * 3)).status is Status.FAIL
    assert judged(replace(HEALTHY, shared=(apart,))).status is Status.PASS


def test_a_gradient_left_over_of_the_opponents_loss_fails() -> None:
    result = judged(replace(HEALTHY, leftovers=(LEFT,) * 4))
    assert result.status is Status.FAIL
    assert "cosine -0.90" in result.message
    assert "detach()" in result.fix
    agrees = replace(LEFT, cosine=0.2)
    assert judged(replace(HEALTHY, leftovers=(agrees,) * 4)).status is Status.PASS
    assert judged(replace(HEALTHY, leftovers=(LEFT,) * 2)).status is Status.PASS


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 8) * 0.3 + 1
loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
D = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
g_opt = torch.optim.Adam(G.parameters(), 1e-3)
d_opt = torch.optim.Adam(D_OWNS.parameters(), 1e-3)
bce = nn.functional.binary_cross_entropy_with_logits
for epoch in range(3):
    for (real,) in loader:
        one, zero = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        FIRST
        fake = G(torch.randn(len(real), 4))
        d_loss = bce(D(real), one) + bce(D(FAKE), zero)
        d_opt.zero_grad()
        d_loss.backward(retain_graph=True)
        d_opt.step()
        LATER
        g_loss = bce(D(fake), one)
        g_loss.backward()
        g_opt.step()
"""


@pytest.mark.parametrize(
    ("first", "fake", "later", "status"),
    [
        ("g_opt.zero_grad()", "fake", "pass", Status.FAIL),
        ("g_opt.zero_grad()", "fake.detach()", "pass", Status.PASS),
        ("pass", "fake", "g_opt.zero_grad()", Status.PASS),
    ],
)
def test_a_script_with_two_networks(
    first: str, fake: str, later: str, status: Status, ask_script: Any
) -> None:
    source = SCRIPT.replace("FIRST", first).replace("FAKE", fake).replace("LATER", later)
    result = ask_script(OptimizerRoles, source.replace("D_OWNS", "D"))
    assert result.status is status, result.message


# An expert that no row was sent to; an encoder that is to be trained later.
@pytest.mark.parametrize("fake", ["", "torch.randn(len(real), 8)", "frozen(len(real))"])
def test_a_script_whose_generator_gets_no_gradient(fake: str, ask_script: Any) -> None:
    source = SCRIPT.replace("FIRST", "pass").replace("FAKE", "fake.detach()")
    source = source.replace("LATER", "pass").replace("D_OWNS", "D")
    source = source.replace("bce(D(fake), one)", "bce(D(fake.detach()), one)")
    if fake:
        frozen = "def frozen(n):\n    with torch.no_grad():\n        return G(torch.randn(n, 4))\n"
        source = source.replace("fake = G(torch.randn(len(real), 4))", f"fake = {fake}")
        source = source.replace("for epoch", f"{frozen}for epoch", 1)
    result = ask_script(OptimizerRoles, source)
    assert result.status is (Status.PASS if fake else Status.FAIL), result.message


def test_a_script_whose_generator_learns_to_be_told_apart(ask_script: Any) -> None:
    source = SCRIPT.replace("FIRST", "g_opt.zero_grad()").replace("FAKE", "fake.detach()")
    source = source.replace("LATER", "pass").replace("D_OWNS", "D")
    result = ask_script(OptimizerRoles, source.replace("bce(D(fake), one)", "bce(D(fake), zero)"))
    assert result.status is Status.FAIL, result.message
    assert "both lower" in result.message


BOTH = "[*G.parameters(), *D.parameters()]"
THIRD = """
        i_opt.zero_grad()
        (D(G(torch.randn(16, 4))) - real[:, :1]).pow(2).mean().backward()
        i_opt.step()
"""


@pytest.mark.parametrize("informs", [False, True])
def test_a_generators_optimizer_that_holds_the_critic(informs: bool, ask_script: Any) -> None:
    source = SCRIPT.replace("FIRST", "pass").replace("FAKE", "fake.detach()")
    source = source.replace("LATER", "g_opt.zero_grad()").replace("D_OWNS", "D")
    if informs:  # a third loss, of both networks, with an optimizer for both
        source = source.replace("bce =", f"i_opt = torch.optim.Adam({BOTH}, 1e-3)\nbce =") + THIRD
    else:
        source = source.replace("G.parameters()", BOTH, 1)
    result = ask_script(OptimizerRoles, source)
    assert result.status is (Status.PASS if informs else Status.FAIL), result.message


def test_a_network_that_both_optimizers_leave_out_fails(ask_script: Any) -> None:
    source = SCRIPT.replace("FIRST", "g_opt.zero_grad()").replace("FAKE", "fake.detach()")
    result = ask_script(OptimizerCoverage, source.replace("LATER", "pass").replace("D_OWNS", "G"))
    assert result.status is Status.FAIL, result.message
    assert "drawn at random" in result.message


def test_a_critic_that_is_made_to_praise_fails() -> None:
    praised = replace(LEFT, cosine=0.1, maximised=True)
    result = judged(replace(HEALTHY, leftovers=(praised,) * 4))
    assert result.status is Status.FAIL
    assert "the output of the optimizer of generator itself" in result.message


ACTOR_CRITIC = """
import torch
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2), nn.Tanh())
critic = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
opt_a = torch.optim.Adam(actor.parameters(), 1e-3)
opt_c = torch.optim.Adam(critic.parameters(), 1e-3)
for step in range(200):
    s, a = torch.randn(32, 3), torch.randn(32, 2)
    said = critic(torch.cat([s, a], 1))
    critic_loss = nn.functional.mse_loss(said, -(a - s[:, :2]).pow(2).sum(1, keepdim=True))
    opt_c.zero_grad()
    critic_loss.backward()
    EARLY
    actor_loss = LOSS
    opt_a.zero_grad()
    actor_loss.backward()
    LATE
    opt_a.step()
"""

PRAISE = "-critic(torch.cat([s, actor(s)], 1)).mean()"
REGRESSED = "nn.functional.mse_loss(critic(torch.cat([s, actor(s)], 1)), torch.zeros(32, 1))"


@pytest.mark.parametrize(
    ("early", "late", "loss", "status"),
    [
        ("pass", "opt_c.step()", PRAISE, Status.FAIL),
        ("opt_c.step()", "pass", PRAISE, Status.PASS),
        ("pass", "opt_c.step()", REGRESSED, Status.PASS),  # a decoder of what the actor makes
    ],
)
def test_an_actors_loss_in_the_critics_step(
    early: str, late: str, loss: str, status: Status, ask_script: Any
) -> None:
    source = ACTOR_CRITIC.replace("EARLY", early).replace("LATE", late).replace("LOSS", loss)
    result = ask_script(OptimizerRoles, source)
    assert result.status is status, result.message


def test_which_outputs_a_loss_is_made_of() -> None:
    head, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
    weights = {id(p) for p in head.parameters()}
    assert set(outputs_alone(-head(x).mean())) == weights
    assert set(outputs_alone((0.2 * x[:, 0] - head(x)[:, 0]).mean())) == weights
    assert not outputs_alone(head(x).mean() - head(2 * x).mean())
    assert not outputs_alone(head(x).pow(2).mean())
    assert not outputs_alone(torch.nn.functional.l1_loss(head(x), x[:, :1]))
    assert not outputs_alone(torch.zeros(()))
