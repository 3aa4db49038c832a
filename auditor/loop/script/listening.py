"""What is at work in a script's thread for a while, in the middle of the script's own blocks."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nnaudit.loop.observer import Observer

_STACK: Any = torch.overrides
"""Where torch keeps the calling thread's stack of function modes; its functions have no types."""


class Listening:
    """The observer and the function modes that are at work in the script's thread.

    They come and go in the middle of the script's own ``with`` blocks, so a mode is taken off the
    stack wherever on it it is by then.
    """

    def __init__(self) -> None:
        self.observer: Observer | None = None
        self._stack = ExitStack()

    def enter(self, observer: Observer | None, modes: tuple[TorchFunctionMode, ...] = ()) -> None:
        """Put the ``modes`` and the ``observer`` to work."""
        for mode in modes:
            _STACK._push_mode(mode)
            self._stack.callback(_withdraw, mode)
        if observer is not None:
            self._stack.enter_context(observer)
        self.observer = observer

    def also(self, context: AbstractContextManager[Any]) -> None:
        """Enter ``context`` for as long."""
        self._stack.enter_context(context)

    def leave(self) -> None:
        """Take everything away."""
        self.observer = None
        self._stack.close()


def _withdraw(mode: TorchFunctionMode) -> None:
    """Take ``mode`` off the stack of function modes, wherever on it it is."""
    above = []
    while torch._C._len_torch_function_stack():
        top = _STACK._pop_mode()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        _STACK._push_mode(other)
