"""The lowest loss that a set of rows allows, and the lowest without looking at the inputs.

A network that reads its input can say something else for every different input, and nothing else
for equal ones. So its best loss is found by grouping equal inputs and giving each group its best
answer; with all rows in one group the answer is the best constant. Where equal inputs have
different targets, with label smoothing and with soft targets the floor is above zero: no training
can go below it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import TARGET_NAMES, ModelInputs

REGRESSION = frozenset({"mse", "l1", "smooth_l1", "huber", "poisson_nll"})
"""Kinds whose target is a quantity rather than a class or a probability."""

CLASSIFICATION = frozenset({"cross_entropy", "nll"})

_DENSE_LIMIT = 20_000_000
"""Elements (targets x classes) up to which a target distribution per element is written out."""


@dataclass(frozen=True)
class Bounds:
    """What a loss can come down to on given rows, in the units of one training step's loss.

    Attributes:
        floor: the lowest loss of a network that tells apart every two inputs that differ.
        constant: the lowest loss of a prediction that ignores the inputs.
        kind: the loss function's, a value of :data:`~nnaudit.loop.losses.LOSS_FUNCTIONS`.
        rows, distinct: how many rows there are, and how many different inputs among them.
        reconstruction: the target is as large as the input and like it: an autoencoder, whose
            bottleneck is there to keep the floor out of reach.
    """

    floor: float
    constant: float
    kind: str
    rows: int
    distinct: int
    reconstruction: bool = False

    @property
    def informative(self) -> bool:
        """Whether the inputs can help at all: a constant is clearly worse than the floor."""
        return self.constant - self.floor > 1e-4 * max(abs(self.constant), 1e-6)

    def level(self, initial: float) -> float:
        """Return the loss at which the rows count as fitted, for a run that began at ``initial``.

        Nine tenths of the way to the floor, from the higher of ``initial`` and the best constant;
        for a quantity from the best constant (an R2 of 0.9 for squared errors), because learning
        a large mean closes most of the way and says nothing. At the least, half of what the
        inputs can tell; a reconstruction needs no more than that.
        """
        told = self.constant - self.floor
        if self.reconstruction:
            return self.floor + 0.5 * told
        if self.kind in REGRESSION:
            return self.floor + 0.1 * told
        return self.floor + min(0.1 * (max(initial, self.constant) - self.floor), 0.5 * told)

    def closed(self, loss: float) -> float:
        """Return the share of the way from the best constant (0) to the floor (1)."""
        return (self.constant - loss) / max(self.constant - self.floor, 1e-30)


def bounds(
    calls: Sequence[LossCall], feds: Sequence[ModelInputs], sizes: Sequence[int]
) -> Bounds | None:
    """Return the bounds of the loss over several batches; None where no theory gives them.

    Args:
        calls: the loss call of each batch; all of one kind.
        feds: what the model was given for each batch.
        sizes: the number of rows of each batch.
    """
    best = _BEST.get(calls[0].kind)
    if best is None:
        return None
    try:
        call, rows = _joined(calls), sum(sizes)
    except RuntimeError:  # padded to another length in each batch
        return _averaged(
            [bounds([c], [f], [n]) for c, f, n in zip(calls, feds, sizes, strict=True)],
            _flattened(calls),
        )
    identity = _identities(feds, sizes)
    try:
        own = _groups(identity, feds, sizes, call)
        floor = best(call, own)
        constant = best(call, None)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    # A sum is over the rows of one step, not over all of them.
    share = len(calls) if call.reduction == "sum" else 1
    if floor is None or constant is None:
        return None
    low, high = float(floor) / share, float(constant) / share
    return Bounds(
        floor=low,
        constant=max(low, high),
        kind=call.kind,
        rows=rows,
        distinct=len(torch.unique(identity)),
        reconstruction=_is_reconstruction(feds[0], sizes[0], calls[0]),
    )


def best_constant(calls: Sequence[LossCall]) -> float | None:
    """Return the loss of the best prediction that ignores the inputs, in one step's units.

    Their inputs may be placeholders; all are of one kind. None where no theory gives it.
    """
    if calls[0].kind not in _BEST or any(call.kind != calls[0].kind for call in calls):
        return None
    try:
        return _constant_of(_joined(calls), len(calls))
    except (RuntimeError, ValueError, TypeError, IndexError):
        if len(calls) == 1:
            return None
        if (flat := _flattened(calls)) is not None:
            return _constant_if_any(flat, len(calls))
        each = [best_constant([call]) for call in calls]
        known = [one for one in each if one is not None]
        return sum(known) / len(known) if len(known) == len(calls) else None


def _constant_of(joined: LossCall, steps: int) -> float | None:
    """Return the best constant's loss of a call that stands for those of ``steps`` steps."""
    found = _BEST[joined.kind](joined, None)
    return None if found is None else float(found) / (steps if joined.reduction == "sum" else 1)


