"""What the first layers with weights are given in real training steps.

A layer is a first one if no parameter had a hand in its input. Scaling that the network does
itself, in `forward` or by a normalisation without parameters, has then been done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import NORMS

ROWS = 512
BATCHES = 16
LEAST_ROWS = 32
SECONDS = 10.0

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_LAYERS: tuple[type[nn.Module], ...] = (
    *_CONVOLUTIONS, nn.Linear, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell,
)  # fmt: skip


@dataclass
class FirstLayer:
    """What one first layer was given, by channel (features of a dense layer).

    Attributes:
        name: of the module, as ``named_modules`` has it.
        module: the layer.
        rows: vectors that were seen: samples, or samples times positions.
        total, squares: sum and sum of squares by channel (C,).
        low, high: over all channels.
        whole: whether all values were whole numbers.
        normalised: a normalisation takes the layer's output, and with it the scale, away.
    """

    name: str
    module: nn.Module
    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    normalised: bool = False

    def add(self, values: Tensor) -> None:
        """Count ``values`` (rows, C) in."""
        values = values.detach().cpu().double()
        values = values[torch.isfinite(values).all(1)]
        if not len(values):
            return
        if not self.rows:
            self.total = torch.zeros(values.shape[1], dtype=torch.float64)
            self.squares = torch.zeros_like(self.total)
        self.rows += len(values)
        self.total += values.sum(0)
        self.squares += values.square().sum(0)
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.whole = self.whole and bool((values == values.round()).all())

    @property
    def mean(self) -> Tensor:
        """By channel, (C,)."""
        return self.total / self.rows

    @property
    def rms(self) -> Tensor:
        """The root mean square by channel, (C,)."""
        return (self.squares / self.rows).sqrt()

    @property
    def deviation(self) -> Tensor:
        """The standard deviation by channel, (C,)."""
        return (self.squares / self.rows - self.mean.square()).clamp(min=0).sqrt()

    @property
    def variation(self) -> float:
        """The deviation of the channel that varies most, as a share of its root mean square."""
        return float((self.deviation / self.rms.clamp(min=1e-30)).max())

    @property
    def norm(self) -> float:
        """The typical norm of what a unit of the layer sees: of a vector, of a kernel's patch."""
        kernel = math.prod(getattr(self.module, "kernel_size", ()))
        return math.sqrt(kernel * float((self.squares / self.rows).sum()))


@dataclass(frozen=True)
class Inputs:
    """What came in.

    Attributes:
        layers: the first layers, in the order in which they were reached.
        rows: rows of the batches of all whole steps.
        constant: the model was called, and every row in every call was the same.
        targets_vary: the targets were not.
    """

    layers: tuple[FirstLayer, ...]
    rows: int
    constant: bool
    targets_vary: bool


