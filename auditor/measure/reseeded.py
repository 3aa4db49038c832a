"""Whether the weights come from the seed: random ones do, loaded ones do not."""

from __future__ import annotations

import torch

from nnaudit.loop.base import Loop


def differing_weights(loop: Loop, other: Loop) -> dict[str, bool]:
    """Say of each parameter whether ``loop`` and ``other`` gave it different values.

    ``other`` is ``loop`` relaunched under another seed. A parameter that differs was drawn at
    random. Parameters that hold one number throughout (biases, gains) say nothing and are absent.
    """
    theirs = dict(other.model.named_parameters())
    return {
        name: not torch.equal(parameter.detach(), theirs[name].detach())
        for name, parameter in loop.model.named_parameters()
        if name in theirs and parameter.shape == theirs[name].shape and varies(parameter)
    }


def varies(parameter: torch.Tensor) -> bool:
    """Whether the parameter holds more than one number, so that equal values mean something."""
    values = parameter.detach()
    return values.numel() > 1 and not bool((values == values.flatten()[0]).all())
