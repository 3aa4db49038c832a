"""GEN102: whether photographs are learnt from scratch where pretrained weights would help."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.probes.image_inputs import ImageDoor
from nnaudit.report import Kind, Result

PERMUTATIONS = 200


class TransferLearning(Check):
    """Would weights pretrained on photographs help?

    Why: The first layers of a network for photographs become edge and colour filters whatever it is
        trained for, and need a million images to become good ones. On a few thousand images the
        same network learns faster and ends better when it starts from published weights.
    How: It notes where three things hold. The inputs are photographs by their statistics: three
        channels of at least the option `side` pixels per side, neighbouring pixels correlated above
        0.7 in both directions, channels correlated above 0.4 but no copies of each other. The data
        set has at most the option `rows` of them. And the first filters look random: weights at
        neighbouring positions, or at the same position in different colours, are no more alike than
        after each filter's positions are permuted. The sum of their products is compared with its
        permutation distribution; the limit is the option `z` in standard deviations (32 published
        filters of 3 x 3 reach 12).
        - Digits, spectrograms and tiny images are not photographs in this sense.
    Fix: model = torchvision.models.resnet18(weights="DEFAULT"); model.fc = nn.Linear(512, classes)
    References: Yosinski et al., How transferable are features in deep neural networks? (NeurIPS
        2014); Moran, Notes on continuous stochastic phenomena (Biometrika 37, 1950).
    """

    code, name, kind = "GEN102", "transfer-learning", Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES,)
    probes = (ImageDoor,)
    options: ClassVar[dict[str, float]] = {"side": 64, "rows": 100_000, "z": 4.0}

    def run(self, audit: Audit) -> Result:
        """Look at the images, then at the filters."""
        door = audit.probe(ImageDoor)
        if door is None:
            return self.skipped("The network does not begin with a convolution of colour images.")
        if reason := self._no_matter(audit, door.pictures):
            return self.skipped(reason)
        rows = _rows(audit.loop)
        alike = filter_autocorrelation(door.filters)
        if alike is None:
            return self.skipped("The first filters are too small to tell random from trained ones.")
        if rows is not None and rows > self.option(audit, "rows"):
            return self.passed(
                f"{rows:,} images are enough to learn from without pretrained weights."
            )
        if alike > self.option(audit, "z"):
            return self.passed(
                f"The first filters are smooth ({alike:.0f} standard deviations from random ones): "
                "they are pretrained."
            )
        many = "an unknown number of" if rows is None else f"{rows:,}"
        return self.noted(
            f"The network learns from {many} photographs starting from random weights: its first "
            f"filters are {alike:.1f} standard deviations from random ones.",
            measured=f"{alike:.1f} standard deviations",
            threshold=f"{self.option(audit, 'z'):g} standard deviations",
            module=door.module,
            location=audit.loop.locate("model"),
            fix='model = torchvision.models.resnet18(weights="DEFAULT"); '
            "model.fc = nn.Linear(512, classes)",
        )

    def _no_matter(self, audit: Audit, pictures: Tensor) -> str:
        """Say why published weights would be of no help; empty where they would be."""
        if min(pictures.shape[2:]) < self.option(audit, "side"):
            return (
                f"Images of {pictures.shape[3]} x {pictures.shape[2]} pixels are too small for "
                "published weights to help much."
            )
        if not looks_photographic(pictures):
            return "The inputs do not have the statistics of colour photographs."
        return ""


def looks_photographic(pictures: Tensor) -> bool:
    """Whether ``pictures`` (N, 3, H, W) have the statistics of colour photographs."""
    usable = pictures[pictures.flatten(1).std(1) > 0]
    if len(usable) < 4:
        return False
    across = correlation(usable[..., :-1], usable[..., 1:])
    down = correlation(usable[..., :-1, :], usable[..., 1:, :])
    red, green, blue = usable.unbind(1)
    channels = torch.stack([correlation(red, green), correlation(green, blue)])
    smooth = min(float(across.median()), float(down.median())) > 0.7
    # Grey pictures copied into three channels are correlated by 1, sensors of other things by 0.
    return smooth and float(channels.median()) > 0.4 and float(channels.min()) < 0.999


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of ``a`` and ``b`` (N, ...) row by row, of shape (N,)."""
    a, b = (t.flatten(1).double() for t in (a, b))
    a, b = (t - t.mean(1, keepdim=True) for t in (a, b))
    product: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    return product


def filter_autocorrelation(filters: Tensor) -> float | None:
    """Return how much more alike neighbours in ``filters`` (out, 3, h, w) are than by chance.

    In standard deviations of the permutation distribution; None for filters below 3 x 3.
    """
    size = filters.shape[2:]
    if min(size) < 3:
        return None
    planes = filters.double() - filters.double().mean((2, 3), keepdim=True)
    # Every plane counts alike: a few strong filters would say little by themselves.
    planes = planes / planes.flatten(2).norm(dim=2)[..., None, None].clamp_min(1e-12)
    generator = torch.Generator().manual_seed(0)
    null = []
    for _ in range(PERMUTATIONS):
        order = torch.rand(*planes.shape[:2], size.numel(), generator=generator).argsort(2)
        null.append(_alike(planes.flatten(2).gather(2, order).reshape(planes.shape)))
    chance = torch.tensor(null, dtype=torch.float64)
    return float((_alike(planes) - chance.mean()) / chance.std().clamp_min(1e-12))


def _alike(planes: Tensor) -> float:
    """Return how alike neighbours in place are, and the colours of one place."""
    across = (planes[..., :-1] * planes[..., 1:]).sum()
    down = (planes[..., :-1, :] * planes[..., 1:, :]).sum()
    colours = (planes * planes.roll(1, dims=1)).sum()
    return float(across + down + colours)


def _rows(loop: Loop) -> int | None:
    try:
        return len(loop.train_loader.dataset)
    except (AttributeError, TypeError):
        return None