class FirstLayerInputs(Probe[Inputs]):
    """Statistics of the first layers' inputs over a few training steps."""

    def measure(self, audit: Audit) -> Inputs:
        """Take steps until :data:`ROWS` rows were seen.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        read = _read(audit)
        try:
            watch = _watched(audit, read, thaw=True)
        except UserCodeError:
            # A program may write to what it froze, as to a teacher that follows its student.
            watch = _watched(audit, read, thaw=False)
        targets = _Variety()
        for batch in read:
            for _, tensor in batches.tensors((inputs_and_target(audit.loop, batch).target,)):
                targets.add(tensor)
        layers = tuple(layer for layer in watch.layers.values() if layer.rows)
        return Inputs(layers, watch.rows, watch.inputs.constant, targets.vary)


def _read(audit: Audit) -> list[Any]:
    found: list[Any] = []
    rows, started = 0, time.perf_counter()
    for batch in islice(audit.loop.batches(), BATCHES):
        audit.clock.check()
        found.append(batch)
        rows += max(batches.size(batch), 1)
        if rows >= ROWS or time.perf_counter() - started > SECONDS:
            break
    return found


def _watched(audit: Audit, read: list[Any], *, thaw: bool) -> _Watch:
    watch, started = _Watch(), time.perf_counter()
    loop = audit.loop
    with preserved(loop.subjects):
        for batch in read:
            audit.clock.check()
            try:
                with watch.on(loop.models, thaw=thaw):
                    loop.step(batch)
            except UserCodeError:
                if not watch.layers:
                    raise
                return watch  # what went in was seen all the same
            watch.rows += max(batches.size(batch), 1)
            if watch.rows >= LEAST_ROWS and time.perf_counter() - started > SECONDS:
                break
    return watch


class _Variety:
    """Whether tensors' rows were all the same, so far."""

    def __init__(self) -> None:
        self._differ = False
        self._first: dict[str, Tensor] = {}

    @property
    def constant(self) -> bool:
        """Rows were seen, and all were the same."""
        return bool(self._first) and not self._differ

    @property
    def vary(self) -> bool:
        """Rows were seen, and some differed."""
        return self._differ

    def add(self, tensor: Tensor, name: str = "") -> None:
        if tensor.ndim == 0 or tensor.layout is not torch.strided or not tensor.numel():
            return
        first = self._first.setdefault(name, tensor[:1].detach().clone())
        same = first.shape[1:] == tensor.shape[1:] and bool((tensor == first).all())
        self._differ = self._differ or not same


class _Watch:
    """Records what the first layers are given."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, FirstLayer] = {}
        self.inputs = _Variety()
        self.rows = 0
        self._outputs: dict[int, FirstLayer] = {}
        self._kept: list[Any] = []
        self._untracked = False

    @contextmanager
    def on(self, models: tuple[nn.Module, ...], *, thaw: bool) -> Iterator[None]:
        """Listen for a step; ``thaw`` makes every parameter trainable, and frozen layers layers."""
        with ExitStack() as stack:
            for k, model in enumerate(models):
                hook = model.register_forward_pre_hook(partial(self._call, k), with_kwargs=True)
                stack.callback(hook.remove)
                for parameter in model.parameters() if thaw else ():
                    if parameter.is_leaf and parameter.is_floating_point():
                        parameter.requires_grad_()
                for name, module in model.named_modules():
                    if isinstance(module, _LAYERS):
                        hook = module.register_forward_hook(partial(self._layer, name))
                        stack.callback(hook.remove)
                    elif isinstance(module, NORMS):
                        stack.callback(module.register_forward_pre_hook(self._norm).remove)
            yield
        self._outputs, self._kept, self._untracked = {}, [], False

    def _call(self, k: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        for path, tensor in batches.tensors((args, kwargs)):
            self.inputs.add(tensor, f"{k}{path}")

    def _layer(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        value = args[0] if args else None
        value = value.data if isinstance(value, PackedSequence) else value
        # After a layer under no_grad (a frozen trunk, checkpointing) nothing tells whether a
        # parameter had a hand in a value.
        self._untracked = self._untracked or not torch.is_grad_enabled()
        if self._untracked or not isinstance(value, Tensor) or value.requires_grad:
            return
        if not value.is_floating_point() or value.ndim == 0:
            return
        layer = self.layers.setdefault(module, FirstLayer(name, module))
        layer.add(_by_channel(module, value))
        for _, tensor in batches.tensors(output):
            self._outputs[tensor.data_ptr()] = layer
            self._kept.append(tensor)  # so that its address is not used again

    def _norm(self, module: nn.Module, args: Any) -> None:
        value = args[0] if args else None
        if isinstance(value, Tensor) and value.data_ptr() in self._outputs:
            self._outputs[value.data_ptr()].normalised = True


def _by_channel(module: nn.Module, value: Tensor) -> Tensor:
    for kind, dimensions in _CONVOLUTIONS.items():
        if isinstance(module, kind):
            value = value.movedim(-1 - dimensions, -1)
    return value.reshape(-1, value.shape[-1])