def _constant_if_any(joined: LossCall, steps: int) -> float | None:
    try:
        return _constant_of(joined, steps)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _averaged(each: list[Bounds | None], flat: LossCall | None) -> Bounds | None:
    """Bounds of batches that do not fit together: equal inputs are found within each only.

    The best constant is of the elements of all of them, where they can be laid ``flat``: the best
    for one batch, if that is a single picture or text, is that batch learnt by heart.
    """
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return None
    floor = sum(one.floor for one in known) / len(known)
    constant = _constant_if_any(flat, len(each)) if flat is not None else None
    if constant is None:
        constant = sum(one.constant for one in known) / len(known)
    return dataclasses.replace(
        known[0],
        floor=floor,
        constant=max(floor, constant),
        rows=sum(one.rows for one in known),
        distinct=sum(one.distinct for one in known),
    )


def _is_reconstruction(fed: ModelInputs, rows: int, call: LossCall) -> bool:
    numel = call.target.numel()
    if not call.target.is_floating_point() or numel < 8 * rows:
        return False
    return any(t.is_floating_point() and t.numel() == numel for t in input_tensors(fed, rows))


def _joined(calls: Sequence[LossCall]) -> LossCall:
    """One call over the rows of all ``calls``, its input a placeholder of the right shape.

    Arguments beside input, target and weights of single elements are the first one's.
    """
    first = calls[0]
    shape = first.input.shape
    if not shape:
        return first
    arguments = dict(first.arguments)
    for name, value in first.arguments.items():
        elementwise = isinstance(value, Tensor) and value.shape == shape
        if name == "target" or (elementwise and name != "input"):
            arguments[name] = torch.cat([call.arguments[name] for call in calls])
    rows = sum(call.input.shape[0] for call in calls)
    arguments["input"] = placeholder(first.input, (rows, *shape[1:]))
    return dataclasses.replace(first, arguments=arguments)


def _flattened(calls: Sequence[LossCall]) -> LossCall | None:
    """One call over the elements of ``calls`` whose rows are of different shapes.

    None where an element is more than a number or a class, or is not compared by itself.
    """
    first = calls[0]
    if any(call.input.ndim == 0 or call.target.ndim == 0 for call in calls):
        return None
    target = torch.cat([call.target.reshape(-1) for call in calls])
    arguments = {**first.arguments, "target": target}
    if first.kind in CLASSIFICATION and not target.is_floating_point():
        classes = {call.input.shape[1] if call.input.ndim > 1 else 0 for call in calls}
        if len(classes) > 1 or 0 in classes:
            return None
        shape: tuple[int, ...] = (target.numel(), classes.pop())
    elif first.kind in REGRESSION | {"bce", "bce_with_logits"}:
        if any(call.input.shape != call.target.shape for call in calls):
            return None
        shape = (target.numel(),)
        for name, value in first.arguments.items():
            if name in ("input", "target") or not isinstance(value, Tensor) or value.numel() == 1:
                continue
            if any(call.arguments[name].shape != call.input.shape for call in calls):
                return None
            arguments[name] = torch.cat([call.arguments[name].reshape(-1) for call in calls])
    else:
        return None
    arguments["input"] = placeholder(first.input, shape)
    return dataclasses.replace(first, arguments=arguments)


