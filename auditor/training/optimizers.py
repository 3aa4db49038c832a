"""What is known of an optimizer by its class."""

from __future__ import annotations

from torch.optim import Optimizer

_SCALE_FREE = (
    "ada", "rms", "rprop", "sign", "lion", "lamb", "lars", "muon", "novograd", "prodigy",
    "shampoo", "soap", "sophia",
)  # fmt: skip
"""Parts of the names of methods that divide by the size of the gradient, or take its sign."""


def is_scale_free(optimizer: Optimizer) -> bool:
    """Whether its steps keep their size when all gradients are multiplied by one number.

    So it is, up to ``eps``, with Adam and its kin (Kingma and Ba, 2015, section 2.1), RMSprop,
    Adagrad, Rprop, Lion, LAMB, Muon. Classes derived from theirs, and other libraries' of such
    names (``AdamW8bit``, ``DecoupledLion``), count as they do.
    """
    names = (cls.__name__.lower() for cls in type(optimizer).__mro__)
    return any(part in name for name in names for part in _SCALE_FREE)
