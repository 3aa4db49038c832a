"""What is known of optimizers: by their class, and by what they hold."""

from __future__ import annotations

from torch import Tensor
from torch.optim import AdamW, Optimizer

from nnaudit.loop.base import Loop

_SCALE_FREE = (
    "ada", "rms", "rprop", "sign", "lion", "lamb", "lars", "muon", "novograd", "prodigy",
    "shampoo", "soap", "sophia",
)  # fmt: skip
"""Parts of the names of methods that divide by the size of the gradient, or take its sign."""

_ADAPTIVE = frozenset({"Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"})


def held_by(loop: Loop) -> list[Tensor]:
    """Return the parameters of all optimizers, as often as they are held."""
    return [p for o in loop.optimizers for group in o.param_groups for p in group["params"]]


def strangers_of(loop: Loop) -> list[Tensor]:
    """Return the optimizers' parameters that no network and no loss of the program has.

    Such are float32 copies of weights in low precision, from which the program writes these.
    """
    known = {id(p) for module in loop.subjects.models for p in module.parameters()}
    return [p for p in held_by(loop) if id(p) not in known]


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether it, or a class it derives from, divides a gradient by the size of those before it.

    A step changes an element by about the learning rate then, however small its gradient.
    """
    return not _ADAPTIVE.isdisjoint(cls.__name__ for cls in type(optimizer).__mro__)


def decouples_decay(optimizer: Optimizer) -> bool:
    """Whether it shrinks weights beside the gradient, as its name with a W says (AdamW, NAdamW).

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
    """
    return isinstance(optimizer, AdamW) or "W" in type(optimizer).__name__


def is_scale_free(optimizer: Optimizer) -> bool:
    """Whether its steps keep their size when all gradients are multiplied by one number.

    So it is, up to ``eps``, with Adam and its kin (Kingma and Ba, 2015, section 2.1), RMSprop,
    Adagrad, Rprop, Lion, LAMB, Muon. Classes derived from theirs, and other libraries' of such
    names (``AdamW8bit``, ``DecoupledLion``), count as they do.
    """
    names = (cls.__name__.lower() for cls in type(optimizer).__mro__)
    return any(part in name for name in names for part in _SCALE_FREE)
