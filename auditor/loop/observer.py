"""Taps: what one training step looks like from the inside.

An :class:`Observer` listens, for the time of a ``with`` block, to module forwards, to torch's loss
functions, and to the gradients an optimizer is about to use. It changes no value. It costs a few
microseconds per torch call and one reduction per module, so it is put on the handful of steps that
checks look into and left off the hundreds that merely train.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from nnaudit.errors import is_user
from nnaudit.loop.graph import DROPOUTS, FUNCTION, LOSS, Firing, Makers, drops, firing
from nnaudit.report import Location
from nnaudit.targets import batch as batches

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
    F.margin_ranking_loss: "margin_ranking",
    F.cosine_embedding_loss: "cosine_embedding",
}
"""Torch's loss functions, by which every ``nn.*Loss`` module computes, and our names for them."""

ELEMENTWISE = frozenset(
    {
        "bce", "bce_with_logits", "mse", "l1", "smooth_l1", "huber", "kl_div", "poisson_nll",
        "soft_margin", "hinge_embedding",
    }
)  # fmt: skip
"""Losses that compare output and target element by element."""

SYMMETRIC = frozenset({"mse", "l1", "smooth_l1", "huber"})
"""Losses that are the same with prediction and target exchanged, as ``loss(y, y_hat)`` has them."""

_VIEWS = (
    "AliasBackward", "AsStridedBackward", "CloneBackward", "ExpandBackward", "GatherBackward",
    "IndexBackward", "IndexSelectBackward", "MaskedSelectBackward", "PermuteBackward",
    "ReshapeAliasBackward", "SelectBackward", "SliceBackward", "SplitBackward",
    "SplitWithSizesBackward", "SqueezeBackward", "TBackward", "ToCopyBackward",
    "TransposeBackward", "UnbindBackward", "UnsafeSplitBackward", "UnsafeViewBackward",
    "UnsqueezeBackward", "ViewBackward",
)  # fmt: skip
"""Autograd nodes that move values about without changing them."""

_JOINS = ("CatBackward", "StackBackward")
"""Nodes that put the values of all their parents side by side."""

_POINTWISE = (
    "AcosBackward", "AddBackward", "ClampBackward", "ClampMaxBackward", "ClampMinBackward",
    "CosBackward", "DivBackward", "MaskedFillBackward", "MulBackward", "NegBackward",
    "PowBackward", "RsubBackward", "ScatterBackward", "SqrtBackward", "SubBackward",
    "WhereBackward",
)  # fmt: skip
"""Nodes of arithmetic that authors do on finished outputs: scaling, margins, masks."""

_PRODUCTS = ("MmBackward", "BmmBackward")
"""Products without a bias: similarities of two sets of vectors among them."""

_LAYERS = (
    "AddmmBackward", "BaddbmmBackward", "BmmBackward", "ConvolutionBackward", "EmbeddingBackward",
    "LinearBackward", "MkldnnRnnLayerBackward", "MmBackward", "MvBackward", "TrilinearBackward",
    "CudnnRnnBackward",
)  # fmt: skip
"""Nodes that multiply by weights."""

_LINEAGE = 64
"""How many nodes near a loss are remembered."""

_GRAPH = 200_000
"""Larger graphs are not walked: it would take longer than the step."""


