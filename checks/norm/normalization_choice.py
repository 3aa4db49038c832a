"""NORM101: whether the network is normalised, in a way that suits the size of its batches."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.autograd import Graph
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.observation import BatchStatistics, Observation
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.reseeded import differing_weights
from nnaudit.probes.first_steps import First, FirstSteps, initial_steps
from nnaudit.report import Kind, Result, Table
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import StatisticsNorm
from nnaudit.wording import count

BATCHES = 8
"""Batches over which the noise of the statistics is measured."""

_ONE_VALUE = "Expected more than 1 value per channel"
"""How torch's error begins when a batch normalisation gets one number per channel."""

_NORMALISING = ("Norm", "Rsqrt", "Var", "Std", "WeightNorm")
"""Nodes of which a normalisation is made: of activations or of weights."""


@dataclass(frozen=True)
class Noise:
    """How much a batch normalisation's statistics differ from batch to batch.

    Attributes:
        batch: rows of its input; positions: samples per row (pixels, time steps).
        mean: standard deviation of a channel's batch means, in standard deviations of the channel.
        variance: relative standard deviation of a channel's batch variances.
    """

    module: str
    type: str
    channels: int
    batch: int
    positions: int
    mean: float
    variance: float

    @property
    def worth(self) -> float:
        """The number of independent samples whose mean would be as noisy."""
        return 1.0 / max(self.mean, 1e-6) ** 2


