"""The layer that makes the outputs, by name: messages and fixes speak of it."""

from __future__ import annotations

import math

from torch import Tensor, nn

from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation


def output_layer(model: nn.Module, seen: Observation, call: LossCall) -> str:
    """Return the last layer with a weight whose output is as large as the input of the loss.

    Empty where there is none: what follows it (an activation, a flattening) has no weight to set.
    """
    modules = dict(model.named_modules())
    for activation in reversed(seen.activations):
        weight = getattr(modules.get(activation.module), "weight", None)
        fits = activation.is_leaf and math.prod(activation.shape) == call.input.numel()
        if fits and isinstance(weight, Tensor):
            return activation.module
    return ""


def has_bias(model: nn.Module, layer: str) -> bool:
    """Whether the layer called ``layer`` in ``model`` adds a bias that can be set."""
    return isinstance(getattr(dict(model.named_modules()).get(layer), "bias", None), Tensor)
