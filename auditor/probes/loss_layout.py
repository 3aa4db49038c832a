"""Where the loss finds the classes and the rows, in what the network's last layer has made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from nnaudit.context import Audit, Probe
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

_MOST = 2**22
"""Larger outputs are not followed: it takes a few times their memory."""

_DIGIT = 128
"""Whole numbers below are exact in every floating type; larger ones are sent in digits."""

_CANDIDATES = 8
"""So many of the last layers' outputs are tried for each loss."""

_LOG_SOFTMAX = frozenset({F.log_softmax, torch.log_softmax, Tensor.log_softmax})
_LOSSES = frozenset({F.cross_entropy, F.nll_loss, F.ctc_loss})


@dataclass(frozen=True)
class Layout:
    """How a loss over classes reads what a layer has made.

    Attributes:
        layer: the layer's class, ``interpolate`` for the function.
        made: the shape of what it made.
        read: the shape in which the loss got it.
        axis: the layer's axis of channels, as many as there are classes.
        mixed: the share of the loss's rows whose numbers are not of one place along that axis.
        crossed: rows and targets go through the same two dimensions, one row by row and the other
            column by column; the two lengths, as the targets have them. Of ``ctc_loss``, which
            wants time first, those of a tensor that was given that shape without being turned.
        location: the user's line.
    """

    layer: str
    made: tuple[int, ...]
    read: tuple[int, ...]
    axis: int
    mixed: float
    crossed: tuple[int, int] | None
    location: Location | None


