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
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnaudit.loop.attention import AttentionTracker
from nnaudit.loop.autograd import graph_of, in_transform, producer_of, provenance
from nnaudit.loop.gradients import GradientRecorder, is_finite
from nnaudit.loop.graph import FUNCTION, LOSS, Makers, firing
from nnaudit.loop.losses import (
    LOSS_FUNCTIONS,
    LossCall,
    is_turned,
    refuse_fatal_call,
    unfused,
    without_obsolete,
)
from nnaudit.loop.observation import Activation, BatchStatistics, Broadcast, Observation
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered
from nnaudit.targets.layers import DROPOUT_FUNCTIONS, BatchNorm, is_dropping
from nnaudit.targets.model_inputs import main_tensor


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
        stack.enter_context(_FunctionRecorder(self.observation))
        if not isinstance(self._model, torch.jit.ScriptModule):

            def note(module: nn.Module, args: Any, output: Any) -> None:
                if not in_transform():
                    _note_output(self.observation, output)

            stack.callback(self._model.register_forward_hook(note).remove)

    def _listen_to_all(self, stack: ExitStack) -> None:
        makers = Makers()
        stack.enter_context(_FunctionRecorder(self.observation, makers))
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            hook = _forward_hook(name, self.observation, makers)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        tap = GradientRecorder(self._model, self._optimizers, self.observation)
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


class _FunctionRecorder(TorchFunctionMode):
    """Records loss functions and what makes (N, N) of (N, 1) and (N,), as the user's code calls it.

    Without ``makers`` loss functions only.
    """

    def __init__(self, observation: Observation, makers: Makers | None = None) -> None:
        super().__init__()
        self._observation = observation
        self._makers = makers
        self._attention = AttentionTracker(observation.weighted_sums)

    @registered(Role.STANDS_IN)
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if in_transform():
            return func(*args, **kwargs)
        if func in LOSS_FUNCTIONS:
            return self._record_loss(func, args, kwargs)
        if self._makers is None:
            return func(*args, **kwargs)
        if func in _DIFFERENCES and len(args) >= 2:
            self._record_broadcast(args[0], args[1])
        elif func in _PRODUCTS and len(args) >= 2:
            self._record_broadcast(args[0], args[1], multiplied=True)
        elif func in _COMPARISONS and len(args) >= 2:
            self._record_broadcast(args[0], args[1], compared=True)
        value = func(*args, **kwargs)
        if func in DROPOUT_FUNCTIONS and is_dropping(args, kwargs):
            self._makers.note(value, FUNCTION)
        else:
            self._record_firing(func, value)
        self._attention.note(func, args, kwargs, value)
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
        function, live = unfused(func, without_obsolete(bound.arguments))
        if is_turned(func, live.get("input"), live.get("target"), self._observation.output):
            live["input"], live["target"] = live["target"], live["input"]
        prediction = live.get("input")
        if self._makers is not None:
            self._trace(prediction, self._makers)
        # Recorded before the call: a target outside the classes raises inside it.
        call = LossCall(
            kind=LOSS_FUNCTIONS[function],
            function=function,
            arguments={k: v.detach() if isinstance(v, Tensor) else v for k, v in live.items()},
            value=None,
            location=callstack.user_line(),
            **provenance(live.get("log_probs") if prediction is None else prediction),
        )
        position = len(self._observation.loss_calls)
        self._observation.loss_calls.append(call)
        refuse_fatal_call(call)
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

    def _record_broadcast(
        self, left: Any, right: Any, *, compared: bool = False, multiplied: bool = False
    ) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        if {left.ndim, right.ndim} != {1, 2}:
            return
        if not compared and left.requires_grad == right.requires_grad:
            return
        column, flat = (left, right) if left.ndim == 2 else (right, left)
        if column.shape[1] != 1 or column.shape[0] != flat.shape[0] or flat.shape[0] < 2:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if torch.equal(column[:, 0], flat):  # all pairs of one vector, on purpose
                return
            operands = (left.detach().clone(), right.detach().clone()) if compared else ()
            fixed = right if left.requires_grad else left
            factor = fixed.detach().clone().reshape(-1) if multiplied else None
        shapes = (tuple(left.shape), tuple(right.shape))
        place = callstack.user_line()
        self._observation.broadcasts.append(Broadcast(shapes, place, operands, factor))


_DIFFERENCES = frozenset(
    {
        torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.subtract, Tensor.subtract,
        Tensor.sub_, Tensor.__isub__,
    }
)  # fmt: skip


_PRODUCTS = frozenset(
    {
        torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply,
        Tensor.mul_, Tensor.__imul__,
    }
)  # fmt: skip


_COMPARISONS = frozenset({torch.eq, Tensor.eq, Tensor.__eq__, torch.ne, Tensor.ne, Tensor.__ne__})


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


def _note_output(observation: Observation, output: Any) -> None:
    """Record what the root module returned, and what computed it."""
    observation.output = batches.detached(output)
    main = main_tensor(output)
    observation.made_by = producer_of(main) if main is not None else ""


def _look(name: str, module: nn.Module, inputs: Any, output: Any, observation: Observation) -> None:
    """Record what one module returned."""
    if name == "":
        _note_output(observation, output)
    tensor = next((t for _, t in batches.tensors(output) if t.is_floating_point()), None)
    if tensor is None or tensor.layout is not torch.strided:
        return
    if name == "" and observation.graph is None:
        observation.graph = graph_of(tensor)
    with torch.no_grad():
        observation.activations.append(_activation(name, module, inputs, tensor))
        if isinstance(module, BatchNorm) and module.training:
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