class NormalizationChoice(Check):
    """Is the network normalised, and in a way that suits the size of its batches?

    Why: Without normalisation or shortcuts the gradient of a deep network depends on the scale of
        every layer at once, and a learning rate that moves one layer makes another diverge. Batch
        normalisation solves that with the statistics of a batch, which with few samples are mostly
        noise: at 2 images per batch a ResNet-50 loses 11 points of accuracy, at 8 about one, while
        group normalisation loses none.
    How: Depth is the number of weight layers on the shortest path from the data to the output in
        the autograd graph, so shortcuts and skip connections make it small. It warns from the
        option `depth` on without any normalisation (of activations or weights, by a module or
        written out) and without SELU, unless the weights are loaded. For batch normalisation in
        train mode the noise of the statistics is measured: the standard deviation of the channel
        means over up to 8 batches at the same weights, in standard deviations of the channel
        (median over channels; 1 / sqrt(n) for n independent samples). It warns in these cases:
        - Batches have no more rows than the option `batch`, or the noise is that of fewer
          independent samples than the option `samples` (6 lies between the batch sizes 4 and 8 at
          which Wu and He measured losses of 3.7 and 1.2 points of accuracy).
        - The last batch of an epoch has one row.
        - The option `eps` or more is added to the variance, which is near 1 for well-scaled
          signals. This comes of BatchNorm2d(channels, 0.8): the second argument is eps, momentum is
          the third.
    Fix: nn.GroupNorm(32, channels) or nn.InstanceNorm2d(channels) for images, nn.LayerNorm(size)
        for vectors and sequences; DataLoader(..., drop_last=True) against a last batch of one row;
        BatchNorm2d(channels, momentum=0.8) where momentum was meant.
    References: Ioffe and Szegedy, Batch Normalization (ICML 2015); Wu and He, Group Normalization
        (ECCV 2018), table 2; Ba et al., Layer Normalization (2016); Klambauer et al.,
        Self-Normalizing Neural Networks (NeurIPS 2017).
    """

    code, name, kind = "NORM101", "normalization-choice", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps,)
    consequence_of = ("DATA104",)
    options: ClassVar[dict[str, float]] = {
        "depth": 10,
        "batch": 4,
        "samples": 6,
        "eps": 0.1,
    }

    def run(self, audit: Audit) -> Result:
        """Find the normalisations, and measure the noise of those that depend on the batch."""
        first = audit.probe(FirstSteps)
        if first.error is not None and _ONE_VALUE in str(first.error.original):
            return self._one_value(audit, first)
        first.require()
        seen = first.completed[0]
        local = [s for s in seen.batch_statistics if s.type != "SyncBatchNorm"]
        if local:
            return self._batch_statistics(audit, first)
        return self._without_batch_statistics(audit, seen)

    def _one_value(self, audit: Audit, first: First) -> Result:
        error = first.error
        assert error is not None
        return self.warned(
            "A training batch gives batch normalisation only one value per channel. One value has "
            "no variance, so torch raises an error.",
            measured="1 value per channel",
            threshold="more than 1",
            fix="use DataLoader(..., drop_last=True) if only the last batch is so small, else "
            "replace batch normalisation by nn.LayerNorm(size) or nn.GroupNorm(groups, channels)",
            location=error.location or audit.loop.locate("train_loader"),
        )

    def _batch_statistics(self, audit: Audit, first: First) -> Result:
        noises = _noises(_distinct(zip(first.batches, first.completed, strict=False)))
        if noises and self._unsuited(audit, noises):
            # The weights moved between those steps, which adds to the noise: once more without.
            noises = _noises(_at_the_same_weights(audit))
        noises = noises or [_unmeasured(each) for each in first.completed[0].batch_statistics]
        evidence = (_table(noises),)
        if noise := self._unsuited(audit, noises):
            return self.warned(
                f"{noise.module or 'The model'} ({noise.type}) computes its statistics over "
                f"batches of {noise.batch} rows, {_samples(noise)}{_noisy(noise)}.",
                fix="use a normalisation that does not depend on the batch, "
                f"{_instead(noise)}, or larger batches",
                measured=f"batches of {noise.batch}{_noisy(noise)}",
                threshold=f"more than {self.option(audit, 'batch'):g} rows, and the noise of at "
                f"least {self.option(audit, 'samples'):g} samples",
                evidence=evidence,
                module=noise.module,
                location=audit.loop.locate("train_loader") or audit.loop.locate("model"),
            )
        if _last_batch_size(audit.loop) == 1:
            return self._single_row(audit, noises[0], evidence)
        if (large_eps := self._large_eps(audit, evidence)) is not None:
            return large_eps
        worst = _noisiest(noises)
        return self.passed(
            f"{count(len(noises), 'batch normalisation')} over batches of at least "
            f"{min(noise.batch for noise in noises)} rows; {worst.module or 'the model'} has the "
            f"noisiest statistics{_noisy(worst)}.",
            evidence=evidence,
        )

    def _unsuited(self, audit: Audit, noises: list[Noise]) -> Noise | None:
        """Return the normalisation with too few rows or too much noise, the noisiest first."""
        few = [noise for noise in noises if noise.batch <= self.option(audit, "batch")]
        if few:
            return _noisiest(few)
        worst = _noisiest(noises)
        return worst if worst.worth < self.option(audit, "samples") else None

    def _large_eps(self, audit: Audit, evidence: tuple[Table, ...]) -> Result | None:
        """Warn of a batch normalisation whose eps outweighs the variance that it is added to."""
        limit = self.option(audit, "eps")
        for name, module in audit.loop.model.named_modules():
            eps = module.eps if isinstance(module, StatisticsNorm) else 0.0
            if eps >= limit:
                kind = type(module).__name__
                return self.warned(
                    f"{name or 'The model'} ({kind}) adds an eps of {eps:g} to the variance: a "
                    f"standard deviation of 1 comes out as {1 / math.sqrt(1 + eps):.2f}. {kind}'s "
                    "second argument is eps, its third is momentum.",
                    fix=f"nn.{kind}({module.num_features}), or nn.{kind}({module.num_features}, "
                    f"momentum={eps:g}) if momentum was meant",
                    measured=f"eps {eps:g}",
                    threshold=f"below {limit:g}",
                    evidence=evidence,
                    module=name,
                    location=audit.loop.locate(module),
                )
        return None

    def _single_row(self, audit: Audit, noise: Noise, evidence: tuple[Table, ...]) -> Result:
        crash = noise.positions == 1
        then = (
            "for which batch normalisation raises an error"
            if crash
            else "so batch normalisation uses the statistics of a single example"
        )
        return self.warned(
            f"The last batch of an epoch has one row, {then}.",
            fix="use DataLoader(..., drop_last=True) for training",
            measured="a last batch of 1 row",
            threshold="more than 1",
            evidence=evidence,
            module=noise.module,
            location=audit.loop.locate("train_loader"),
        )

    def _without_batch_statistics(self, audit: Audit, seen: Observation) -> Result:
        model = audit.loop.model
        kinds = sorted({type(m).__name__ for m in model.modules() if _is_normalisation(m)})
        if kinds:
            return self.passed(f"The network is normalised by {', '.join(kinds)}.")
        graph = seen.graph
        if graph is None:
            return self.inconclusive(
                "Not judged: the autograd graph of the model's output could not be read."
            )
        if reason := self._needs_none(audit, graph):
            return self.passed(reason)
        return self.warned(
            f"The network has {graph.depth} weight layers in a row without any normalisation or "
            "shortcut, which makes it hard to train.",
            measured=f"{graph.depth} layers",
            threshold=f"fewer than {self.option(audit, 'depth'):g}",
            fix=_to_add(model),
            location=audit.loop.locate(model) or audit.loop.locate("model"),
        )

    def _needs_none(self, audit: Audit, graph: Graph) -> str:
        """Say why a network needs no normalising modules; empty when it does."""
        if any(name in operation for operation in graph.operations for name in _NORMALISING):
            return "The network normalises its activations or weights in its own code."
        if graph.depth < self.option(audit, "depth"):
            return (
                f"The network has no normalisation and, with {graph.depth} weight layers on the "
                "shortest path from the data to the output, needs none."
            )
        if "EluBackward" in graph.operations:
            return f"The {graph.depth} layers of the network use SELU, which normalises itself."
        if _is_loaded(audit):
            return "The network has no normalisation, but its weights are loaded."
        return ""


