"""Giving a batch to a script that draws its own: at the network's door, and at the loss's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnaudit import batch as batches
from nnaudit.feed import device_of
from nnaudit.loop.script.capture import Cast


def why_not(roles: Cast) -> str:
    """Return why batches cannot be put in place of the script's own; empty where they can."""
    if roles.recipe is None:
        return "the script draws its batches itself and changes them before the network sees them"
    if roles.loss is None:
        return "the script draws its batches itself, and what its loss compares with is not known"
    return ""


class Substitution:
    """Replaces what the network is called with and what its output is compared with."""

    def __init__(self, roles: Cast, batch: Any) -> None:
        self._roles = roles
        self._batch = batches.to_device(batches.clone(batch), device_of(roles.model))
        self._stack = ExitStack()

    def __enter__(self) -> None:
        roles = self._roles
        if roles.recipe is None:
            return
        handle = roles.model.register_forward_pre_hook(self._feed, with_kwargs=True, prepend=True)
        self._stack.callback(handle.remove)
        if roles.loss is not None and roles.loss.call is not None:
            self._stack.enter_context(_TargetSwap(roles.loss.call.function, self._others()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _feed(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self._roles.recipe is not None
        return self._roles.recipe.fill(self._batch)

    def _others(self) -> dict[str, Tensor]:
        assert self._roles.loss is not None
        return {
            name: take.of(self._batch) for name, take in (self._roles.loss.others or {}).items()
        }


class _TargetSwap(TorchFunctionMode):
    def __init__(self, function: Callable[..., Any], others: dict[str, Tensor]) -> None:
        super().__init__()
        self._function = function
        self._others = others

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is self._function:
            target = self._others.get("target")
            if target is not None and len(args) > 1:
                args = (args[0], target, *args[2:])
            elif target is not None:
                kwargs["target"] = target
            kwargs.update({k: v for k, v in self._others.items() if k in kwargs})
        return func(*args, **kwargs)
