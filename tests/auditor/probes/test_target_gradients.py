"""Gradients into targets: each kind by its graph, and what looks like it and is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from nnaudit.probes.target_gradients import Flow, Tap, found_in, in_every_step

N = 12


def games() -> SimpleNamespace:
    """A policy, a value network, a teacher, and a batch of transitions."""
    torch.manual_seed(0)
    return SimpleNamespace(
        q=nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)),
        other=nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)),
        policy=nn.Linear(4, 2),
        value=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        s=torch.randn(N, 4),
        s2=torch.randn(N, 4),
        r=torch.randn(N),
        go=(torch.rand(N) > 0.2).float(),
        a=torch.randint(2, (N,)),
    )


Step = Callable[[SimpleNamespace], Iterator[Tensor]]


def flows(step: Step) -> list[Flow]:
    """Return what one step shows; each loss that it yields is back-propagated."""
    g = games()
    networks = [g.q, g.other, g.policy, g.value]
    trained = {id(p) for network in networks for p in network.parameters()}
    found, elsewhere = [], set[int]()
    with Tap() as tap:
        for loss in step(g):
            seen, reached = found_in(tap, [loss.grad_fn], trained)
            found += seen
            elsewhere |= reached
    return [each.flow for each in in_every_step([found], elsewhere)]


def chosen(g: SimpleNamespace, s: Tensor) -> Tensor:
    out: Tensor = g.q(s).gather(1, g.a[:, None]).squeeze(1)
    return out


def td(g: SimpleNamespace) -> Iterator[Tensor]:
    target = g.r + 0.97 * g.go * g.q(g.s2).max(1).values
    yield F.smooth_l1_loss(chosen(g, g.s), target)


def td_of_equal_rewards_by_hand(g: SimpleNamespace) -> Iterator[Tensor]:
    target = torch.full((N,), -0.01) + 0.9 * g.q(g.s2).amax(1)
    yield (target - chosen(g, g.s)).pow(2).mean()


def td_along_a_trajectory(g: SimpleNamespace) -> Iterator[Tensor]:
    v = g.value(g.s).squeeze(1)
    delta = g.r[:-1] + 0.99 * v[1:] - v[:-1]
    yield (delta**2).mean()


def td_of_two_critics(g: SimpleNamespace) -> Iterator[Tensor]:
    least = torch.minimum(g.q(g.s2), g.q(g.s2 + 1)).max(1).values
    yield F.mse_loss(chosen(g, g.s), g.r + 0.9 * least)


@pytest.mark.parametrize(
    "step", [td, td_of_equal_rewards_by_hand, td_along_a_trajectory, td_of_two_critics]
)
def test_a_bootstrapped_target_with_a_gradient(step: Step) -> None:
    assert flows(step) == [Flow.BOOTSTRAP]


def distilled(g: SimpleNamespace) -> Iterator[Tensor]:
    soft = F.kl_div(F.log_softmax(g.q(g.s) / 3, 1), F.softmax(g.other(g.s) / 3, 1), reduction="sum")
    yield soft + F.cross_entropy(g.q(g.s), g.a)


def distilled_by_cross_entropy(g: SimpleNamespace) -> Iterator[Tensor]:
    yield F.cross_entropy(g.q(g.s), g.other(g.s).softmax(1))


@pytest.mark.parametrize("step", [distilled, distilled_by_cross_entropy])
def test_a_teacher_that_only_learns_to_agree(step: Step) -> None:
    assert flows(step) == [Flow.TEACHER]


def actor_critic(g: SimpleNamespace) -> Iterator[Tensor]:
    advantage = g.r - g.value(g.s).squeeze(1)
    dist = Categorical(logits=g.policy(g.s))
    yield -(dist.log_prob(g.a) * advantage).mean() + 0.5 * advantage.pow(2).mean()


def actor_critic_by_hand(g: SimpleNamespace) -> Iterator[Tensor]:
    value = g.value(g.s).squeeze(1)
    logs = F.log_softmax(g.policy(g.s), 1)[torch.arange(N), g.a]
    yield F.mse_loss(value, g.r) - (logs * (g.r - value)).sum()


def ratio(g: SimpleNamespace) -> Iterator[Tensor]:
    value = g.value(g.s).squeeze(1)
    dist = Normal(g.policy(g.s)[:, 0], 1 + g.policy(g.s)[:, 1].exp())
    logs = dist.log_prob(g.r)
    advantage = g.r - value
    yield F.mse_loss(value, g.r) - (torch.exp(logs - logs.detach()) * advantage).mean()


@pytest.mark.parametrize("step", [actor_critic, actor_critic_by_hand, ratio])
def test_an_advantage_with_a_gradient(step: Step) -> None:
    assert flows(step) == [Flow.ADVANTAGE]


def views(g: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two projections, and what a predictor makes of each."""
    z1, z2 = g.q(g.s), g.q(g.s2)
    return z1, z2, z1 @ g.policy.weight[:, :2], z2 @ g.policy.weight[:, :2]


