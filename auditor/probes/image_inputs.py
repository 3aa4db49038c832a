"""Pictures at the network's door: what its first convolution is given, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.targets import batch as batches
from nnaudit.targets.batch import NotSliceableError
from nnaudit.training.evaluation import evaluate, fed_to

ROWS = 64
"""Pictures that are looked at: the mean of their contrast is then known within a tenth or so."""


@dataclass(frozen=True)
class Fit:
    """How a first convolution's output fits the statistics that its batch normalisation recorded.

    Attributes:
        contrast: median over channels of log(variance of the output / running variance).
        divergence: median over channels of the Kullback-Leibler divergence, in nats, of the normal
            distribution with the output's moments from the one with the running moments.
    """

    contrast: float
    divergence: float


@dataclass(frozen=True)
class Door:
    """What :class:`ImageDoor` saw.

    Attributes:
        pictures: what the first convolution was given (N, 3, H, W), on the CPU.
        filters: its weights (out, 3, h, w), on the CPU.
        module: its name.
        fit: says how the pictures, changed by a function, fit what the network recorded; None
            where no batch normalisation follows, or one that has recorded nothing.
    """

    pictures: Tensor
    filters: Tensor
    module: str
    fit: Callable[[Callable[[Tensor], Tensor]], Fit] | None


class ImageDoor(Probe[Door | None]):
    """One batch of colour pictures, followed as far as the first batch normalisation."""

    def measure(self, audit: Audit) -> Door | None:
        """Run the model on the first batch; None where it does not begin with colour pictures.

        Raises:
            UserCodeError: the user's code raised.
        """
        loop = audit.loop
        if not any(_takes_colours(module) for module in loop.model.modules()):
            return None
        batch = next(iter(loop.batches()), None)
        if batch is None:
            return None
        with suppress(NotSliceableError, UserCodeError):
            return _door(loop, batches.take(batch, ROWS))
        # The user's code cannot do with a part of a batch.
        return _door(loop, batch)


def _door(loop: Loop, batch: Any) -> Door | None:
    # Found out beforehand: a script may take a training step to show what it feeds its model.
    fed = fed_to(loop, batch)
    first = _FirstConvolution(loop.model)
    with first:
        evaluate(loop, fed)
    return first.door()


def _takes_colours(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels == 3


class _FirstConvolution:
    """Listens, for the time of a ``with``, for the first convolution of three channels."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = ExitStack()
        self._name = ""
        self._convolution: nn.Conv2d | None = None
        self._given: Tensor | None = None
        self._made: Tensor | None = None
        self._recorded: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            if _takes_colours(module):
                handle = module.register_forward_hook(self._convolved(name))
                self._stack.callback(handle.remove)
            elif isinstance(getattr(module, "running_var", None), Tensor):
                self._stack.callback(module.register_forward_hook(self._normalised).remove)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _convolved(self, name: str) -> Callable[[nn.Conv2d, Any, Any], None]:
        def hook(module: nn.Conv2d, args: Any, output: Any) -> None:
            if self._given is None and args and isinstance(args[0], Tensor) and args[0].ndim == 4:
                self._convolution, self._name = module, name
                self._given, self._made = args[0].detach(), output.detach()

        return hook

    def _normalised(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._made is None or self._recorded is not None or not args:
            return
        given, mean, variance = args[0], module.running_mean, module.running_var
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            return
        untouched = bool((variance == 1).all()) and bool((mean == 0).all())
        if not untouched and given.shape == self._made.shape and torch.equal(given, self._made):
            self._recorded = _settled(module, mean.detach(), variance.detach())

    def door(self) -> Door | None:
        """Return what was heard."""
        convolution, given = self._convolution, self._given
        if convolution is None or given is None:
            return None
        fit = None
        if self._recorded is not None:
            fit = _fitting(convolution, given, *self._recorded)
        filters = convolution.weight.detach().float().cpu()
        return Door(given.float().cpu(), filters, self._name, fit)


def _settled(module: nn.Module, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor] | None:
    """Take out of running averages what is left in them of their start, at 0 and 1.

    As Kingma and Ba, "Adam" (ICLR 2015), section 3, do. None where nothing else is left.
    """
    count, momentum = (
        getattr(module, "num_batches_tracked", None),
        getattr(module, "momentum", None),
    )
    # Weights older than the count hold 0 there.
    if not isinstance(count, Tensor) or int(count) == 0 or not momentum:
        return mean.clone(), variance.clone()
    left = (1 - momentum) ** int(count)
    mean, variance = mean / (1 - left), (variance - left) / (1 - left)
    return (mean, variance) if bool((variance > 0).all()) else None


def _fitting(
    convolution: nn.Conv2d, given: Tensor, mean: Tensor, variance: Tensor
) -> Callable[[Callable[[Tensor], Tensor]], Fit]:
    weight = convolution.weight.detach().clone()
    bias = None if convolution.bias is None else convolution.bias.detach().clone()

    def fit(change: Callable[[Tensor], Tensor]) -> Fit:
        changed = change(given.float().cpu()).to(given)
        with torch.no_grad():
            # Padding does not matter here, and a subclass may pad in a way of its own: without.
            made = nn.functional.conv2d(
                changed, weight.to(changed), bias, convolution.stride, 0, convolution.dilation,
                convolution.groups,
            ).float()  # fmt: skip
        recorded = variance.float() + 1e-8
        ratio = (made.var((0, 2, 3)) + 1e-8) / recorded
        shift = (made.mean((0, 2, 3)) - mean.float()).square() / recorded
        divergence = 0.5 * (ratio + shift - 1 - ratio.log())
        return Fit(float(ratio.log().median()), float(divergence.median()))

    return fit