def placeholder(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros of ``shape`` like ``tensor`` that take no memory."""
    return tensor.new_zeros(()).expand(tuple(shape))


def input_tensors(fed: ModelInputs, rows: int) -> list[Tensor]:
    """Return the tensors with ``rows`` rows that the model is given, labels in kwargs left out.

    Not sparse ones, whose rows cannot be taken apart.
    """
    kwargs = {key: value for key, value in fed.kwargs.items() if key not in TARGET_NAMES}
    found = [tensor for _, tensor in batches.tensors((fed.args, kwargs))]
    strided = [t for t in found if t.layout is torch.strided]
    return [t for t in strided if t.ndim > 0 and t.shape[0] == rows]


def _identities(feds: Sequence[ModelInputs], sizes: Sequence[int]) -> Tensor:
    """Return one number per row; equal inputs have equal numbers. Shape (rows,)."""
    known: dict[str, int] = {}
    identity: list[int] = []
    for fed, size in zip(feds, sizes, strict=True):
        # Plus zero: there are two zeros, of different bits.
        columns = [batches.row_digests(tensor + 0) for tensor in _plain(input_tensors(fed, size))]
        for row in range(size):
            key = "".join(c[row] for c in columns) or f"row {len(identity)}"
            short = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
            identity.append(known.setdefault(short, len(known)))
    return torch.tensor(identity, dtype=torch.long)


def _plain(tensors: list[Tensor]) -> list[Tensor]:
    return [t.int() if t.dtype is torch.bool else t for t in tensors]


def _groups(
    identity: Tensor, feds: Sequence[ModelInputs], sizes: Sequence[int], call: LossCall
) -> Tensor:
    """Return group numbers of shape (rows, 1), or (rows, positions) for a next-token model."""
    if call.kind in CLASSIFICATION and len({len(fed.inputs) for fed in feds}) == 1:
        tensors = [input_tensors(fed, size)[:1] for fed, size in zip(feds, sizes, strict=True)]
        if (
            all(t and _are_tokens(t[0]) for t in tensors)
            and len({t[0].shape[1] for t in tensors}) == 1
        ):
            tokens = torch.cat([t[0] for t in tensors]).long().cpu()
            positions = _next_token_positions(tokens, call)
            if positions:
                return _prefixes(tokens)[:, :positions]
    return identity.unsqueeze(1)


def _are_tokens(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] > 1


def _next_token_positions(tokens: Tensor, call: LossCall) -> int:
    """Return how many positions are predicted when the target is the shifted input, else 0."""
    target = call.target
    if target.is_floating_point() or target.numel() % len(tokens):
        return 0
    target = target.reshape(len(tokens), -1).cpu()
    width = min(target.shape[1], tokens.shape[1] - 1)
    if target.shape[1] not in (tokens.shape[1], tokens.shape[1] - 1):
        return 0
    counted = target[:, :width] != int(call.arguments.get("ignore_index", -100))
    same = (target[:, :width] == tokens[:, 1 : width + 1]) & counted
    return target.shape[1] if same.sum() > 0.95 * counted.sum() > 0 else 0


def _prefixes(tokens: Tensor) -> Tensor:
    """Number the prefixes: equal at (i, t) and (j, t) where the rows agree up to t."""
    ids = torch.zeros(len(tokens), dtype=torch.long)
    columns = []
    for t in range(tokens.shape[1]):
        ids = torch.unique(torch.stack((ids, tokens[:, t])), dim=1, return_inverse=True)[1]
        columns.append(ids)
    return torch.stack(columns, dim=1)


def _keys(groups: Tensor | None, elements: int, device: torch.device) -> Tensor:
    """Return a dense group number for each of ``elements`` targets laid out row by row.

    ``groups`` of one column are per row and are refined by the position within the row; None
    stands for one group of all.
    """
    if groups is None:
        return torch.zeros(elements, dtype=torch.long, device=device)
    rows = len(groups)
    if elements % rows:  # packed or selected elements: nothing says which row they are of
        return torch.arange(elements, device=device)
    width = elements // rows
    if groups.shape[1] not in (1, width):
        groups = groups[:, :1]
    wide = groups.expand(rows, width) * width + torch.arange(width)
    dense: Tensor = torch.unique(wide.reshape(-1), return_inverse=True)[1]
    return dense.to(device)


def _best_class(call: LossCall, groups: Tensor | None) -> float | None:
    """Cross-entropy and NLL: every group predicts its own distribution of targets."""
    target, input_ = call.target, call.input
    smoothing = float(call.arguments.get("label_smoothing", 0.0))
    if target.is_floating_point() or smoothing > 0:
        return _best_distribution(call, groups, smoothing)
    classes = input_.shape[1] if input_.ndim > 1 else input_.shape[0]
    weight = call.arguments.get("weight")
    flat = target.reshape(-1)
    keys = _keys(groups, flat.numel(), flat.device)
    counted = flat != int(call.arguments.get("ignore_index", -100))
    flat, keys = flat[counted].long(), keys[counted]
    if flat.numel() == 0 or int(flat.min()) < 0 or int(flat.max()) >= classes:
        return None
    mass = torch.ones_like(flat, dtype=torch.double) if weight is None else weight.double()[flat]
    pair, where = torch.unique(keys * classes + flat, return_inverse=True)
    joint = torch.zeros(len(pair), dtype=torch.double, device=flat.device).index_add_(
        0, where, mass
    )
    group = torch.zeros(int(keys.max()) + 1, dtype=torch.double, device=flat.device)
    group.index_add_(0, keys, mass)
    nats = joint * (group[pair // classes] / joint.clamp_min(1e-300)).log()
    total = float(nats.sum())
    return total if call.reduction == "sum" else total / max(float(mass.sum()), 1e-300)


def _best_distribution(call: LossCall, groups: Tensor | None, smoothing: float) -> float | None:
    """Soft or smoothed targets: the loss at the groups' mean distributions."""
    input_, target = call.input, call.target
    if input_.numel() > _DENSE_LIMIT or input_.ndim < 2:
        return None
    classes = input_.shape[1]
    weight = call.arguments.get("weight")
    weight = torch.ones(classes, device=input_.device) if weight is None else weight
    if target.is_floating_point():
        soft = target.movedim(1, -1).reshape(-1, classes).double() * weight
        soft = soft * (1 - smoothing) + smoothing / classes * weight
    else:
        flat = target.reshape(-1).long()
        counted = flat != int(call.arguments.get("ignore_index", -100))
        flat = flat.clamp(0, classes - 1)
        soft = torch.full((len(flat), classes), smoothing / classes, device=flat.device).double()
        soft *= weight
        soft[torch.arange(len(flat), device=flat.device), flat] += (1 - smoothing) * weight[flat]
        soft *= counted.unsqueeze(1)
    keys = _keys(groups, len(soft), soft.device)
    summed = torch.zeros(int(keys.max()) + 1, classes, dtype=torch.double, device=soft.device)
    summed.index_add_(0, keys, soft)
    logits = (summed / summed.sum(1, keepdim=True).clamp_min(1e-30)).clamp_min(1e-12).log()[keys]
    shape = input_.movedim(1, -1).shape
    return float(call.recompute(logits.reshape(shape).movedim(-1, 1).to(input_.dtype)))


def _elementwise(
    answer: Callable[[LossCall, Tensor, Tensor], Tensor],
) -> Callable[[LossCall, Tensor | None], float | None]:
    """Make the rule for a loss that compares element by element, from its best answer."""

    def best(call: LossCall, groups: Tensor | None) -> float | None:
        target = call.target
        if target.shape != call.input.shape or target.ndim == 0 or not target.numel():
            return None
        if groups is None:  # ignoring the inputs, yet free to say something else at each position
            groups = torch.zeros((len(target), 1), dtype=torch.long)
        keys = _keys(groups, target.numel(), target.device)
        answered = answer(call, target.reshape(-1).double(), keys)
        return float(call.recompute(answered.reshape(target.shape).to(call.input.dtype)))

    return best


def _mean(values: Tensor, keys: Tensor, mass: Tensor | None = None) -> Tensor:
    """Return for each element the (weighted) mean of its group."""
    mass = torch.ones_like(values) if mass is None else mass
    size = int(keys.max()) + 1
    total = torch.zeros(size, dtype=values.dtype, device=values.device)
    weights = total.clone()
    total.index_add_(0, keys, values * mass)
    weights.index_add_(0, keys, mass)
    return (total / weights.clamp_min(1e-30))[keys]


def _median(values: Tensor, keys: Tensor) -> Tensor:
    """Return for each element the lower median of its group."""
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(keys[order], stable=True)]
    counts = torch.bincount(keys)
    middle = counts.cumsum(0) - counts + (counts - 1).div(2, rounding_mode="floor").clamp_min(0)
    found: Tensor = values[order][middle.clamp_max(len(values) - 1)]
    return torch.index_select(found, 0, keys)


