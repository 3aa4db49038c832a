"""Taps: what one training step looks like from the inside.

An :class:`Observer` listens, for the time of a ``with`` block, to module forwards, to torch's loss
functions, and to the gradients an optimizer is about to use. It changes no value. It costs a few
microseconds per torch call and one reduction per module, so it is put on the handful of steps that
checks look into and left off the hundreds that merely train.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnaudit import batch as batches
from nnaudit.errors import is_user
from nnaudit.report import Location

LOSS_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll",
    F.binary_cross_entropy: "bce",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
    F.mse_loss: "mse",
    F.l1_loss: "l1",
    F.smooth_l1_loss: "smooth_l1",
    F.huber_loss: "huber",
    F.kl_div: "kl_div",
    F.poisson_nll_loss: "poisson_nll",
    F.gaussian_nll_loss: "gaussian_nll",
    F.multilabel_soft_margin_loss: "multilabel_soft_margin",
    F.soft_margin_loss: "soft_margin",
    F.multi_margin_loss: "multi_margin",
    F.multilabel_margin_loss: "multilabel_margin",
    F.hinge_embedding_loss: "hinge_embedding",
    F.ctc_loss: "ctc",
    F.triplet_margin_loss: "triplet_margin",
    F.cosine_embedding_loss: "cosine_embedding",
}
"""Torch's loss functions, by which every ``nn.*Loss`` module computes, and the names we give them."""

ELEMENTWISE = frozenset({"bce", "bce_with_logits", "mse", "l1", "smooth_l1", "huber", "kl_div"})
"""Losses that compare output and target element by element."""

_VIEWS = (
    "AliasBackward", "AsStridedBackward", "CloneBackward", "ExpandBackward", "PermuteBackward",
    "ReshapeAliasBackward", "SelectBackward", "SliceBackward", "SqueezeBackward", "TBackward",
    "ToCopyBackward", "TransposeBackward", "UnsafeViewBackward", "UnsqueezeBackward", "ViewBackward",
)  # fmt: skip
"""Autograd nodes that move values about without changing them."""


@dataclass(frozen=True)
class LossCall:
    """One call of a torch loss function.

    Attributes:
        kind: a value of :data:`LOSS_FUNCTIONS`.
        arguments: every argument by name, tensors detached, defaults filled in.
        value: what it returned, detached; None when it raised.
        producer: the autograd node that made the input, views looked through
            (``SoftmaxBackward0``); empty for a leaf.
        location: the user's line that called it.
    """

    kind: str
    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    value: Tensor | None
    producer: str = ""
    location: Location | None = None

    @property
    def input(self) -> Tensor:
        """The first argument: logits, log-probabilities, predictions."""
        return self._tensor("input")

    @property
    def target(self) -> Tensor:
        """What the input is compared with."""
        return self._tensor("target")

    @property
    def reduction(self) -> str:
        """``mean``, ``sum``, ``none`` or ``batchmean``."""
        return str(self.arguments.get("reduction", "mean"))

    def _tensor(self, name: str) -> Tensor:
        value = self.arguments.get(name)
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.kind} was called without a tensor {name}")
        return value

    def recompute(self, prediction: Tensor, **changes: Any) -> Tensor:
        """Call the same function on another ``prediction``, other arguments as they were."""
        return self.function(**{**self.arguments, "input": prediction, **changes})


@dataclass(frozen=True)
class Broadcast:
    """An elementwise difference of tensors of shapes (N, 1) and (N,), which makes (N, N)."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    location: Location | None


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
        training_flags: mode of every module (by name) while it ran; modules that never ran are absent.
        total_loss: the scalar the step minimised (undivided); None when the step raised before.
    """

    loss_calls: list[LossCall] = field(default_factory=list)
    broadcasts: list[Broadcast] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    gradients: list[Gradient] = field(default_factory=list)
    training_flags: dict[str, bool] = field(default_factory=dict)
    output: Any = None
    total_loss: float | None = None

    @property
    def main_loss(self) -> LossCall | None:
        """The loss call whose value is the total loss; None when it is composite or hand-written."""
        if self.total_loss is None:
            return None
        for call in self.loss_calls:
            if call.value is not None and call.value.numel() == 1:
                value = float(call.value)
                if abs(value - self.total_loss) <= 1e-4 * max(abs(value), 1e-6):
                    return call
        return None


def producer_of(tensor: Tensor) -> str:
    """Return the name of the autograd node that computed ``tensor``, looking through views."""
    node = tensor.grad_fn
    while node is not None:
        name = node.name().removeprefix("torch::autograd::")
        if not name.startswith(_VIEWS):
            return name
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        node = parents[0] if parents else None
    return ""


