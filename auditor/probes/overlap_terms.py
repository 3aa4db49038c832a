"""Overlap losses (dice, Jaccard) that a program writes by hand, and computes of logits.

Their gradient tells them: it is that of the formula on the outputs as they are, whatever weight the
term has in the total loss, and whatever else that is the sum of. A sigmoid or a softmax in between
gives another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Needs
from nnaudit.measure.term_gradients import output_gradients
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.targets.model_inputs import main_tensor

_SMOOTHING = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""What is added to intersection and union; less than the first makes no difference."""

_COLLINEAR = 0.9999
"""Cosine of two gradients from which they are one, up to rounding and a weight."""

_POINTS = 3
"""Places at which the gradients are compared: a loss with another gradient of two values, such as a
hinge, may have that of some overlap at one of them, but not that of the same one at all."""

_SPREAD = 2.0
"""Noise on the outputs there: those of a new network are nearly one number, and any loss then has a
gradient of two values."""

_OUTSIDE = 0.01
"""Outputs so far outside [0, 1] are no probabilities."""

_LEAST = 16
_MOST = 2**19


@dataclass(frozen=True)
class OverlapTerm:
    """An overlap loss of logits.

    Attributes:
        name: ``dice`` or ``Jaccard``.
        low, high: of the outputs that it is computed of.
    """

    name: str
    low: float
    high: float


class OverlapTerms(Probe[OverlapTerm | None]):
    """The first term of the loss that is an overlap of outputs which are no probabilities."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> OverlapTerm | None:
        """Differentiate each term by the model's output, at places around that.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        if not first.completed or first.main_loss is not None:
            return None
        if audit.loop.lacks(Needs.SAME_BATCH):
            return None
        output = main_tensor(first.completed[0].output)
        target = None if output is None else _binary_target(first, output)
        if output is None or target is None:
            return None
        low, high = (float(value) for value in torch.aminmax(output.detach()))
        if low > -_OUTSIDE and high < 1 + _OUTSIDE:
            return None
        ways = list(_overlaps(output.ndim))
        for seed in range(_POINTS):
            audit.clock.check()
            there = output.detach() + _SPREAD * _noise(output, seed)
            terms = output_gradients(audit.loop, first.batches[0], there) or ()
            flat = [each.double().flatten() for each in terms]
            ways = [(n, way) for n, way in ways if _is_gradient_of(way, there, target, flat)]
            if not ways:
                return None
        return OverlapTerm(min(name for name, _ in ways), low, high)


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


def _binary_target(first: First, output: Tensor) -> Tensor | None:
    """Return the target as zeros and ones of the output's shape; None where it is not."""
    if type(output) is not Tensor or output.layout is not torch.strided:
        return None
    if not output.is_floating_point() or not _LEAST <= output.numel() <= _MOST:
        return None
    calls = [call.target for call in first.completed[0].loss_calls if call.compares]
    for given in (first.targets[0], *calls):
        if not isinstance(given, Tensor) or given.is_complex():
            continue
        if given.numel() == output.numel():
            found = given.reshape(output.shape)
        elif not given.is_floating_point() and _is_of_classes(given, output):
            found = F.one_hot(given.long(), output.shape[1]).movedim(-1, 1)
        else:
            continue
        if bool(((found == 0) | (found == 1)).all()) and len(torch.unique(found)) == 2:
            return found.to(output)
    return None


def _is_of_classes(given: Tensor, output: Tensor) -> bool:
    shape = (output.shape[0], *output.shape[2:])
    return given.shape == shape and int(given.min()) >= 0 and int(given.max()) < output.shape[1]


_Overlap = Callable[[Tensor, Tensor], Tensor]


def _is_gradient_of(
    overlap: _Overlap, output: Tensor, target: Tensor, gradients: Iterable[Tensor]
) -> bool:
    """Whether one of the ``gradients``, flat ones, is that of an overlap, up to a weight."""
    leaf = output.double().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(overlap(leaf, target.double()), leaf)
    return any(
        float((found.flatten() @ each).abs() / (found.norm() * each.norm()).clamp_min(1e-300))
        > _COLLINEAR
        for each in gradients
    )


def _overlaps(ndim: int) -> Iterator[tuple[str, _Overlap]]:
    """Yield the usual ways to write them: summed over all, by row, by class, or by both."""
    dims = tuple(range(ndim))
    summed = dict.fromkeys([dims, dims[1:], (0, *dims[2:]), dims[2:]])
    for over, smooth, squared in product(filter(None, summed), _SMOOTHING, (False, True)):
        for name, twice in (("dice", 1.0), ("dice", 2.0), ("dice", 0.0), ("Jaccard", 1.0)):
            yield name, _overlap(name, over, smooth, twice * smooth, squared=squared)


def _overlap(
    name: str, over: tuple[int, ...], below: float, above: float, *, squared: bool
) -> _Overlap:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        shared = (output * target).sum(over)
        size = (output.square() if squared else output).sum(over) + target.sum(over)
        if name == "dice":
            return -((2 * shared + above) / (size + below)).mean()
        return -((shared + above) / (size - shared + below)).mean()

    return loss