def _at_the_same_weights(audit: Audit) -> list[Observation]:
    some = list(consecutive_batches(audit.loop, BATCHES))
    steps = list(initial_steps(audit, some))
    return _distinct((batch, step.observation) for batch, step in zip(some, steps, strict=True))


def _distinct(pairs: Iterable[tuple[Any, Observation | None]]) -> list[Observation]:
    """Keep one of those on equal batches: repeated ones would look free of noise."""
    found = {batches.digest(batch): seen for batch, seen in pairs if seen is not None}
    return list(found.values())


def _noises(observations: list[Observation]) -> list[Noise]:
    """Measure each batch normalisation's noise over at least 3 batches."""
    gathered: dict[str, list[BatchStatistics]] = {}
    for observation in observations:
        for each in observation.batch_statistics:
            if each.type != "SyncBatchNorm":
                gathered.setdefault(each.module, []).append(each)
    return [_noise(group) for group in gathered.values() if len(group) >= 3]


def _noisiest(noises: list[Noise]) -> Noise:
    return max(noises, key=lambda noise: 0.0 if math.isnan(noise.mean) else noise.mean)


def _noise(group: list[BatchStatistics]) -> Noise:
    # A last batch that is smaller belongs to the epoch, and not to the typical noise.
    size = max(each.shape[0] for each in group)
    group = [each for each in group if each.shape[0] == size] or group
    means = torch.stack([each.mean for each in group])
    variances = torch.stack([each.variance for each in group])
    spread = means.var(dim=0) if len(group) > 1 else torch.full_like(means[0], math.nan)
    total = variances.mean(dim=0) + means.var(dim=0, correction=0)
    # A channel that is constant has no scale to compare with.
    alive = total > 1e-12
    return Noise(
        module=group[0].module,
        type=group[0].type,
        channels=len(means[0]),
        batch=size,
        positions=math.prod(group[0].shape[2:]),
        mean=_median((spread / total).sqrt()[alive]),
        variance=_median((variances.std(dim=0) / variances.mean(dim=0))[alive]),
    )


def _unmeasured(seen: BatchStatistics) -> Noise:
    positions = math.prod(seen.shape[2:])
    channels = len(seen.mean)
    return Noise(seen.module, seen.type, channels, seen.shape[0], positions, math.nan, math.nan)


def _median(values: Tensor) -> float:
    values = values[torch.isfinite(values)]
    return float(values.median()) if values.numel() else math.nan


def _samples(noise: Noise) -> str:
    total = noise.batch * noise.positions
    return f"{total} values per channel" if noise.positions > 1 else "one value each"


def _noisy(noise: Noise) -> str:
    if math.isnan(noise.mean):
        return ""
    worth = f"{noise.worth:.3g}" if noise.worth < 1000 else "1000 or more"
    return (
        f"; its channel means vary by {noise.mean:.0%} of a standard deviation from batch to "
        f"batch, like those of {worth} independent samples"
    )


def _instead(noise: Noise) -> str:
    if "1d" in noise.type and noise.positions == 1:
        return f"nn.LayerNorm({noise.channels})"
    groups = next(g for g in range(min(32, noise.channels), 0, -1) if noise.channels % g == 0)
    return f"nn.GroupNorm({groups}, {noise.channels})"


def _last_batch_size(loop: Loop) -> int | None:
    """Return the size of the epoch's last batch where the loader's settings tell."""
    loader = loop.train_loader
    size = getattr(loader, "batch_size", None)
    if not isinstance(size, int) or getattr(loader, "drop_last", True):
        return None
    try:
        return len(loader.sampler) % size or size
    except (AttributeError, TypeError, NotImplementedError):
        return None


def _is_normalisation(module: nn.Module) -> bool:
    """Whether the class's name says so: ``BatchNorm2d``, ``LlamaRMSNorm``, not ``NormalHead``."""
    return re.search(r"norm(?!al(?!i[sz]))", type(module).__name__.lower()) is not None


def _is_loaded(audit: Audit) -> bool:
    if audit.loop.lacks(Needs.FRESH_RUN):
        return False
    audit.clock.check()
    with audit.loop.relaunched(audit.seed + 1) as other:
        return not any(differing_weights(audit.loop, other).values())


def _to_add(model: nn.Module) -> str:
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    images = any(isinstance(layer, nn.Conv2d) for layer in layers)
    if images:
        return "add nn.BatchNorm2d(channels) or nn.GroupNorm(32, channels) after each convolution"
    return "add nn.LayerNorm(size) after each layer, or shortcuts: x = x + block(x)"


def _table(noises: list[Noise]) -> Table:
    return Table(
        title="Noise of the batch statistics",
        columns=(
            "module", "rows", "positions", "noise of the mean", "noise of the variance",
        ),
        rows=tuple(
            (n.module, float(n.batch), float(n.positions), n.mean, n.variance) for n in noises[:30]
        ),
    )  # fmt: skip