def caller() -> Location | None:
    """Return the innermost line on the stack that is the user's own."""
    frame = sys._getframe(1)
    while frame is not None:
        if is_user(frame.f_code.co_filename):
            return Location(file=frame.f_code.co_filename, line=frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


class Observer:
    """Listens to ``model`` and to the optimizers for the time of a ``with`` block.

    ``observation`` fills while the block runs. Re-entering starts a new one.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        self.observation = Observation()
        self._model = model
        self._optimizers = tuple(optimizers)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.observation = Observation()
        with ExitStack() as stack:
            stack.enter_context(_FunctionTap(self.observation))
            for name, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                hook = _forward_hook(name, self.observation)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            tap = _GradientTap(self._model, self._optimizers, self.observation)
            for optimizer in self._optimizers:
                for handle in (
                    optimizer.register_step_pre_hook(tap.before),
                    optimizer.register_step_post_hook(tap.after),
                ):
                    stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class _FunctionTap(TorchFunctionMode):
    """Records loss functions and (N, 1) - (N,) differences as the user's code calls them."""

    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self._observation = observation

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in LOSS_FUNCTIONS:
            return self._record_loss(func, args, kwargs)
        if func in _DIFFERENCES and len(args) >= 2:
            self._record_broadcast(args[0], args[1])
        return func(*args, **kwargs)

    def _record_loss(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        live = dict(bound.arguments)
        # Recorded before the call: a target outside the classes raises inside it.
        call = LossCall(
            kind=LOSS_FUNCTIONS[func],
            function=func,
            arguments={k: v.detach() if isinstance(v, Tensor) else v for k, v in live.items()},
            value=None,
            producer=producer_of(live["input"]) if isinstance(live.get("input"), Tensor) else "",
            location=caller(),
        )
        position = len(self._observation.loss_calls)
        self._observation.loss_calls.append(call)
        value = func(*args, **kwargs)
        if isinstance(value, Tensor):
            self._observation.loss_calls[position] = LossCall(
                **{**vars(call), "value": value.detach()}
            )
        return value

    def _record_broadcast(self, left: Any, right: Any) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        shapes = (tuple(left.shape), tuple(right.shape))
        (column,), (flat,) = (
            [s for s in shapes if len(s) == 2 and s[1] == 1] or [None],
            [s for s in shapes if len(s) == 1] or [None],
        )
        if column and flat and column[0] == flat[0] > 1 and left.requires_grad != right.requires_grad:
            self._observation.broadcasts.append(Broadcast(shapes, caller()))


_DIFFERENCES = frozenset(
    {torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.subtract, Tensor.subtract}
)


def _forward_hook(name: str, observation: Observation) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        observation.training_flags[name] = module.training
        if name == "":
            observation.output = batches.map_leaves(
                output, lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf
            )
        tensor = next((t for _, t in batches.tensors(output) if t.is_floating_point()), None)
        if tensor is None:
            return
        # Without the mode that is listening: these reductions are ours, not the user's.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            observation.activations.append(_activation(name, module, args, kwargs, tensor))

    return hook


def _activation(
    name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor
) -> Activation:
    values = output.detach()
    std, mean = torch.std_mean(values.float(), correction=0) if values.numel() else (values.sum(),) * 2
    return Activation(
        module=name,
        type=type(module).__name__,
        training=module.training,
        is_leaf=next(module.children(), None) is None,
        shape=tuple(values.shape),
        mean=float(mean),
        std=float(std),
        finite=is_finite(values),
        inputs_finite=all(is_finite(t) for _, t in batches.tensors((args, kwargs))),
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds no NaN and no infinity (True for integers)."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values() if values.layout is torch.sparse_coo else values.to_dense()
    return bool(torch.isfinite(values).all())


class _GradientTap:
    """Records gradients before an optimizer's step, and the step's size after it.

    Trainable parameters that no optimizer holds are recorded too, at the first step of any.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, ...],
        observation: Observation,
    ) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        owned = {id(p) for optimizer in optimizers for p in _parameters_of(optimizer)}
        self._orphans = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
        self._observation = observation
        self._before: dict[str, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in self._orphans:
            self._record(parameter, owned=False)
        self._orphans = []
        for parameter in _parameters_of(optimizer):
            name = self._names.get(id(parameter), "")
            if name:
                self._before[name] = parameter.detach().clone()
                self._record(parameter, owned=True)

    def _record(self, parameter: Tensor, *, owned: bool) -> None:
        gradient = parameter.grad
        self._observation.gradients.append(
            Gradient(
                parameter=self._names[id(parameter)],
                norm=None if gradient is None else _norm(gradient),
                finite=gradient is None or is_finite(gradient),
                weight_norm=_norm(parameter),
                owned=owned,
            )
        )

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        live = {self._names.get(id(p), ""): p for p in _parameters_of(optimizer)}
        for i, record in enumerate(self._observation.gradients):
            if record.parameter in live and record.parameter in self._before:
                change = live[record.parameter].detach() - self._before.pop(record.parameter)
                self._observation.gradients[i] = Gradient(
                    **{**vars(record), "update_norm": _norm(change)}
                )


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _norm(tensor: Tensor) -> float:
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    values = values.abs() if values.is_complex() else values
    return float(torch.linalg.vector_norm(values.float()))
