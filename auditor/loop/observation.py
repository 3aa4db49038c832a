"""What one training step looks like from the inside, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nnaudit.loop.attention import WeightedSum
from nnaudit.loop.autograd import Graph
from nnaudit.loop.graph import Firing
from nnaudit.loop.losses import (
    LossCall,
)
from nnaudit.report import Location


@dataclass(frozen=True)
class Broadcast:
    """An elementwise difference or product of tensors of shapes (N, 1) and (N,): it is (N, N).

    ``compared`` are the two where it asks whether they are equal, as an accuracy does; else empty.
    ``factor`` is the operand of a product that has no gradient, of N elements; else None.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    location: Location | None
    compared: tuple[Tensor, ...] = ()
    factor: Tensor | None = None


@dataclass(frozen=True)
class Activation:
    """One module's output in one forward pass. Statistics are over all floating elements."""

    module: str
    type: str
    training: bool
    is_leaf: bool
    shape: tuple[int, ...]
    mean: float
    std: float
    finite: bool
    inputs_finite: bool


@dataclass(frozen=True)
class BatchStatistics:
    """What one batch normalisation computed in one forward pass in train mode.

    ``mean`` and ``variance`` have shape ``(C,)``; ``shape`` is the input's, ``(N, C, ...)``.
    """

    module: str
    type: str
    shape: tuple[int, ...]
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter as the optimizer was about to use it.

    ``norm`` is None where the gradient is None. ``weight_norm`` and ``update_norm`` are of the
    parameter before the step and of the step's change to it. ``owned`` says whether an optimizer
    holds the parameter.
    """

    parameter: str
    norm: float | None
    finite: bool
    weight_norm: float
    owned: bool
    update_norm: float | None = None


@dataclass
class Observation:
    """What the taps saw in one step, in order of occurrence.

    Attributes:
        output: what the root module returned, detached; None when it was not called.
        training_flags: by module name, whether it was in train mode in any call that gradients
            flow through; modules without such a call are absent.
        validation_flags: by module name, whether it was in train mode when it was last called while
            ``validating``.
        validating: a script is between two epochs and has a batch of another loader: calls are not
            of a step, and only their mode is noted.
        graph: of the root module's output; of the first loss's input when that was not called.
        made_by: the autograd node that computed ``output``, looking through views: of the tensor
            that a loss would be computed from; empty where there is none.
        total_loss: the scalar the step minimised (undivided); None when the step raised before.
        flows: ``(a, b)`` where what module ``a`` (or a dropout called as a function) returned is
            given to module ``b`` as it is; ``b`` is empty for what the root module returns, and
            :data:`nnaudit.loop.graph.LOSS` for a loss function's input. Innermost modules only.
        firings: of activation functions with a flat part, which units were ever out of it.
        weighted_sums: of attention that is written out.
    """

    loss_calls: list[LossCall] = field(default_factory=list)
    broadcasts: list[Broadcast] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    gradients: list[Gradient] = field(default_factory=list)
    batch_statistics: list[BatchStatistics] = field(default_factory=list)
    training_flags: dict[str, bool] = field(default_factory=dict)
    validation_flags: dict[str, bool] = field(default_factory=dict)
    validating: bool = False
    graph: Graph | None = None
    output: Any = None
    made_by: str = ""
    total_loss: float | None = None
    flows: list[tuple[str, str]] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)
    weighted_sums: list[WeightedSum] = field(default_factory=list)
