"""GEN104: whether a pretrained network gets images preprocessed as in its pretraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.image_inputs import Door, Fit, ImageDoor
from nnaudit.probes.loaded_weights import LoadedWeights
from nnaudit.report import Kind, Result, Table

MEAN = (0.485, 0.456, 0.406)
SD = (0.229, 0.224, 0.225)
"""Of ImageNet's channels, in [0, 1]: what most published networks expect to be normalised by."""

_SLACK = 1e-3
"""Images are in [0, 1] up to this: resizing with a cubic filter, and half precision."""


@dataclass(frozen=True)
class Preprocessing:
    """A preprocessing step that the images at hand may lack.

    Attributes:
        words: what it does, for people.
        line: the line to write.
        apply: does it to the images at hand (N, 3, H, W).
    """

    words: str
    line: str
    apply: Callable[[Tensor], Tensor]


class PretrainedPreprocessing(Check):
    """Does a pretrained network get images preprocessed as in its pretraining?

    Why: Pretrained filters expect one range of values. At another range their output is noise to
        the layers behind them. Nothing crashes and fine-tuning still learns, but most of what
        pretraining gave is lost.
    How: Only where weights were loaded. The range of values at the first convolution says what may
        be missing: values in [0, 255] were not divided, values in [0, 1] not normalised, values in
        [-1, 1] or [-2.1, 2.6] prepared for another family of networks. The network says whether it
        matters, because its first batch normalisation holds the statistics of the first filters'
        output in pretraining. It warns where the log ratio of the variance now to the recorded one
        exceeds the option `contrast` (median over channels, 1 is a factor of e; crops of two
        photographs prepared correctly differ by up to e^0.8), where the missing preparation halves
        that log ratio, and where it divides the divergence from the recorded statistics by the
        option `gain`.
        - Without a batch normalisation the input range is compared with what torchvision documents
          for the weights.
        - Swapped colour channels leave the same statistics and are not detected.
    Fix: transforms = ResNet18_Weights.DEFAULT.transforms(), or
        Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) after ToTensor().
    References: torchvision.models, "Using the pre-trained models"; Li et al., Adaptive Batch
        Normalization for practical domain adaptation (Pattern Recognition 80, 2018).
    """

    code, name, kind = "GEN104", "pretrained-preprocessing", Kind.JUDGEMENT
    needs = (Needs.OWN_BATCHES, Needs.FRESH_RUN)
    probes = (LoadedWeights, ImageDoor)
    consequence_of = ("GEN103",)
    options: ClassVar[dict[str, float]] = {"contrast": 1.0, "gain": 4.0}

    def run(self, audit: Audit) -> Result:
        """Compare the images, preprocessed in each plausible way, with the network's record."""
        loaded = audit.probe(LoadedWeights)
        if not loaded.pretrained:
            return self.skipped("The network is not pretrained.")
        door = audit.probe(ImageDoor)
        if door is None:
            return self.skipped("The network does not begin with a convolution of colour images.")
        missing = _plausible(door.pictures)
        details: dict[str, Any] = {"location": audit.loop.locate("train_loader")}
        if door.fit is not None:
            return self._by_record(audit, door, door.fit, missing, details)
        return self._by_description(door, loaded.published, missing, details)

    def _by_record(
        self,
        audit: Audit,
        door: Door,
        fit: Callable[[Callable[[Tensor], Tensor]], Fit],
        missing: tuple[Preprocessing, ...],
        details: dict[str, Any],
    ) -> Result:
        now = fit(lambda pictures: pictures)
        tried = [(each, fit(each.apply)) for each in missing]
        details["evidence"] = (_table(now, tried),)
        best = min(tried, key=lambda pair: pair[1].divergence, default=None)
        if best is not None and self._better(audit, now, best[1]):
            return self.warned(
                f"The output of the first filters has {_times(now)} the variance recorded in "
                f"pretraining (images in {_range(door.pictures)}); with the images {best[0].words} "
                f"it has {_times(best[1])}.",
                measured=f"{_times(now)} the variance, images in {_range(door.pictures)}",
                threshold=f"within a factor of {2.718 ** self.option(audit, 'contrast'):.1f}",
                fix=best[0].line,
                module=door.module,
                **details,
            )
        return self.passed(
            f"Images in {_range(door.pictures)} suit the network: the output of its first filters "
            f"has {_times(now)} the variance recorded in pretraining.",
            evidence=details["evidence"],
        )

    def _better(self, audit: Audit, now: Fit, then: Fit) -> bool:
        return (
            abs(now.contrast) > self.option(audit, "contrast")
            and abs(then.contrast) < 0.5 * abs(now.contrast)
            and then.divergence * self.option(audit, "gain") < now.divergence
        )

    def _by_description(
        self,
        door: Door,
        published: tuple[Any, ...],
        missing: tuple[Preprocessing, ...],
        details: dict[str, Any],
    ) -> Result:
        expected = _described(published)
        if expected is None:
            return self.inconclusive(
                "Which preprocessing the pretrained weights expect is unknown: no batch "
                "normalisation follows the first convolution, and they are not torchvision's."
            )
        name, mean, sd = expected
        low, high = float(door.pictures.min()), float(door.pictures.max())
        # Normalised by anything but (0, 1), values reach below 0.
        if min(mean) > 0 and low >= -_SLACK:
            wanted = missing[0].words if missing else "normalised"
            return self.warned(
                f"{name} expects images normalised by mean {mean} and std {sd}, but the first "
                f"convolution gets values in {_range(door.pictures)}.",
                measured=f"values in [{low:.3g}, {high:.3g}]",
                threshold=f"images {wanted}",
                fix=f"transforms = {name}.transforms()",
                module=door.module,
                **details,
            )
        return self.passed(f"Images in {_range(door.pictures)} match what {name} expects.")