class LossLayout(Probe[tuple[Layout, ...]]):
    """Follows each number that a loss over classes gets back to the layer that made it."""

    def measure(self, audit: Audit) -> tuple[Layout, ...]:
        """Take one step; nothing is said of losses of which something else than views was made.

        Raises:
            UserCodeError: the step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        batch = next(iter(consecutive_batches(loop, 1)))
        loop.prepare(batch)
        tap = Tap([tensor for _, tensor in batches.tensors(batch)])
        with ExitStack() as stack:
            for model in loop.models:
                tap.listen(model, stack)
            stack.enter_context(tap)
            loop.step(batch)
        return tuple(tap.found)


@dataclass(frozen=True)
class _Made:
    layer: str
    axis: int
    output: Tensor


class Tap(TorchFunctionMode):
    """Remembers the last layers' outputs, and compares what losses get with them."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.found: list[Layout] = []
        self._given = given
        self._made: list[_Made] = []

    def listen(self, model: nn.Module, stack: ExitStack) -> None:
        """Note what the layers of ``model`` make for the time of ``stack``."""
        for module in model.modules():
            if isinstance(module, (nn.Linear, _ConvNd, _BatchNorm)) and not _is_hooked(module):
                stack.callback(module.register_forward_hook(self._note).remove)

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None and output.ndim >= 2:
            axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
            self._keep(_Made(type(module).__name__, axis, output))

    def _keep(self, made: _Made) -> None:
        self._made = [*self._made[-_CANDIDATES + 1 :], made]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOSSES or func in _LOG_SOFTMAX:
            given = args[0] if args else kwargs.get("input", kwargs.get("log_probs"))
            if isinstance(given, Tensor) and given.grad_fn is not None and given.ndim >= 2:
                with torch._C.DisableTorchFunction():
                    self._look(func, given, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.grad_fn is not None and result.ndim >= 2:
            if func is F.interpolate:
                self._keep(_Made("interpolate", 1, result))
            elif func in _LOG_SOFTMAX and isinstance(dim := _dim(args, kwargs), int):
                self._keep(_Made("log_softmax", dim % result.ndim, result))
        return result

    def _look(self, func: Any, given: Tensor, args: tuple[Any, ...], kwargs: Any) -> None:
        second = args[1] if len(args) > 1 else None
        target = None if func in _LOG_SOFTMAX else kwargs.get("target", second)
        dim = _dim(args, kwargs) if func in _LOG_SOFTMAX else -1 if func is F.ctc_loss else 1
        if not isinstance(dim, int) or given.numel() > _MOST:
            return
        for made in reversed(self._made):
            scale = _sent_back(torch.ones_like(given), given, made.output)
            if scale is None:
                continue
            places = places_of(given, made.output, scale)
            if places is not None:
                layout = layout_of(places.movedim(dim, -1), made.output.shape, made.axis)
                crossed = (
                    reshaped(layout.order, given.shape)
                    if func is F.ctc_loss
                    else self._crossed(layout.order, target)
                )
                if layout.mixed > 0.0 or crossed:
                    self.found.append(
                        Layout(
                            made.layer,
                            tuple(made.output.shape),
                            tuple(given.shape),
                            made.axis,
                            layout.mixed,
                            crossed,
                            callstack.user_line(),
                        )
                    )
            return

    def _crossed(self, order: tuple[int, int] | None, target: Any) -> tuple[int, int] | None:
        if order is None or not isinstance(target, Tensor) or target.ndim != 1:
            return None
        for tensor in self._given:
            if is_crossed(order, target, tensor):
                return (tensor.shape[0], tensor.shape[1])
        return None


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("dim", args[1] if len(args) > 1 else None)


def _is_hooked(module: nn.Module) -> bool:
    """Whether a hook of the user's would be shown our gradients, or the module takes none."""
    hooks = (module._backward_hooks, module._backward_pre_hooks)
    return isinstance(module, torch.jit.ScriptModule) or any(hooks)


def places_of(given: Tensor, made: Tensor, scale: Tensor) -> Tensor | None:
    """Return where in ``made``, flattened, each number of ``given`` was; in its shape.

    What is sent back through views arrives where the number was; ``scale`` is what became of ones.
    None where ``given`` is anything
    else than ``made`` seen otherwise, whole or in part, times a constant.
    """
    if made.numel() < given.numel() or made.numel() > _MOST or made.layout is not torch.strided:
        return None
    used = scale.flatten().nonzero().squeeze(1)
    factors = scale.flatten()[used]
    if len(used) != given.numel() or bool((factors != factors[0]).any()):
        return None
    numbers = torch.arange(given.numel(), device=given.device).view(given.shape)
    arrived = torch.zeros(len(used), dtype=torch.int64, device=given.device)
    power = 1
    while power < max(given.numel(), 2):
        digits = (numbers // power % _DIGIT).to(given.dtype)
        back = _sent_back(digits, given, made)
        if back is None:
            return None
        arrived += power * (back.flatten()[used] / factors).round().to(torch.int64)
        power *= _DIGIT
    places = torch.full((given.numel(),), -1, dtype=torch.int64, device=given.device)
    places[arrived.clamp(0, given.numel() - 1)] = used
    return places.view(given.shape) if bool((places >= 0).all()) else None


def _sent_back(values: Tensor, given: Tensor, made: Tensor) -> Tensor | None:
    if given is made:
        return values
    try:
        (found,) = torch.autograd.grad(given, made, values, retain_graph=True, allow_unused=True)
    except RuntimeError:  # changed in place since, or of a graph that is gone
        return None
    return found.detach() if isinstance(found, Tensor) else None


@dataclass(frozen=True)
class Reading:
    """How the rows of a loss lie in a layer's output.

    Attributes:
        mixed: the share of rows that take their numbers from several places.
        order: where the output has two dimensions beside its channels, and the rows go through both
            in turn: the lengths of the slower and of the faster one. None otherwise.
    """

    mixed: float
    order: tuple[int, int] | None


def layout_of(places: Tensor, made: torch.Size, axis: int) -> Reading:
    """Say how the rows of ``places`` (rows x classes) lie in an output of shape ``made``."""
    rows = places.reshape(-1, places.shape[-1])
    if made[axis] != rows.shape[1] or rows.shape[1] < 2:
        return Reading(0.0, None)
    strides = [made[i + 1 :].numel() for i in range(len(made))]
    coordinates = [rows // strides[i] % made[i] for i in range(len(made))]
    others = [i for i in range(len(made)) if i != axis]
    varies = {i: (coordinates[i] != coordinates[i][:, :1]).any(1) for i in range(len(made))}
    astray = torch.stack([varies[i] for i in others]).any(0)
    if bool(astray.any()) and any(_goes_along(rows, i, varies, made) for i in others):
        return Reading(0.0, None)
    mixed = float(astray.float().mean())
    return Reading(mixed, _order(coordinates, others, made) if mixed == 0.0 else None)


def _goes_along(rows: Tensor, axis: int, varies: dict[int, Tensor], made: torch.Size) -> bool:
    """Whether every row is one whole line along ``axis``: scores of places, not of channels."""
    others = [varies[i] for i in varies if i != axis]
    return made[axis] == rows.shape[1] and not bool(torch.stack(others).any())


def _order(
    coordinates: list[Tensor], others: list[int], made: torch.Size
) -> tuple[int, int] | None:
    if len(others) != 2:
        return None
    first, second = (coordinates[i][:, 0] for i in others)
    a, b = (made[i] for i in others)
    if len(first) != a * b:
        return None
    count = torch.arange(a * b, device=first.device)
    if torch.equal(first, count // b) and torch.equal(second, count % b):
        return a, b
    if torch.equal(second, count // a) and torch.equal(first, count % a):
        return b, a
    return None


def is_crossed(order: tuple[int, int], target: Tensor, given: Tensor) -> bool:
    """Whether ``target`` is ``given`` (N x M) row by row, where the loss's rows go M x N.

    Or column by column, where they go N x M.
    """
    if given.ndim != 2 or given.numel() != target.numel() or given.shape[0] == given.shape[1]:
        return False
    if set(order) != set(given.shape):
        return False
    values = given.detach().to(target.device)
    rows, columns = values.reshape(-1), values.t().reshape(-1)
    met = columns if order == tuple(given.shape) else rows
    return torch.equal(target.detach(), met) and not torch.equal(rows, columns)


def reshaped(order: tuple[int, int] | None, given: torch.Size) -> tuple[int, int] | None:
    """Return ``order`` where (N, T, C) was viewed as ``given`` = (T, N, C), and not transposed.

    Seen where T and N differ.
    """
    swapped = len(given) == 3 and given[0] != given[1] and order == (given[1], given[0])
    return order if swapped else None


def layouts(found: tuple[Layout, ...]) -> Iterator[Layout]:
    """Yield those that are certainly wrong, mixed classes first."""
    yield from (each for each in found if each.mixed > 0.5)
    yield from (each for each in found if each.crossed is not None and each.mixed == 0.0)