def _robust_centre(call: LossCall, target: Tensor, keys: Tensor) -> Tensor:
    """The better of mean and median: exact for MAE, near enough for Huber's loss."""
    centres = (_median(target, keys), _mean(target, keys))
    shape, dtype = call.target.shape, call.input.dtype
    return min(centres, key=lambda c: float(call.recompute(c.reshape(shape).to(dtype)).sum()))


def _spread(call: LossCall, name: str) -> Tensor | None:
    value = call.arguments.get(name)
    if not isinstance(value, Tensor):
        return None
    return value.expand(call.target.shape).reshape(-1).double()


def _log_odds(call: LossCall, target: Tensor, keys: Tensor) -> Tensor:
    positive = _spread(call, "pos_weight")
    heavy = target if positive is None else target * positive
    mass = heavy + 1 - target
    rate = _mean(heavy / mass.clamp_min(1e-30), keys, mass)
    return torch.logit(rate, eps=1e-7)


def _log_rate(call: LossCall, target: Tensor, keys: Tensor) -> Tensor:
    rate = _mean(target, keys).clamp_min(1e-6)
    return rate.log() if call.arguments.get("log_input", True) else rate


def _log_mean(call: LossCall, target: Tensor, keys: Tensor) -> Tensor:
    density = target.exp() if call.arguments.get("log_target") else target
    return _mean(density, keys).clamp_min(1e-12).log()


_BEST: dict[str, Callable[[LossCall, Tensor | None], float | None]] = {
    "cross_entropy": _best_class,
    "nll": _best_class,
    "mse": _elementwise(lambda call, t, k: _mean(t, k, _spread(call, "weight"))),
    "l1": _elementwise(_robust_centre),
    "smooth_l1": _elementwise(_robust_centre),
    "huber": _elementwise(_robust_centre),
    "bce": _elementwise(lambda call, t, k: _mean(t, k, _spread(call, "weight"))),
    "bce_with_logits": _elementwise(_log_odds),
    "multilabel_soft_margin": _elementwise(_log_odds),
    "poisson_nll": _elementwise(_log_rate),
    "kl_div": _elementwise(_log_mean),
}
"""The lowest value of each kind of loss when equal groups get equal answers."""
