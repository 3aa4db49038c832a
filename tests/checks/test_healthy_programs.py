"""Healthy programs of many kinds, about which the checks of the first steps have nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.checks.grad.finite_gradients import FiniteGradients
from nnaudit.checks.grad.optimizer_coverage import OptimizerCoverage
from nnaudit.checks.init.initial_loss import InitialLoss
from nnaudit.checks.loss.double_activation import DoubleActivation
from nnaudit.checks.loss.loss_broadcast import LossBroadcast
from nnaudit.checks.mode.train_eval_mode import TrainEvalMode
from nnaudit.checks.norm.normalization_choice import NormalizationChoice
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Status
from nnaudit.targets.target import Target

CHECKS: tuple[type[Check], ...] = (
    InitialLoss, DoubleActivation, LossBroadcast, OptimizerCoverage, FiniteGradients,
    TrainEvalMode, NormalizationChoice,
)  # fmt: skip
SILENT = (Status.PASS, Status.SKIP, Status.INCONCLUSIVE, Status.NOTE)


def loader(*tensors: Tensor, batch: int = 16) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def pictures(rows: int = 64, size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(rows, channels, size, size)


def classes(rows: int, count: int) -> Tensor:
    return torch.randint(count, (rows,))


def tokens(rows: int = 64, length: int = 17, vocabulary: int = 50) -> Tensor:
    return torch.randint(1, vocabulary, (rows, length))


def mlp(inputs: int = 8, outputs: int = 3, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


# --- vision ---------------------------------------------------------------------------------


def residual_network() -> Target:
    data = loader(pictures(48), classes(48, 10), batch=8)
    return Target(
        lambda: torchvision.models.resnet18(num_classes=10), data,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1), optimizer=sgd,
    )  # fmt: skip


def vision_transformer() -> Target:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 4, 4)
            self.position = nn.Parameter(0.02 * torch.randn(1, 16, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2) + self.position
            return self.head(self.norm(self.body(x)).mean(1))

    return Target(Patches, loader(pictures(), classes(64, 10)), optimizer=adamw)


def segmentation() -> Target:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
            self.bottom, self.up = self.block(16, 16), nn.ConvTranspose2d(16, 16, 2, 2)
            self.last, self.out = self.block(24, 8), nn.Conv2d(8, 4, 1)

        @staticmethod
        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            one = self.down1(x)
            deep = self.up(self.bottom(self.down2(F.max_pool2d(one, 2))))
            return self.out(self.last(torch.cat([one, deep], 1)))

    masks = torch.randint(4, (64, 16, 16))
    masks[:, :2] = 255
    weights = torch.tensor([0.2, 1.0, 2.0, 4.0])
    return Target(
        UNet, loader(pictures(), masks, batch=8), optimizer=adamw,
        loss=nn.CrossEntropyLoss(weight=weights, ignore_index=255),
    )  # fmt: skip


def detector() -> Target:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
            self.score, self.box = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)
            nn.init.constant_(self.score.bias, -math.log(99))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body(x)
            return self.score(features), self.box(features).sigmoid()

    def loss(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        score, box = output
        objects, boxes = target
        focal = torchvision.ops.sigmoid_focal_loss(score, objects, reduction="mean")
        return focal + 2 * F.smooth_l1_loss(box * objects, boxes * objects)

    objects = (torch.rand(64, 1, 4, 4) < 0.05).float()
    data = loader(pictures(), objects, torch.rand(64, 4, 4, 4))
    return Target(Grid, data, loss=loss, optimizer=adamw)


def autoencoder() -> Target:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(),
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 256), nn.Sigmoid(), nn.Unflatten(1, (1, 16, 16)),
    )  # fmt: skip
    return Target(lambda: model, loader(pictures(channels=1)), loss=F.mse_loss, optimizer=adamw)


def variational() -> Target:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = mlp(64, 16), mlp(8, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encode(x).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            return self.decode(z).sigmoid(), mean, log_variance

    def loss(output: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        rebuilt, mean, log_variance = output
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return F.binary_cross_entropy(rebuilt, x, reduction="sum") + divergence

    return Target(Vae, loader(torch.rand(128, 64)), loss=loss, optimizer=adamw)


def adversarial() -> Target:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.critic = mlp(4, 8), mlp(8, 1)

    def step(model: nn.Module, batch: Any) -> Tensor:
        real = batch[0]
        fake = model.generator(torch.randn(len(real), 4, device=real.device))
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        bce = F.binary_cross_entropy_with_logits
        critic = bce(model.critic(real), ones) + bce(model.critic(fake.detach()), zeros)
        return critic + bce(model.critic(fake), ones)

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        return [adamw(model.generator), adamw(model.critic)]

    return Target(Both, loader(torch.randn(128, 8)), training_step=step, optimizer=optimizers)


def diffusion() -> Target:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(9, 8)
            nn.init.zeros_(self.body[2].weight)
            nn.init.zeros_(self.body[2].bias)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.body(torch.cat([x, t], 1))

    def step(model: nn.Module, batch: Any) -> Tensor:
        noise, t = torch.randn_like(batch[0]), torch.rand(len(batch[0]), 1)
        return F.mse_loss(model(batch[0] * (1 - t) + noise * t, t), noise)

    return Target(Denoiser, loader(torch.randn(128, 8)), training_step=step, optimizer=adamw)


# --- embeddings -----------------------------------------------------------------------------


def siamese() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        a, b, same = batch
        distance = F.pairwise_distance(model(a), model(b))
        return (same * distance**2 + (1 - same) * F.relu(1 - distance) ** 2).mean()

    data = loader(torch.randn(128, 8), torch.randn(128, 8), torch.randint(2, (128,)).float())
    return Target(mlp, data, training_step=step, optimizer=adamw)


def triplets() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        return F.triplet_margin_loss(*(model(x) for x in batch))

    data = loader(*(torch.randn(128, 8) for _ in range(3)))
    return Target(mlp, data, training_step=step, optimizer=adamw)


def contrastive_with_learned_temperature() -> Target:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = mlp(8, 16), mlp(6, 16)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            a, b = F.normalize(self.image(image)), F.normalize(self.text(text))
            return self.log_scale.exp() * a @ b.T

    def step(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        target = torch.arange(len(scores))
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2

    data = loader(torch.randn(128, 8), torch.randn(128, 6))
    return Target(Clip, data, training_step=step, optimizer=adamw)


def metric_classifier_with_margin() -> Target:
    class ArcFace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.centres = mlp(8, 16), nn.Parameter(torch.randn(10, 16))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            cosine = F.linear(F.normalize(self.body(x)), F.normalize(self.centres))
            angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
            return 8.0 * torch.where(F.one_hot(y, 10).bool(), torch.cos(angle + 0.3), cosine)

    def step(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(*batch), batch[1])

    return Target(
        ArcFace, loader(torch.randn(128, 8), classes(128, 10)), training_step=step, optimizer=adamw
    )


# --- sequences ------------------------------------------------------------------------------


def recurrent_classifier() -> Target:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16, padding_idx=0)
            self.read = nn.LSTM(16, 24, 2, batch_first=True, dropout=0.2, bidirectional=True)
            self.head = nn.Linear(48, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.read(self.embed(x))[0].mean(1))

    return Target(Reader, loader(tokens(), classes(64, 4)), optimizer=adamw)


class Decoder(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(50, 32), nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        h = self.embed(x) + self.position(torch.arange(x.shape[1]))
        return self.head(self.norm(self.body(h, mask=mask, is_causal=True)))


def language_model() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch[0][:, :-1], batch[0][:, 1:]
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    return Target(lambda: Decoder(tied=True), loader(tokens()), training_step=step, optimizer=adamw)


def padded_language_model() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch[0][:, :-1], batch[0][:, 1:].clone()
        y[:, 10:] = -100
        return F.cross_entropy(model(x).transpose(1, 2), y)

    return Target(
        lambda: Decoder(tied=False), loader(tokens()), training_step=step, optimizer=adamw
    )


def masked_by_hand() -> Target:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch[0][:, :-1], batch[0][:, 1:]
        each = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
        mask = (y.flatten() % 3 > 0).float()
        return (each * mask).sum() / mask.sum()

    return Target(lambda: Decoder(tied=True), loader(tokens()), training_step=step, optimizer=adamw)


def speech() -> Target:
    class Acoustic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.read(x)[0]).log_softmax(-1)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        lengths = torch.full((len(y),), output.shape[1]), torch.full((len(y),), y.shape[1])
        return F.ctc_loss(output.transpose(0, 1), y, *lengths)

    data = loader(torch.randn(64, 30, 8), torch.randint(1, 12, (64, 6)))
    return Target(Acoustic, data, loss=loss, optimizer=adamw)


def forecast() -> Target:
    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, -1] + self.head(self.read(x)[0][:, -1])

    series = torch.randn(128, 25, 1).cumsum(1) / 5
    data = loader(series[:, :-1], series[:, -1])
    return Target(Forecaster, data, loss=nn.HuberLoss(), optimizer=adamw)


# --- tables ---------------------------------------------------------------------------------


def multi_label() -> Target:
    y = (torch.rand(128, 6) < 0.15).float()
    return Target(
        lambda: mlp(8, 6), loader(torch.randn(128, 8), y), optimizer=adamw,
        loss=nn.BCEWithLogitsLoss(pos_weight=torch.full((6,), 5.0)),
    )  # fmt: skip


def rare_positive() -> Target:
    y = (torch.rand(512) < 0.01).float()
    return Target(
        lambda: nn.Sequential(mlp(8, 1), nn.Flatten(0)), loader(torch.randn(512, 8), y),
        loss=F.binary_cross_entropy_with_logits, optimizer=adamw,
    )  # fmt: skip


def multi_task() -> Target:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.amount = mlp(8, 16), nn.Linear(16, 4), nn.Linear(16, 1)
            self.log_variances = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = self.body(x).relu()
            return self.kind(h), self.amount(h), self.log_variances

    def loss(output: tuple[Tensor, Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        kind, amount, log_variances = output
        losses = torch.stack([F.cross_entropy(kind, y[0]), F.mse_loss(amount, y[1])])
        return (losses * torch.exp(-log_variances) + log_variances).sum()

    data = loader(torch.randn(128, 8), classes(128, 4), torch.randn(128, 1))
    return Target(Two, data, loss=loss, optimizer=adamw)


def quantiles() -> Target:
    def pinball(output: Tensor, y: Tensor) -> Tensor:
        error = y - output
        q = torch.tensor([0.1, 0.5, 0.9])
        return torch.maximum(q * error, (q - 1) * error).mean()

    data = loader(torch.randn(128, 8), torch.randn(128, 1))
    return Target(mlp, data, loss=pinball, optimizer=adamw)


def heteroscedastic() -> Target:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.gaussian_nll_loss(output[:, :1], y, F.softplus(output[:, 1:]) + 1e-4)

    data = loader(torch.randn(128, 8), torch.randn(128, 1))
    return Target(lambda: mlp(8, 2), data, loss=loss, optimizer=adamw)


def ordinal_prices() -> Target:
    y = torch.exp(0.5 * torch.randn(256))
    return Target(
        lambda: nn.Sequential(mlp(8, 1), nn.Flatten(0)), loader(torch.randn(256, 8), y),
        loss=F.l1_loss, optimizer=adamw,
    )  # fmt: skip


def policy() -> Target:
    def loss(output: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        action, gain = y
        return (F.nll_loss(output.log_softmax(1), action, reduction="none") * gain).mean()

    data = loader(torch.randn(128, 8), classes(128, 3), torch.randn(128))
    return Target(mlp, data, loss=loss, optimizer=adamw)


def focal() -> Target:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(output, y, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()

    return Target(mlp, loader(torch.randn(128, 8), classes(128, 3)), loss=loss, optimizer=adamw)


def distillation() -> Target:
    teacher = mlp().eval().requires_grad_(False)

    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        output, soft = model(x), F.softmax(teacher(x) / 2, 1)
        imitation = F.kl_div(F.log_softmax(output / 2, 1), soft, reduction="batchmean")
        return F.cross_entropy(output, y) + 4 * imitation

    data = loader(torch.randn(128, 8), classes(128, 3))
    return Target(mlp, data, training_step=step, optimizer=adamw)


def own_loss_in_a_dictionary() -> Target:
    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(index)
            x = torch.randn(8, generator=generator)
            return {"inputs": x, "labels": x[:3].argmax()}

    class SelfMade(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.body(inputs)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    return Target(SelfMade, DataLoader(Rows(), batch_size=16, shuffle=True), optimizer=adamw)


def checkpointed_bf16() -> Target:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(8, 32), nn.GELU()), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(checkpoint(self.body, x, use_reentrant=False))

    data = loader(torch.randn(128, 8), classes(128, 3))
    return Target(Memory, data, loss=F.cross_entropy, optimizer=adamw)


def lazy_in_double() -> Target:
    model = nn.Sequential(
        nn.LazyLinear(16, dtype=torch.float64), nn.Tanh(), nn.LazyLinear(3, dtype=torch.float64)
    )
    data = loader(torch.randn(128, 8, dtype=torch.float64), classes(128, 3))
    return Target(model, data, loss=F.cross_entropy, optimizer=adamw)


def complex_weights() -> Target:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(9, 9, dtype=torch.cfloat) / 9)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) @ self.mix, n=16))

    data = loader(torch.randn(128, 16), classes(128, 3))
    return Target(Spectral, data, loss=F.cross_entropy, optimizer=sgd)


def seven_rows() -> Target:
    data = loader(torch.randn(7, 8), torch.randn(7, 1), batch=4)
    return Target(lambda: mlp(8, 1), data, loss=F.mse_loss, optimizer=sgd)


PROGRAMS: tuple[Callable[[], Target], ...] = (
    residual_network, vision_transformer, segmentation, detector, autoencoder, variational,
    adversarial, diffusion, siamese, triplets, contrastive_with_learned_temperature,
    metric_classifier_with_margin, recurrent_classifier, language_model, padded_language_model,
    masked_by_hand, speech, forecast, multi_label, rare_positive, multi_task, quantiles,
    heteroscedastic, ordinal_prices, policy, focal, distillation, own_loss_in_a_dictionary,
    checkpointed_bf16, lazy_in_double, complex_weights, seven_rows,
)  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(each, marks=pytest.mark.slow) if each is residual_network else each
        for each in PROGRAMS
    ],
    ids=[each.__name__ for each in PROGRAMS],
)
def test_nothing_is_said(program: Callable[[], Target]) -> None:
    torch.manual_seed(0)
    audit = Audit(DirectLoop(program(), torch.device("cpu"), seed=0))
    loud = [
        f"{result.code} {result.status}: {result.message}"
        for result in (run_check(check, audit) for check in CHECKS)
        if result.status not in SILENT
    ]
    assert loud == []