def siamese(g: SimpleNamespace) -> Iterator[Tensor]:
    z1, z2, p1, p2 = views(g)
    yield -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())


def siamese_by_hand(g: SimpleNamespace) -> Iterator[Tensor]:
    _, z2, p1, _ = views(g)
    p, z = F.normalize(p1, dim=1), F.normalize(z2, dim=1)
    yield (2 - 2 * (p * z).sum(1)).mean()


def target_behind_a_norm(g: SimpleNamespace) -> Iterator[Tensor]:
    target = g.s[:, :2] * g.policy.bias
    yield ((g.q(g.s) - target) ** 2).mean(-1)[:5].mean()


def two_towers(g: SimpleNamespace) -> Iterator[Tensor]:
    yield F.mse_loss(g.q(g.s), g.other(g.s2))


@pytest.mark.parametrize("step", [siamese, siamese_by_hand, target_behind_a_norm, two_towers])
def test_a_loss_that_a_constant_solves(step: Step) -> None:
    assert set(flows(step)) == {Flow.ATTRACTION}


def siamese_detached(g: SimpleNamespace) -> Iterator[Tensor]:
    _, z2, p1, _ = views(g)
    yield -F.cosine_similarity(p1, z2.detach()).mean()


def siamese_with_variance(g: SimpleNamespace) -> Iterator[Tensor]:
    _, z2, p1, _ = views(g)
    yield F.mse_loss(p1, z2) + F.relu(1 - z2.std(0)).mean()


def reconstructed_too(g: SimpleNamespace) -> Iterator[Tensor]:
    _, z2, p1, _ = views(g)
    yield F.mse_loss(p1, z2)
    yield F.mse_loss(g.q(g.s), g.s[:, :2])


def residuals(g: SimpleNamespace) -> Iterator[Tensor]:
    yield F.mse_loss(g.q(g.s), g.s[:, :2] + g.other(g.s2))


def contrastive(g: SimpleNamespace) -> Iterator[Tensor]:
    d = (g.q(g.s) - g.other(g.s2)).pow(2).sum(1)
    same = (g.a == 0).float()
    yield (same * d + (1 - same) * F.relu(1 - d)).mean()
    d = (g.q(g.s) - g.other(g.s2)).pow(2)
    yield (d[:5].sum() - d[5:].sum()).tanh()


def triplets(g: SimpleNamespace) -> Iterator[Tensor]:
    anchor, same, apart = g.q(g.s), g.other(g.s), g.other(g.s2)
    near, far = (anchor - same).pow(2).sum(1), (anchor - apart).pow(2).sum(1)
    yield F.relu(near - far + 0.2).mean()
    anchor, same, apart = g.q(g.s), g.other(g.s), g.other(g.s2)
    yield F.mse_loss(anchor, same) - F.mse_loss(anchor, apart)


