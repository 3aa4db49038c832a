"""Listening to what torch's functions return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FunctionTap(TorchFunctionMode, ABC):
    """Hears what each call of a function returned, and may put something in its place."""

    @abstractmethod
    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Return what the caller gets: ``result``, or what stands for it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return self.heard(func, args, kwargs, func(*args, **kwargs))


class ResultTap(FunctionTap):
    """Takes note of each call that returns a tensor, and changes nothing, in a ``with``."""

    @abstractmethod
    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Take note of a call that returned ``made``; what this calls itself is not heard."""

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Note a tensor, and return what there was."""
        if isinstance(result, Tensor):
            with torch._C.DisableTorchFunction():
                self.note(func, args, kwargs, result)
        return result