@dataclass(frozen=True)
class LossCall:
    """One call of a torch loss function.

    Attributes:
        kind: a value of :data:`LOSS_FUNCTIONS`.
        arguments: every argument by name, tensors detached, defaults filled in; what the obsolete
            ``size_average`` and ``reduce`` ask for is said by ``reduction``, and the prediction is
            ``input`` also where the user wrote it second (:func:`is_turned`).
        value: what it returned, detached; None when it raised.
        producer: the autograd node that made the input, views looked through
            (``SoftmaxBackward0``); empty for a leaf.
        before: the node that made what ``producer`` was applied to.
        lineage: the nodes from which the input was made by arithmetic and one product at most,
            nearest first: where a normalisation or a logarithm near the loss shows.
        location: the user's line that called it.
        order: the number that autograd gave to the node of ``value``; -1 where there is none.
    """

    kind: str
    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    value: Tensor | None
    producer: str = ""
    before: str = ""
    lineage: tuple[str, ...] = ()
    location: Location | None = None
    order: int = -1

    @property
    def input(self) -> Tensor:
        """The first argument: logits, log-probabilities, predictions."""
        return self._tensor("input")

    @property
    def target(self) -> Tensor:
        """What the input is compared with."""
        return self._tensor("target")

    @property
    def compares(self) -> bool:
        """Whether it compares one input with a target: triplets, pairs and paths (CTC) do not."""
        return all(isinstance(self.arguments.get(part), Tensor) for part in ("input", "target"))

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

    def first_rows(self, n: int) -> LossCall:
        """Return the call on the first ``n`` rows, in memory of its own; ``value`` stays.

        Only input and target are cut, and only where they have as many rows.
        """
        rows = self.input.shape[0] if self.input.ndim else 0
        cut = {
            name: value[:n].clone()
            for name, value in self.arguments.items()
            if isinstance(value, Tensor)
            and name in ("input", "target")
            and value.ndim > 0
            and value.shape[0] == rows
        }
        return replace(self, arguments={**self.arguments, **cut})


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
class Graph:
    """The autograd graph between the data and the model's output.

    Attributes:
        depth: weight layers on the shortest path from the data to the output: shortcuts around
            layers make it small.
        operations: the names of all its nodes, without the number at their end.
    """

    depth: int
    operations: frozenset[str]


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
        total_loss: the scalar the step minimised (undivided); None when the step raised before.
        flows: ``(a, b)`` where what module ``a`` (or a dropout called as a function) returned is
            given to module ``b`` as it is; ``b`` is empty for what the root module returns, and
            :data:`nnaudit.loop.graph.LOSS` for a loss function's input. Innermost modules only.
        firings: of activation functions with a flat part, which units were ever out of it.
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
    total_loss: float | None = None
    flows: list[tuple[str, str]] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)

    @property
    def main_loss(self) -> LossCall | None:
        """The loss call whose value is the total loss; None for composite and hand-written ones."""
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
    node = _maker(tensor.grad_fn)
    return _name(node) if node is not None else ""


def _name(node: Any) -> str:
    return str(node.name()).removeprefix("torch::autograd::")


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _maker(node: Any, joins: int = 2) -> Any:
    """Return the node whose values ``node`` holds: itself, or what views and joins lead to."""
    while node is not None:
        name = _name(node)
        if name.startswith(_JOINS) and joins:
            makers = [_maker(parent, joins - 1) for parent in _parents(node)]
            same = len({_name(maker) if maker is not None else "" for maker in makers}) == 1
            return makers[0] if same else node
        if not name.startswith(_VIEWS):
            return node
        node = next(iter(_parents(node)), None)
    return None


def _provenance(tensor: Any) -> dict[str, Any]:
    """Return ``producer``, ``before`` and ``lineage`` of a loss's input."""
    maker = _maker(tensor.grad_fn) if isinstance(tensor, Tensor) else None
    if maker is None:
        return {}
    first = next(iter(_parents(maker)), None)
    source = _maker(first)
    return {
        "producer": _name(maker),
        "before": _name(source) if source is not None else "",
        "lineage": tuple(_lineage(maker)),
    }


def _lineage(maker: Any) -> Iterator[str]:
    """Yield the names of the nodes around ``maker``, nearest first, up to the nearest layers."""
    todo, seen = deque([(maker, 0)]), {maker}
    while todo and len(seen) <= _LINEAGE:
        node, products = todo.popleft()
        name = _name(node)
        yield name
        products += name.startswith(_PRODUCTS)
        if products <= 1 and name.startswith((*_VIEWS, *_JOINS, *_POINTWISE, *_PRODUCTS)):
            for parent in _parents(node):
                if parent not in seen:
                    seen.add(parent)
                    todo.append((parent, products))


def graph_of(tensor: Tensor) -> Graph | None:
    """Walk the autograd graph of ``tensor``; None when it has none or a very large one."""
    order = _topological(tensor.grad_fn)
    if not order:
        return None
    depths: dict[Any, float] = {}
    for node in order:
        name = _name(node)
        above = [depths[parent] for parent in _parents(node)]
        # Infinite: made of parameters alone, so no path from the data leads here.
        depth = min(above, default=math.inf)
        if name.startswith(_LAYERS) and any(math.isinf(each) for each in above):
            depth = 1.0 if math.isinf(depth) else depth + 1.0
        depths[node] = depth
    depth = depths[order[-1]]
    operations = frozenset(_name(node).rstrip("0123456789") for node in order)
    return Graph(0 if math.isinf(depth) else int(depth), operations)


