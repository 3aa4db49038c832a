"""The checks of loss and gradient on healthy programs of every kind: none may fail."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.checks.grad.batch_independence import BatchIndependence
from nnaudit.checks.grad.causality import Causality
from nnaudit.checks.grad.detached_graph import DetachedGraph
from nnaudit.checks.grad.gradient_reach import GradientsReachAll
from nnaudit.checks.grad.gradient_scale import GradientScale
from nnaudit.checks.grad.input_use import InputUse
from nnaudit.checks.loss.loss_direction import LossDirection
from nnaudit.checks.loss.loss_reduction import LossReduction
from nnaudit.checks.loss.output_range import OutputRange
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.targets.target import Target

CHECKS: tuple[type[Check], ...] = (
    LossReduction, LossDirection, OutputRange, GradientsReachAll, BatchIndependence, Causality,
    GradientScale, DetachedGraph, InputUse,
)  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def loader(*tensors: Tensor, batch_size: int = 8, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=True, **options)


def rows(n: int = 64, d: int = 8, c: int = 3) -> DataLoader:
    x = torch.randn(n, d, generator=generator())
    return loader(x, x[:, :c].argmax(1))


def quantities(n: int = 64, d: int = 8) -> DataLoader:
    x = torch.randn(n, d, generator=generator())
    return loader(x, x[:, :1] - x[:, 1:2])


def images(n: int = 32, size: int = 12, channels: int = 3) -> DataLoader:
    x = torch.randn(n, channels, size, size, generator=generator())
    return loader(x, torch.randint(3, (n,), generator=generator()))


def tokens(n: int = 32, t: int = 10, v: int = 12) -> Tensor:
    return torch.randint(1, v, (n, t + 1), generator=generator())


def shifted() -> DataLoader:
    ids = tokens()
    return loader(ids[:, :-1], ids[:, 1:])


def sequences(n: int = 48, t: int = 7, d: int = 4) -> DataLoader:
    x = torch.randn(n, t, d, generator=generator())
    return loader(x, (x.mean((1, 2)) > 0).long())


def flat_ce(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@dataclass
class Program:
    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Any] = rows
    loss: Callable[..., Tensor] | None = F.cross_entropy
    optimizer: Callable[..., Any] | None = None
    training_step: Callable[..., Tensor] | None = None
    may_warn: tuple[str, ...] = field(default=())

    def target(self) -> Target:
        return Target(
            self.model,
            self.data,
            loss=self.loss,
            optimizer=self.optimizer,
            training_step=self.training_step,
        )


def mlp(*last: nn.Module, out: int = 3, hidden: int = 16) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, out), *last)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(4, 8, batch_first=True, **options)
        self.head = nn.Linear(8 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class TimeFirst(nn.Module):
    """Takes (T, B) ids, as the tutorial on word language models does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(12, 8), nn.LSTM(8, 8), nn.Linear(8, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0]).view(-1, 12)


def bptt() -> list[tuple[Tensor, Tensor]]:
    columns = torch.randint(12, (36, 6), generator=generator())
    return [(columns[i : i + 7], columns[i + 1 : i + 8].reshape(-1)) for i in range(0, 28, 7)]


class Decoder(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(12, 16), nn.Embedding(16, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(t, device=ids.device)
        x = self.embed(ids) + self.place(torch.arange(t, device=ids.device))
        return self.head(self.body(x, mask=mask, is_causal=True))


class ZeroInitialisedDecoder(nn.Module):
    """Attention and head start at zero: nothing shows before a few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(12, 16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 12)
        for layer in (self.out, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class CausalConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(12, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.pad(self.embed(ids).transpose(1, 2), (2, 0))
        return self.head(F.relu(self.conv(x)).transpose(1, 2)).transpose(1, 2)  # (B, V, T)


class TokenEncoder(nn.Module):
    """Sees everything: a masked language model or a token auto-encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.body = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 13)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids)))


def masked() -> DataLoader:
    ids = tokens()
    hidden = torch.rand(ids.shape, generator=generator()) < 0.3
    return loader(ids.masked_fill(hidden, 12), ids.masked_fill(~hidden, -100))