def differential_equation(g: SimpleNamespace) -> Iterator[Tensor]:
    x = g.s.clone().requires_grad_()
    u = g.value(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    yield F.mse_loss(slope[:, :1], -u * slope[:, 1:2])


def td_without_gradient(g: SimpleNamespace) -> Iterator[Tensor]:
    with torch.no_grad():
        target = g.r + 0.97 * g.q(g.s2).max(1).values
    yield F.mse_loss(chosen(g, g.s), target)


def td_of_a_target_network(g: SimpleNamespace) -> Iterator[Tensor]:
    yield F.mse_loss(chosen(g, g.s), g.r + 0.9 * g.other(g.s2).max(1).values)


def two_views(g: SimpleNamespace) -> Iterator[Tensor]:
    yield F.mse_loss(g.q(g.s), g.q(g.s2)) + 0.5 * (g.q(g.s) - g.q(g.s2)).pow(2).mean()


def bootstrapped_labels(g: SimpleNamespace) -> Iterator[Tensor]:
    p = g.q(g.s).softmax(1)
    yield F.mse_loss(p, 0.8 * F.one_hot(g.a, 2) + 0.2 * p)


def residual_of_an_equation(g: SimpleNamespace) -> Iterator[Tensor]:
    u, after = g.value(g.s), g.value(g.s2)
    yield F.mse_loss(after, u + 0.1 * (g.r[:, None] - u.pow(3)))


def taught_by_each_other(g: SimpleNamespace) -> Iterator[Tensor]:
    a, b = g.q(g.s), g.other(g.s)
    yield F.cross_entropy(a, g.a) + F.kl_div(a.log_softmax(1), b.softmax(1), reduction="sum")
    a, b = g.q(g.s), g.other(g.s)
    yield F.cross_entropy(b, g.a) + F.kl_div(b.log_softmax(1), a.softmax(1), reduction="sum")


def consistent_with_itself(g: SimpleNamespace) -> Iterator[Tensor]:
    a, b = g.q(g.s), g.q(g.s + 0.1)
    yield F.cross_entropy(a, g.a) + F.kl_div(a.log_softmax(1), b.softmax(1), reduction="sum")


def learnt_labels(g: SimpleNamespace) -> Iterator[Tensor]:
    bias = g.other[2].bias.expand(N, 2)
    yield F.cross_entropy(g.q(g.s), bias.softmax(1))


def actor_critic_detached(g: SimpleNamespace) -> Iterator[Tensor]:
    advantage = g.r - g.value(g.s).squeeze(1)
    logs = Categorical(logits=g.policy(g.s)).log_prob(g.a)
    yield -(logs * advantage.detach()).mean() + advantage.pow(2).mean()


def heteroscedastic(g: SimpleNamespace) -> Iterator[Tensor]:
    mean, log_var = g.q(g.s).unbind(1)
    yield ((g.r - mean).pow(2) * torch.exp(-log_var) + log_var).mean()
    yield -Normal(mean, F.softplus(log_var)).log_prob(g.r).mean()


def mixture(g: SimpleNamespace) -> Iterator[Tensor]:
    weights = g.policy(g.s).softmax(1)
    logs = Normal(g.q(g.s), 1.0).log_prob(g.r[:, None])
    yield -(weights * logs).sum() + F.mse_loss(g.value(g.s).squeeze(1), g.r)


def entropy_bonus(g: SimpleNamespace) -> Iterator[Tensor]:
    logits = g.policy(g.s)
    yield (logits.softmax(1) * logits.log_softmax(1)).sum() + (g.r - g.value(g.s)).pow(2).mean()


@pytest.mark.parametrize(
    "step",
    [
        td_without_gradient,
        td_of_a_target_network,
        two_views,
        siamese_detached,
        siamese_with_variance,
        residuals,
        contrastive,
        triplets,
        differential_equation,
        bootstrapped_labels,
        residual_of_an_equation,
        taught_by_each_other,
        consistent_with_itself,
        learnt_labels,
        actor_critic_detached,
        heteroscedastic,
        mixture,
        entropy_bonus,
    ],
)
def test_what_is_meant_so(step: Step) -> None:
    assert flows(step) == []


def test_another_loss_of_the_same_step_anchors() -> None:
    assert flows(reconstructed_too) == []


def test_only_what_every_step_shows_counts() -> None:
    assert not list(in_every_step([], set()))
