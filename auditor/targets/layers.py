"""Kinds of layers: what torch's own are, and what those of other libraries go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm
"""Layers that normalise by the statistics of the batch."""

StatisticsNorm = nn.modules.batchnorm._NormBase
"""Layers that may keep running statistics: batch and instance normalisation."""

NORMS = (StatisticsNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""All layers that normalise."""

Dropout = nn.modules.dropout._DropoutNd
"""Torch's modules of dropout."""

DROPOUT_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.dropout: "F.dropout",
    F.dropout1d: "F.dropout1d",
    F.dropout2d: "F.dropout2d",
    F.dropout3d: "F.dropout3d",
    F.alpha_dropout: "F.alpha_dropout",
    F.feature_alpha_dropout: "F.feature_alpha_dropout",
    torch.dropout: "torch.dropout",
    torch.dropout_: "torch.dropout_",
    torch.alpha_dropout: "torch.alpha_dropout",
    torch.alpha_dropout_: "torch.alpha_dropout_",
    torch.feature_dropout: "torch.feature_dropout",
    torch.feature_dropout_: "torch.feature_dropout_",
    torch.feature_alpha_dropout: "torch.feature_alpha_dropout",
    torch.feature_alpha_dropout_: "torch.feature_alpha_dropout_",
}
"""Torch's functions of dropout, and what users call them."""

_RATES = ("p", "drop_prob", "drop_rate", "dropout", "dropout_p", "attention_dropout", "rate")
"""Where modules of dropout kind keep their rate, in torch, torchvision, timm, transformers."""


def is_dropping(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of one of :data:`DROPOUT_FUNCTIONS` with these arguments drops anything.

    ``training`` is True by default in ``F``, and is called ``train`` in ``torch``.
    """
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    on = kwargs.get("train", kwargs.get("training", args[2] if len(args) > 2 else True))
    return bool(rate) and bool(on)


def attention_dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return the rate of dropout in a call of ``F.scaled_dot_product_attention``."""
    return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Return the rates of dropout of ``module`` itself, by attribute.

    Layers of dropout of any library count by their name (``DropPath``, ``StochasticDepth``),
    recurrent layers and attention by their ``dropout``.
    """
    kind = type(module).__name__.lower()
    if isinstance(module, Dropout) or "drop" in kind or "stochasticdepth" in kind:
        names: tuple[str, ...] = _RATES
    elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        names = ("dropout",)
    else:
        return {}
    values = {name: getattr(module, name, None) for name in names}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    }


_CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""They read the mode only to choose a faster way to the same result."""


def mode_matters(module: nn.Module) -> bool:
    """Whether ``module`` itself, its children aside, computes something else in eval mode."""
    if isinstance(module, _CONTAINERS):
        return False
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return float(module.dropout) > 0.0
    if isinstance(module, Dropout):
        return module.p > 0.0
    if isinstance(module, StatisticsNorm):
        return module.running_mean is not None
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names