def _plausible(pictures: Tensor) -> tuple[Preprocessing, ...]:
    """Return the preprocessing steps that images of this range may lack."""
    low, high = float(pictures.min()), float(pictures.max())
    mean, sd = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SD))
    imagenet = f"Normalize(mean={MEAN}, std={SD})"
    halves = "Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
    if low < -1 - _SLACK:
        unit = bool(
            ((pictures * sd + mean) > -0.02).all() and ((pictures * sd + mean) < 1.02).all()
        )
        halved = Preprocessing("scaled to [-1, 1]", halves, lambda x: (x * sd + mean) * 2 - 1)
        return (halved,) if unit else ()
    if low < -_SLACK:
        if high > 1 + _SLACK:
            return ()
        standard = Preprocessing(
            "normalised by ImageNet's mean and std", imagenet, lambda x: ((x + 1) / 2 - mean) / sd
        )
        return (standard,)
    if high > 255 + _SLACK:
        return ()
    scale = 1.0 if high <= 1 + _SLACK else 255.0
    words = "divided by 255 and " if scale > 1 else ""
    first = "x / 255, then " if scale > 1 else ""
    return (
        Preprocessing(
            f"{words}normalised by ImageNet's mean and std",
            f"{first}{imagenet}",
            lambda x: (x / scale - mean) / sd,
        ),
        Preprocessing(f"{words}scaled to [-1, 1]", f"{first}{halves}", lambda x: x / scale * 2 - 1),
        *((Preprocessing("divided by 255", "x / 255", lambda x: x / 255),) if scale > 1 else ()),
    )


def _described(
    published: tuple[Any, ...],
) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Return what torchvision says of the weights it loaded last: name, mean and sd."""
    for weights in reversed(published):
        try:
            preset = weights.transforms()
            mean, sd = tuple(preset.mean), tuple(preset.std)
        except (AttributeError, TypeError):
            continue
        return f"{type(weights).__name__}.{weights.name}", mean, sd
    return None


def _times(fit: Fit) -> str:
    return f"{torch.tensor(fit.contrast).exp().item():.3g} times"


def _range(pictures: Tensor) -> str:
    return f"[{float(pictures.min()):.3g}, {float(pictures.max()):.3g}]"


def _table(now: Fit, tried: list[tuple[Preprocessing, Fit]]) -> Table:
    rows = [("as they are", now), *((each.words, fit) for each, fit in tried)]
    return Table(
        title="Output of the first filters compared with the statistics recorded in pretraining",
        columns=("images", "log variance ratio", "divergence, nats"),
        rows=tuple((words, fit.contrast, fit.divergence) for words, fit in rows),
    )
