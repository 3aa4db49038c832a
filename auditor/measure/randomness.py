"""Which random numbers a forward pass in eval mode draws, and for what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from nnaudit.errors import is_user
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.layers import DROPOUT_FUNCTIONS, attention_dropout, is_dropping
from nnaudit.targets.source import source_of

_DRAWS: dict[Callable[..., Any], str] = {
    torch.randn_like: "torch.randn_like",
    torch.rand_like: "torch.rand_like",
    torch.randint_like: "torch.randint_like",
    torch.bernoulli: "torch.bernoulli",
    torch.multinomial: "torch.multinomial",
    torch.normal: "torch.normal",
    torch.poisson: "torch.poisson",
    torch.randn: "torch.randn",
    torch.rand: "torch.rand",
    torch.randint: "torch.randint",
    torch.randperm: "torch.randperm",
    Tensor.normal_: "Tensor.normal_",
    Tensor.uniform_: "Tensor.uniform_",
    Tensor.bernoulli_: "Tensor.bernoulli_",
    Tensor.bernoulli: "Tensor.bernoulli",
    Tensor.exponential_: "Tensor.exponential_",
    Tensor.multinomial: "Tensor.multinomial",
    F.gumbel_softmax: "F.gumbel_softmax",
    F.rrelu: "F.rrelu",
}


@dataclass(frozen=True)
class Draw:
    """One use of random numbers.

    Attributes:
        function: what drew them.
        dropout: it is a dropout that is switched on.
        by_module: the dropout is a module's, so that its mode decides.
        declared: the user's line says that it is to be on.
        outside: the dropout's module is no part of the model, whose mode does not reach it.
        location: the user's line.
    """

    function: str
    dropout: bool
    by_module: bool = False
    declared: bool = False
    outside: bool = False
    location: Location | None = None


@dataclass(frozen=True)
class Made:
    """A layer with weights of its own that was made: its class, and the user's line."""

    type: str
    location: Location | None


class RandomnessTap(TorchFunctionMode):
    """Records the use of random numbers for the time of a ``with``, and layers that are made."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.made: list[Made] = []
        self._inside = {id(module) for model in models for module in model.modules()}
        self._undo = ExitStack()

    def __enter__(self) -> RandomnessTap:
        hook = register_module_parameter_registration_hook(self._registered)
        self._undo.callback(hook.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        self._undo.close()
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def _registered(self, module: nn.Module, name: str, parameter: Any) -> None:
        if isinstance(parameter, nn.Parameter) and id(module) not in self._inside:
            self.made.append(Made(type(module).__name__, callstack.user_line()))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUT_FUNCTIONS and is_dropping(args, kwargs):
            self._record(DROPOUT_FUNCTIONS[func], dropout=True)
        elif func is F.scaled_dot_product_attention and attention_dropout(args, kwargs) > 0.0:
            self._record("F.scaled_dot_product_attention", dropout=True)
        elif func in _DRAWS:
            self._record(_DRAWS[func], dropout=False)
        return func(*args, **kwargs)

    def _record(self, function: str, *, dropout: bool) -> None:
        place = callstack.user_line()
        calls = source_of(place.file).calls_at(place.line) if place is not None else []
        declared = any(call.says("training", True) for call in calls)
        module = _calling_module()
        outside = dropout and module is not None and id(module) not in self._inside
        self.draws.append(Draw(function, dropout, module is not None, declared, outside, place))


def _calling_module() -> nn.Module | None:
    """Return the module of torch's own that is the innermost caller outside torch.nn.functional."""
    for frame in callstack.frames():
        if is_user(frame.f_code.co_filename):
            return None
        module = callstack.receiver(frame)
        if isinstance(module, nn.Module) and _is_of_layer(frame.f_code, type(module)):
            return module
    return None


def _is_of_layer(code: CodeType, cls: type[nn.Module]) -> bool:
    """Whether ``code`` is a method's that a layer of torch's defines, not as all modules do."""
    layers = [c for c in cls.__mro__ if c.__module__.startswith(f"{nn.modules.__name__}.")]
    methods = (vars(layer).get(code.co_name) for layer in layers if layer is not nn.Module)
    return any(getattr(inspect.unwrap(m), "__code__", None) is code for m in methods if m)
