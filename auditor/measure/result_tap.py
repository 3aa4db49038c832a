"""Listening to the tensors that torch's functions return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ResultTap(TorchFunctionMode, ABC):
    """Takes note of each call that returns a tensor, and changes nothing, in a ``with``."""

    @abstractmethod
    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Take note of a call that returned ``made``; what this calls itself is not heard."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            with torch._C.DisableTorchFunction():
                self.note(func, args, kwargs or {}, result)
        return result