class ShiftsInside(nn.Module):
    """Like a Hugging Face causal model: labels are the ids, and the loss is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Decoder()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def labelled_ids() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids, "labels": ids.clone()} for ids in tokens()[:, :-1].split(8)]


class RightShift(nn.Module):
    """A decoder that shifts its target to the right itself, as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Decoder()

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(F.pad(ids[:, :-1], (1, 0)))


def repeated_ids() -> DataLoader:
    ids = tokens()[:, :-1]
    return loader(ids, ids.clone())


class Experts(nn.Module):
    """Top-1 routing over twelve experts: some get no token in ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 12)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.gate.bias[3:] = -20.0

    def forward(self, x: Tensor) -> Tensor:
        weight, choice = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            here = choice == i
            out[here] = expert(x[here]) * weight[here, None]
        return self.head(out)


class LimitedExperts(Experts):
    """Each expert takes four rows of the batch: later ones are dropped."""

    def forward(self, x: Tensor) -> Tensor:
        weight, choice = self.gate(x)[:, :3].softmax(-1).max(-1)
        out = x.clone()
        for i, expert in enumerate(self.experts[:3]):
            here = (choice == i).nonzero().flatten()[:2]
            out[here] = out[here] + expert(x[here]) * weight[here, None]
        return self.head(out)


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 16).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(8, 2) * 0.1)
        self.b = nn.Parameter(torch.zeros(2, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + x @ self.a @ self.b))


class Gated(nn.Module):
    """Blocks behind gates at zero, and a head at zero: three steps until gradients arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.gates = nn.Linear(8, 3)
        self.head = nn.Linear(8, 3)
        for layer in (self.gates, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        for i, block in enumerate(self.blocks):
            x = x + gates[:, i : i + 1] * F.gelu(block(x))
        return self.head(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(checkpoint(lambda h: F.relu(self.middle(h)), x, use_reentrant=False))


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = Clip.apply(self.first(x))
        return self.last(h + (h.sign() - h).detach())


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        h = self.first(x)
        h[:, 0] = 0.0
        return self.last(h.add_(1.0).relu_())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + torch.tanh(self.again(x))
        return self.last(self.first(x))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(12, 8, sparse=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def bag_data() -> DataLoader:
    ids = tokens()
    return loader(ids, ids[:, 0] % 3)


class BatchStatistics(nn.Module):
    """Batch normalisation written by hand, with running statistics for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            mean = h.mean(0)
            self.mean.lerp_(mean.detach(), 0.1)
        else:
            mean = self.mean
        return self.last(F.relu(h - mean))


class Sampled(nn.Module):
    """A VAE that samples in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(z), mean, log_variance


def vae_loss(output: Any, x: Tensor) -> Tensor:
    recon, mean, log_variance = output
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    return F.mse_loss(recon, x, reduction="sum") + kl


class MovingAverage(nn.Module):
    """Vector quantisation whose code book follows by moving average, not by gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(4, 8)
        self.codes = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        nearest = torch.cdist(z, self.codes).argmin(1)
        q = self.codes.detach()[nearest]
        if self.training:
            with torch.no_grad():
                for i in nearest.unique():
                    self.codes[i] += 0.1 * (z[nearest == i].mean(0) - self.codes[i])
        return self.decode(z + (q - z).detach())


class Byol(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.predict = nn.Linear(4, 4)
        self.teacher = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for t, o in zip(self.teacher.parameters(), self.online.parameters(), strict=True):
                t.lerp_(o, 0.01)
            target = self.teacher(x + 0.1)
        return self.predict(self.online(x)), target


def byol_step(model: nn.Module, batch: Any) -> Tensor:
    a, b = model(batch[0])
    return 1 - F.cosine_similarity(a, b).mean()


class Ranker(nn.Module):
    """Scores pairs: the bias of the score cancels exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, pair: Tensor) -> Tensor:
        return (self.score(pair[:, :4]) - self.score(pair[:, 4:])).squeeze(1)


def ranked() -> DataLoader:
    x = torch.randn(64, 8, generator=generator())
    return loader(x, (x[:, 0] > x[:, 4]).float())


class Factors(nn.Module):
    """Matrix factorisation with pairwise ranking: user biases cancel exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(12, 4)
        self.user_bias, self.item_bias = nn.Embedding(9, 1), nn.Embedding(12, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        bias = self.user_bias(user) + self.item_bias(item)
        return (self.users(user) * self.items(item)).sum(1) + bias.squeeze(1)


def bpr_step(model: nn.Module, batch: Any) -> Tensor:
    user, good, bad = batch
    return -F.logsigmoid(model(user, good) - model(user, bad)).mean()


def triples() -> DataLoader:
    g = generator()
    return loader(*(torch.randint(n, (64,), generator=g) for n in (9, 12, 12)))


class UnusedPooler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.pooler, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.body(x))
        self.pooler(h)
        return self.head(h)


class HiddenTeacher(nn.Module):
    """A frozen network kept in a list, so that it is not saved with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.teacher = [nn.Linear(8, 3).requires_grad_(False)]
        self.perceptual = [nn.Linear(3, 3).eval()]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0.1 * self.teacher[0](x) + 0.1 * self.perceptual[0](self.net(x))


class Clip2(nn.Module):
    """Returns the similarities of all pairs of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 8), nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.image(x[:, :4])), F.normalize(self.text(x[:, 4:]))
        return self.scale.exp() * a @ b.T


def clip_step(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch[0])
    answer = torch.arange(len(logits))
    return (F.cross_entropy(logits, answer) + F.cross_entropy(logits.T, answer)) / 2


class Graph(nn.Module):
    """A whole graph is a batch: nodes see their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) + x
        return self.last(F.relu(self.first(h)))


def graph() -> list[tuple[Tensor, Tensor, Tensor]]:
    g = generator()
    edges = torch.randint(20, (2, 50), generator=g)
    return [(torch.randn(20, 4, generator=g), edges, torch.randint(3, (20,), generator=g))]


class Tagger(nn.Module):
    """One sentence at a time, words along dimension 0, as in the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(12, 6), nn.LSTM(6, 6), nn.Linear(6, 3)

    def forward(self, sentence: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.embed(sentence).view(len(sentence), 1, -1))
        return self.head(hidden.view(len(sentence), -1))


def sentences() -> list[tuple[Tensor, Tensor]]:
    return [(ids[: 5 + i % 4], ids[: 5 + i % 4] % 3) for i, ids in enumerate(tokens())]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6, padding_idx=0)
        self.rnn, self.head = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), lengths, batch_first=True)
        return self.head(self.rnn(packed)[1][-1])


def sorted_by_length(items: list[tuple[Tensor, Tensor]]) -> Any:
    items = sorted(items, key=lambda item: -len(item[0]))
    ids = nn.utils.rnn.pad_sequence([ids for ids, _ in items], batch_first=True)
    return ids, torch.tensor([len(ids) for ids, _ in items]), torch.stack([y for _, y in items])


def packed_data() -> DataLoader:
    items = [(ids[: 4 + i % 5], ids[0] % 3) for i, ids in enumerate(tokens())]
    return DataLoader(items, batch_size=8, collate_fn=sorted_by_length)  # type: ignore[arg-type]


class Carries(nn.Module):
    """Keeps its hidden state from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x, self.state)
        self.state = state.detach()
        return self.head(y[:, -1])