def _topological(root: Any) -> list[Any]:
    """Return the nodes under ``root``, each after its parents; empty when there are too many."""
    order: list[Any] = []
    seen: set[Any] = set()
    todo = [(root, False)] if root is not None else []
    while todo:
        node, parents_done = todo.pop()
        if parents_done:
            order.append(node)
            continue
        if node in seen:
            continue
        if len(seen) > _GRAPH:
            return []
        seen.add(node)
        todo.append((node, True))
        todo += [(parent, False) for parent in _parents(node) if parent not in seen]
    return order


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

    ``observation`` fills while the block runs. Re-entering starts a new one. With ``losses_only``
    it holds the calls of loss functions and what ``model`` returned, and costs next to nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        *,
        losses_only: bool = False,
    ) -> None:
        self.observation = Observation()
        self._model = model
        self._optimizers = tuple(optimizers)
        self._losses_only = losses_only
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.observation = Observation()
        with ExitStack() as stack:
            # Compiled code shows nothing to hooks and modes: it runs as it was written.
            if "torch._dynamo" in sys.modules:  # which importing here would take a second
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._losses_only:
                self._listen_to_losses(stack)
            else:
                self._listen_to_all(stack)
            self._stack = stack.pop_all()
        return self

    def _listen_to_losses(self, stack: ExitStack) -> None:
        stack.enter_context(_FunctionTap(self.observation))
        if not isinstance(self._model, torch.jit.ScriptModule):

            def note(module: nn.Module, args: Any, output: Any) -> None:
                self.observation.output = batches.detached(output)

            stack.callback(self._model.register_forward_hook(note).remove)

    def _listen_to_all(self, stack: ExitStack) -> None:
        makers = Makers()
        stack.enter_context(_FunctionTap(self.observation, makers))
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            hook = _forward_hook(name, self.observation, makers)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        tap = _GradientTap(self._model, self._optimizers, self.observation)
        for optimizer in self._optimizers:
            stack.callback(optimizer.register_step_pre_hook(tap.before).remove)
            stack.callback(optimizer.register_step_post_hook(tap.after).remove)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class _FunctionTap(TorchFunctionMode):
    """Records loss functions and (N, 1) - (N,) differences as the user's code calls them.

    Without ``makers`` loss functions only.
    """

    def __init__(self, observation: Observation, makers: Makers | None = None) -> None:
        super().__init__()
        self._observation = observation
        self._makers = makers

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
        if self._makers is None:
            return func(*args, **kwargs)
        if func in _DIFFERENCES and len(args) >= 2:
            self._record_broadcast(args[0], args[1])
        value = func(*args, **kwargs)
        if func in DROPOUTS and drops(args, kwargs):
            self._makers.note(value, FUNCTION)
        else:
            self._record_firing(func, value)
        return value

    def _record_firing(self, func: Callable[..., Any], value: Any) -> None:
        last = next((a for a in reversed(self._observation.activations) if a.is_leaf), None)
        first = last is not None and ("Conv" in last.type or "BatchNorm" in last.type)
        with torch._C.DisableTorchFunction():
            seen = firing(func, value, last.module if last is not None else "", first)
        if seen is not None:
            self._observation.firings.append(seen)

    def _record_loss(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            bound = inspect.signature(func).bind(*args, **kwargs)
        except TypeError:  # wrongly called: the function itself says it best
            return func(*args, **kwargs)
        bound.apply_defaults()
        live = _without_obsolete(bound.arguments)
        if is_turned(func, live.get("input"), live.get("target"), self._observation.output):
            live["input"], live["target"] = live["target"], live["input"]
        prediction = live.get("input")
        if self._makers is not None:
            self._trace(prediction, self._makers)
        # Recorded before the call: a target outside the classes raises inside it.
        call = LossCall(
            kind=LOSS_FUNCTIONS[func],
            function=func,
            arguments={k: v.detach() if isinstance(v, Tensor) else v for k, v in live.items()},
            value=None,
            location=caller(),
            **_provenance(prediction),
        )
        position = len(self._observation.loss_calls)
        self._observation.loss_calls.append(call)
        _refuse_what_kills_the_device(call)
        value = func(*args, **kwargs)
        if isinstance(value, Tensor):
            order = -1 if value.grad_fn is None else value.grad_fn._sequence_nr()
            self._observation.loss_calls[position] = replace(
                call, value=value.detach(), order=order
            )
        return value

    def _trace(self, prediction: Any, makers: Makers) -> None:
        if self._observation.graph is None and isinstance(prediction, Tensor):
            self._observation.graph = graph_of(prediction)
        if (maker := makers.of(prediction)) is not None:
            self._observation.flows.append((maker, LOSS))

    def _record_broadcast(self, left: Any, right: Any) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        if left.requires_grad == right.requires_grad or {left.ndim, right.ndim} != {1, 2}:
            return
        column, flat = (left, right) if left.ndim == 2 else (right, left)
        if column.shape[1] != 1 or column.shape[0] != flat.shape[0] or flat.shape[0] < 2:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if torch.equal(column[:, 0], flat):  # all pairs of one vector, on purpose
                return
        self._observation.broadcasts.append(
            Broadcast((tuple(left.shape), tuple(right.shape)), caller())
        )


def _without_obsolete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a loss with ``reduction`` as torch will take it.

    ``size_average`` and ``reduce``, of before torch 0.4.1, overrule it where they are given.
    """
    obsolete = {name: arguments.get(name) for name in ("size_average", "reduce")}
    if all(value is None for value in obsolete.values()) or "reduction" not in arguments:
        return dict(arguments)
    asked = [True if value is None else value for value in obsolete.values()]
    reduction = "none" if not asked[1] else "mean" if asked[0] else "sum"
    return {**arguments, "size_average": None, "reduce": None, "reduction": reduction}


def is_turned(func: Callable[..., Any], first: Any, second: Any, output: Any) -> bool:
    """Whether the prediction is the second argument of a loss that does not mind.

    It is the one that carries a gradient or, without gradients, a view of the model's ``output``.
    """
    if LOSS_FUNCTIONS.get(func) not in SYMMETRIC:
        return False
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    if first.requires_grad != second.requires_grad:
        return second.requires_grad
    with torch._C.DisableTorchFunction():
        made = {t.untyped_storage().data_ptr() for _, t in batches.tensors(output)}
        where = [t.untyped_storage().data_ptr() in made for t in (first, second)]
    return where == [False, True]


def _refuse_what_kills_the_device(call: LossCall) -> None:
    """Raise on CUDA what the CPU would raise.

    A device-side assertion cannot be caught and leaves the process without its device.

    Raises:
        RuntimeError: binary cross-entropy of something outside [0, 1].
    """
    if call.kind == "bce" and call.input.is_cuda and call.input.numel():
        with torch._C.DisableTorchFunction():
            low, high = torch.aminmax(call.input)
            if not (float(low) >= 0.0 and float(high) <= 1.0):
                raise RuntimeError("all elements of input should be between 0 and 1")


_DIFFERENCES = frozenset(
    {
        torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.subtract, Tensor.subtract,
        Tensor.sub_, Tensor.__isub__,
    }
)  # fmt: skip


def _forward_hook(name: str, observation: Observation, makers: Makers) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if observation.validating:
            observation.validation_flags[name] = module.training
            return
        if torch.is_grad_enabled():
            flags = observation.training_flags
            flags[name] = flags.get(name, False) or module.training
        # Without the mode that is listening: these reductions are ours, not the user's.
        with torch._C.DisableTorchFunction():
            try:
                _follow(name, module, (args, kwargs), output, observation, makers)
                _look(name, module, (args, kwargs), output, observation)
            except (RuntimeError, NotImplementedError, TypeError):
                # Values that cannot be read (under vmap, on the meta device) are not shown; to
                # raise here would make the user's step fail where it does not.
                return

    return hook


def _follow(
    name: str,
    module: nn.Module,
    inputs: Any,
    output: Any,
    observation: Observation,
    makers: Makers,
) -> None:
    """Record whose output the module was given, and what it made."""
    if name == "":
        taken = batches.tensors(output)
    elif next(module.children(), None) is None:
        taken = batches.tensors(inputs)
    else:
        return
    found = [makers.of(tensor) for _, tensor in taken]
    observation.flows += [(maker, name) for maker in found if maker is not None]
    if name:
        makers.note(output, name)


def _look(name: str, module: nn.Module, inputs: Any, output: Any, observation: Observation) -> None:
    """Record what one module returned."""
    if name == "":
        observation.output = batches.detached(output)
    tensor = next((t for _, t in batches.tensors(output) if t.is_floating_point()), None)
    if tensor is None or tensor.layout is not torch.strided:
        return
    if name == "" and observation.graph is None:
        observation.graph = graph_of(tensor)
    with torch.no_grad():
        observation.activations.append(_activation(name, module, inputs, tensor))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            entered = next(t for _, t in batches.tensors(inputs))
            observation.batch_statistics.append(_batch_statistics(name, module, entered))


def _activation(name: str, module: nn.Module, inputs: Any, output: Tensor) -> Activation:
    values = output.detach()
    std, mean = (
        torch.std_mean(values.float(), correction=0) if values.numel() else (values.sum(),) * 2
    )
    return Activation(
        module=name,
        type=type(module).__name__,
        training=module.training,
        is_leaf=next(module.children(), None) is None,
        shape=tuple(values.shape),
        mean=float(mean),
        std=float(std),
        # A mean is finite only where everything in it is.
        finite=math.isfinite(mean) or is_finite(values),
        inputs_finite=all(is_finite(t) for _, t in batches.tensors(inputs)),
    )


def _batch_statistics(name: str, module: nn.Module, entered: Tensor) -> BatchStatistics:
    others = [d for d in range(entered.ndim) if d != 1]
    variance, mean = torch.var_mean(entered.detach().float(), dim=others, correction=0)
    return BatchStatistics(
        name, type(module).__name__, tuple(entered.shape), mean.cpu(), variance.cpu()
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds no NaN and no infinity (True for integers)."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = (
            values.coalesce().values() if values.layout is torch.sparse_coo else values.to_dense()
        )
    # A sum is finite only where everything in it is, and takes a fraction of the time. It may
    # overflow where no value does: then each is looked at.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


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
        self._names = {id(p): name for name, p in model.named_parameters() if not is_lazy(p)}
        owned = {id(p) for optimizer in optimizers for p in _parameters_of(optimizer)}
        self._orphans = [
            p
            for p in model.parameters()
            if p.requires_grad and id(p) not in owned and id(p) in self._names
        ]
        self._observation = observation
        self._before: dict[str, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for orphan in self._orphans:
            self._record(orphan, owned=False)
        self._orphans = []
        for parameter in _parameters_of(optimizer):
            name = self._names.get(id(parameter), "")
            if name:
                self._before[name] = parameter.detach().clone()
                self._record(parameter, owned=True)

    def _record(self, parameter: Tensor, *, owned: bool) -> None:
        self._observation.gradients.append(
            Gradient(
                parameter=self._names[id(parameter)],
                weight_norm=_norm(parameter),
                owned=owned,
                **_measured(parameter.grad),
            )
        )

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        live = {self._names.get(id(p), ""): p for p in _parameters_of(optimizer)}
        for i, record in enumerate(self._observation.gradients):
            if record.parameter in live and record.parameter in self._before:
                parameter = live[record.parameter]
                change = self._before.pop(record.parameter).sub_(parameter.detach())
                # An optimizer that calls the closure itself has its gradients only now.
                late = _measured(parameter.grad) if record.norm is None else {}
                self._observation.gradients[i] = replace(record, update_norm=_norm(change), **late)


def _measured(gradient: Tensor | None) -> dict[str, Any]:
    if gradient is None:
        return {"norm": None, "finite": True}
    norm = _norm(gradient)
    return {"norm": norm, "finite": math.isfinite(norm) or is_finite(gradient)}


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _norm(tensor: Tensor) -> float:
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    values = values.abs() if values.is_complex() else values
    return float(torch.linalg.vector_norm(values.float()))
