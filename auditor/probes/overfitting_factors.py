"""Which of five methods against overfitting a program uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.graph import FUNCTION
from nnaudit.loop.planned_rate import planned_lr
from nnaudit.measure.random_access import RandomAccess
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import dropout_rates

ITEMS = 8
"""Items of the training set that are looked up twice: a random transform shows in one of them."""

DEEP = 3
"""Weight matrices from which on normalising what is between them is worth a try."""

FIRST_DECAY = 0.01
"""Where to start with weight decay: AdamW's default."""


@dataclass(frozen=True)
class OverfittingFactor:
    """One way to regularise.

    Attributes:
        name: of the five, in the order in which to try them.
        on: whether it is in use; None where that cannot be told.
        setting: what was found, for people.
        line: the line to write to use it, or to use more of it; empty where it has no use.
    """

    name: str
    on: bool | None
    setting: str
    line: str


class OverfittingFactors(Probe[tuple[OverfittingFactor, ...]]):
    """The five methods, read from the real objects; some items are looked up."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> tuple[OverfittingFactor, ...]:
        """Read them in order.

        Raises:
            UserCodeError: the loader raised.
        """
        loop = audit.loop
        batch = next(iter(loop.batches()), None)
        shape = _input_shape(loop, batch)
        flows = {a for seen in audit.probe(FirstSteps).observations for a, _ in seen.flows}
        return (
            _data(loop),
            _augmentation(loop, shape),
            _normalisation(loop.model, shape),
            _decay_and_dropout(loop, called=FUNCTION in flows),
            _capacity(loop.model),
        )


def next_factor(factors: tuple[OverfittingFactor, ...]) -> OverfittingFactor:
    """Return the first that is not used and of use; the last, less capacity, when all are used.

    More data comes first of all, but is not to be had by writing a line.
    """
    return next((each for each in factors[1:-1] if each.line and each.on is False), factors[-1])


def _input_shape(loop: Loop, batch: Any) -> tuple[int, ...]:
    """The shape of one row of the first floating input; empty for ids and where unknown."""
    if batch is None:
        return ()
    for _, tensor in batches.tensors(loop.split_batch(batch).inputs):
        return tuple(tensor.shape[1:]) if tensor.is_floating_point() else ()
    return ()


def _data(loop: Loop) -> OverfittingFactor:
    try:
        rows = len(loop.train_loader.dataset)
    except (AttributeError, TypeError):
        return OverfittingFactor("more data", None, "a stream of unknown length", "")
    size = _size(loop.model)
    ratio = f", {size / rows:.3g} parameters per row" if rows else ""
    return OverfittingFactor("more data", None, f"{rows:,} rows{ratio}", "")


def _augmentation(loop: Loop, shape: tuple[int, ...]) -> OverfittingFactor:
    line = ""
    if len(shape) == 3 and min(shape[1:]) > 4:
        size = f"({shape[1]}, {shape[2]})" if shape[1] != shape[2] else f"{shape[1]}"
        line = f"transforms.RandomCrop({size}, padding={max(1, min(shape[1:]) // 8)}), and "
        line += "transforms.RandomHorizontalFlip() where a mirrored image keeps its label"
    elif len(shape) == 2:
        line = "x = x + 0.05 * x.std() * torch.randn_like(x) on training rows, or a random shift"
    names = ", ".join(_transforms(loop))
    varies = _items_vary(loop)
    if varies is None:
        return OverfittingFactor(
            "augmentation", None, names or "unknown: items cannot be looked up twice", line
        )
    found = (
        names
        if varies and names
        else "items change when read again"
        if varies
        else "items do not change when read again"
    )
    return OverfittingFactor("augmentation", varies, found, line)


def _transforms(loop: Loop) -> Iterator[str]:
    """The names of the training set's transforms, the members of a composition one by one."""
    dataset = getattr(loop.train_loader, "dataset", None)
    while dataset is not None:
        for attribute in ("transform", "transforms", "augment", "augmentation"):
            made = getattr(dataset, attribute, None)
            if made is not None:
                parts = getattr(made, "transforms", None)
                for part in parts if isinstance(parts, (list, tuple)) else [made]:
                    name = getattr(part, "__name__", type(part).__name__)
                    if name not in ("StandardTransform", "<lambda>"):
                        yield str(name)
                return
        dataset = getattr(dataset, "dataset", None)


def _items_vary(loop: Loop) -> bool | None:
    access = RandomAccess.of(loop.train_loader)
    if access is None:
        return None
    try:
        chosen = access.spread(ITEMS)
        one, two = (batches.digest(access.fetch(chosen)) for _ in range(2))
    except (UserCodeError, TypeError):
        return None
    return one != two


def _normalisation(model: nn.Module, shape: tuple[int, ...]) -> OverfittingFactor:
    found = Counter(
        type(module).__name__
        for module in model.modules()
        if "Norm" in type(module).__name__ and not list(module.children())
    )
    norm = "nn.BatchNorm2d(channels)" if len(shape) == 3 else "nn.LayerNorm(size)"
    if found:
        told = ", ".join(f"{count} {name}" for name, count in found.most_common(3))
        return OverfittingFactor("architecture: normalisation", True, told, "")
    deep = sum(p.ndim > 1 for p in model.parameters()) >= DEEP
    line = f"{norm} after each hidden layer" if deep else ""
    return OverfittingFactor("architecture: normalisation", False, "none", line)


def _decay_and_dropout(loop: Loop, *, called: bool) -> OverfittingFactor:
    """Read both; ``called`` says that a dropout is called as a function, at a rate not known."""
    decays = [_decay(group) for o in loop.optimizers for group in o.param_groups]
    decay = max(decays, default=0.0)
    rates = sorted(_dropouts(loop.model), reverse=True)
    told = [f"weight_decay={decay:g}" if decay else "no weight decay"]
    told += [f"{len(rates)} dropouts up to p={rates[0]:g}"] if rates else []
    told += ["F.dropout called in forward"] if called else []
    told += [] if rates or called else ["no dropout"]
    name = "weight decay and dropout"
    if not decay and loop.optimizers:
        kind = type(loop.optimizers[0]).__name__
        kind = {"Adam": "AdamW"}.get(kind, kind)
        rate = max(planned_lr(loop, group) for group in loop.optimizers[0].param_groups)
        line = f"torch.optim.{kind}(model.parameters(), lr={rate:g}, weight_decay={FIRST_DECAY})"
        return OverfittingFactor(name, False, ", ".join(told), line)
    if not rates and not called:
        return OverfittingFactor(
            name, False, ", ".join(told), "nn.Dropout(0.1) before the last layer"
        )
    return OverfittingFactor(name, True, ", ".join(told), "")


def _decay(group: dict[str, Any]) -> float:
    amount = group.get("weight_decay", 0.0)
    return float(amount) if isinstance(amount, (int, float, Tensor)) else 0.0


def _dropouts(model: nn.Module) -> Iterator[float]:
    """The rates of dropout, stochastic depth and attention dropout that are on."""
    for module in model.modules():
        rate = max(dropout_rates(module).values(), default=0.0)
        if rate > 0.0:
            yield rate


def _capacity(model: nn.Module) -> OverfittingFactor:
    size = _size(model)
    return OverfittingFactor(
        "less capacity", None, f"{size:,} parameters", "half the width of hidden layers"
    )


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not is_lazy(p) and p.requires_grad)