def dice(output: Tensor, mask: Tensor) -> Tensor:
    p = output.sigmoid().flatten(1)
    y = mask.flatten(1)
    return 1 - ((2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).mean()


def masks() -> DataLoader:
    x = torch.randn(32, 3, 8, 8, generator=generator())
    return loader(x, (x[:, :1] > 0).float())


def focal(output: Tensor, y: Tensor) -> Tensor:
    p = output.softmax(1).gather(1, y[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def by_hand(output: Tensor, y: Tensor) -> Tensor:
    return -output.log_softmax(1)[torch.arange(len(y)), y].mean()


def standardised(output: Tensor, y: Tensor) -> Tensor:
    return ((output - (y - 40) / 7) ** 2).mean()


def far_quantities() -> DataLoader:
    x = torch.randn(64, 8, generator=generator())
    return loader(x, 40 + 7 * (x[:, :1] - x[:, 1:2]))


def numbered_from_one(output: Tensor, y: Tensor) -> Tensor:
    logp = output.log_softmax(1)
    return -logp[torch.arange(len(y)), (y + 1) % 3].mean()


def reinforce(model: nn.Module, batch: Any) -> Tensor:
    x, action, advantage = batch
    return (F.cross_entropy(model(x), action, reduction="none") * advantage).mean()


def offline() -> DataLoader:
    g = generator()
    x = torch.randn(64, 8, generator=g)
    return loader(x, torch.randint(3, (64,), generator=g), torch.randn(64, generator=g))


def adversarial_data() -> DataLoader:
    return loader(torch.randn(64, 8, generator=generator()))


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fake = self.g(torch.randn(len(x), 4))
        return self.d(x), self.d(fake.detach()), self.d(fake)


def gan_step(model: nn.Module, batch: Any) -> Tensor:
    real, fake, fooled = model(batch[0])
    bce = F.binary_cross_entropy_with_logits
    return (
        bce(real, torch.ones_like(real))
        + bce(fake, torch.zeros_like(fake))
        + bce(fooled, torch.ones_like(fooled))
    )


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class DomainAdversarial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.domain = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.body(x))
        return self.label(h), self.domain(Reverse.apply(h))


def domain_step(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    label, domain = model(x)
    return F.cross_entropy(label, y) + F.cross_entropy(domain, (x[:, 0] > 0).long())


class Diffusion(nn.Module):
    """Predicts the noise; the output layer starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(9, 16), nn.Linear(16, 8)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(F.silu(self.first(torch.cat([x, t[:, None]], 1))))


def diffusion_step(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0]
    t, noise = torch.rand(len(x)), torch.randn_like(x)
    return F.mse_loss(model(x * (1 - t[:, None]) + noise * t[:, None], t), noise)


class Scaled(nn.Module):
    """A sigmoid scaled to the range of the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 12 * self.net(x).sigmoid() - 6


def counts() -> DataLoader:
    x = torch.randn(640, 8, generator=generator())
    return loader(x, x[:, :1].abs(), batch_size=64)


def warm_up(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 500, 1.0))
    return optimizer


class Standardises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=True), nn.InstanceNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class KeysAlone(nn.Module):
    """Separate projections, so the key's bias has a gradient of roundings only."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(8)).softmax(-1)
        return self.head((weights @ self.v(x)).mean(1))


class EvalArgmax(nn.Module):
    """Returns classes in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.training else self.net(x).argmax(1)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            spectral_norm(nn.Linear(8, 8)), nn.ReLU(), weight_norm(nn.Linear(8, 8)), nn.ReLU(),
            orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


class Transductive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * 2


class Streams(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            x = torch.randn(8)
            yield x, x[:3].argmax()


def stacked(items: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = torch.stack([item[0] for item in items], dim=1)
    return x, torch.stack([item[1] for item in items])


class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


def time_major() -> DataLoader:
    x = torch.randn(48, 7, 4, generator=generator())
    data = TensorDataset(x, (x.mean((1, 2)) > 0).long())
    return DataLoader(data, batch_size=8, collate_fn=stacked)  # type: ignore[arg-type]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def sparse(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SparseAdam(list(model.embed.parameters()), lr=1e-2),  # type: ignore[operator]
        torch.optim.Adam(model.head.parameters(), lr=1e-2),  # type: ignore[union-attr]
    ]


def conv(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *layers,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


PROGRAMS = (
    Program("mlp", mlp()),
    Program("sgd", mlp(), optimizer=sgd),
    Program("default loss", mlp(), loss=None),
    Program("regression (N, 1)", mlp(out=1), quantities, F.mse_loss),
    Program(
        "multi-label",
        mlp(),
        lambda: loader(torch.randn(64, 8), (torch.randn(64, 3) > 0).float()),
        F.binary_cross_entropy_with_logits,
    ),
    Program("auto-encoder", mlp(out=8), adversarial_data, F.mse_loss),
    Program("lstm", Recurrent, sequences),
    Program("gru", lambda: Recurrent(nn.GRU), sequences),
    Program(
        "bidirectional",
        lambda: Recurrent(bidirectional=True, num_layers=2),
        sequences,
        may_warn=("GRAD101",),
    ),
    Program("time first", TimeFirst, bptt),
    Program("time major by collate", TimeMajor, time_major),
    Program("transformer", Decoder, shifted, flat_ce),
    Program("tied transformer", lambda: Decoder(tied=True), shifted, flat_ce),
    Program("zero-initialised decoder", ZeroInitialisedDecoder, shifted, flat_ce),
    Program("causal convolution", CausalConvolution, shifted),
    Program("masked language model", TokenEncoder, masked, flat_ce),
    Program("token auto-encoder", TokenEncoder, repeated_ids, flat_ce),
    Program("shifts inside the loss", ShiftsInside, labelled_ids, None),
    Program("shifts to the right inside", RightShift, repeated_ids, flat_ce),
    Program("unused experts", Experts),
    Program("experts of limited capacity", LimitedExperts, may_warn=("GRAD101", "GRAD103")),
    Program(
        "lora",
        Lora,
        optimizer=lambda m: torch.optim.Adam((p for p in m.parameters() if p.requires_grad), 1e-2),
    ),
    Program("zero-initialised gates", Gated),
    Program("gates under warm-up", Gated, optimizer=warm_up),
    Program("checkpointing", Checkpointed),
    Program("custom function, straight through", StraightThrough),
    Program("in place", InPlace),
    Program("shared module", Shared),
    Program("complex", Complex),
    Program("sparse embedding bag", Bag, bag_data, optimizer=sparse),
    Program("normalisations of weights", Spectral),
    Program("lazy", lazy),
    Program("bf16", lambda: mlp()().bfloat16(), lambda: [(x.bfloat16(), y) for x, y in rows()]),
    Program("data parallel", lambda: nn.DataParallel(mlp()())),
    Program("parameter-free", Transductive),
    Program("batch norm", conv(), images),
    Program("group and instance norm", Standardises, images),
    Program("dropout", lambda: nn.Sequential(nn.Dropout(0.5), mlp()(), nn.Dropout(0.1))),
    Program("batch norm by hand", BatchStatistics),
    Program("vae", Sampled, adversarial_data, vae_loss, may_warn=("LOSS103",)),
    Program("code book by moving average", MovingAverage, adversarial_data, F.mse_loss),
    Program("byol", Byol, adversarial_data, None, training_step=byol_step),
    Program("ranking", Ranker, ranked, F.binary_cross_entropy_with_logits),
    Program("bayesian personalised ranking", Factors, triples, None, training_step=bpr_step),
    Program("unused pooler", UnusedPooler, may_warn=("GRAD101",)),
    Program("teacher in a list", HiddenTeacher),
    Program("contrastive", Clip2, adversarial_data, None, training_step=clip_step),
    Program("graph", Graph, graph),
    Program("sentence by sentence", Tagger, sentences, may_warn=("GRAD103",)),
    Program("packed, sorted by length", Packed, packed_data),
    Program(
        "state carried on", Carries, lambda: loader(*sequences().dataset.tensors, drop_last=True)
    ),
    Program("dice", lambda: nn.Conv2d(3, 1, 3, padding=1), masks, dice),
    Program("focal", mlp(), loss=focal),
    Program("cross-entropy by hand", mlp(), loss=by_hand),
    Program("target standardised in the loss", mlp(out=1), far_quantities, standardised),
    Program("labels renumbered in the loss", mlp(), loss=numbered_from_one),
    Program("policy gradient", mlp(), offline, None, training_step=reinforce),
    Program("gan", Gan, adversarial_data, None, training_step=gan_step),
    Program("gradient reversal", DomainAdversarial, rows, None, training_step=domain_step),
    Program("diffusion", Diffusion, adversarial_data, None, training_step=diffusion_step),
    Program("scaled sigmoid", Scaled, lambda: quantities(640), F.mse_loss),
    Program("relu for counts", mlp(nn.ReLU(), out=1), counts, F.mse_loss),
    Program("attention by hand", KeysAlone, sequences),
    Program("classes in eval mode", EvalArgmax),
    Program("stream", mlp(), lambda: DataLoader(Streams(), batch_size=8)),
    Program("batch of one", mlp(), lambda: loader(*rows().dataset.tensors, batch_size=1)),
    Program(
        "lbfgs",
        mlp(),
        lambda: [rows().dataset.tensors],
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3),
    ),
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_healthy_program_draws_no_finding(program: Program) -> None:
    torch.manual_seed(0)
    audit = Audit(DirectLoop(program.target(), torch.device("cpu"), seed=0))
    results = [run_check(check, audit) for check in CHECKS]
    loud = (Status.FAIL, Status.ERROR, Status.WARN)
    found = [r for r in results if r.status in loud]
    assert [
        (r.code, r.status, r.message) for r in found
        if not (r.status is Status.WARN and r.code in program.may_warn)
    ] == []  # fmt: skip
