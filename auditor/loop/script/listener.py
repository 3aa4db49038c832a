"""What the states of a run have in common, and the last of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnaudit.loop.script import frameworks
from nnaudit.loop.script.channel import Unwind
from nnaudit.loop.script.listening import Listening
from nnaudit.loop.script.patches import TappedIterator
from nnaudit.loop.script.run import Run


class BackwardPasses:
    """Which of a script's backward passes its next optimizer step uses.

    Within an optimizer's step (a closure) only the first is of the weights before it. What an
    attack back-propagates is gone when gradients are set to zero after it: it is forgotten when
    there is another pass, for a step without one has used nothing (STEP102).

    Attributes:
        void: of what was back-propagated since the last step, nothing is left.
        in_step: an optimizer is in its step.
    """

    def __init__(self) -> None:
        self.void = False
        self.in_step = False
        self._count = 0
        self._scaled: deque[tuple[Any, Tensor]] = deque(maxlen=4)

    def scaled(self, loss: Any, result: Any) -> None:
        """Note what a gradient scaler made of which loss."""
        if isinstance(loss, Tensor) and isinstance(result, Tensor):
            self._scaled.append((result, loss.detach()))

    def value_of(self, root: Tensor) -> Tensor:
        """Return the loss that is back-propagated as ``root``: before a gradient scaler."""
        value = next((loss for result, loss in self._scaled if result is root), root.detach())
        self._scaled.clear()
        return value

    def begin_step(self) -> None:
        """An optimizer is about to step."""
        self.in_step, self._count = True, 0

    def end_step(self) -> None:
        """It has stepped."""
        self.in_step = False

    def reset(self) -> None:
        """Another step of the auditor's begins."""
        self._scaled.clear()
        self.in_step = False

    def counts(self) -> bool:
        """Note a pass; returns whether it is of the weights before the step."""
        self._count += 1
        return not self.in_step or self._count == 1

    def zeroed(self, held: list[Any], optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        """Gradients of some were set to zero after what is ``held`` was back-propagated."""
        self.void = bool(held) and not self.in_step and not _any_gradient(optimizers())


def _any_gradient(optimizers: Iterable[Optimizer]) -> bool:
    """Whether anything is left for a step of the ``optimizers``."""
    held = (p.grad for o in optimizers for group in o.param_groups for p in group["params"])
    return any(grad is not None and bool(grad.to_dense().any()) for grad in held)


class ScriptListener:
    """What a run's listener does in every state.

    Attributes:
        leads: control was taken: the script takes the steps that the auditor wants.
        starting: the script has not come to its training loop.
    """

    starting = False

    def __init__(self, run: Run) -> None:
        self.run = run
        self.session = run.session
        self.listening = Listening()
        self.passes = BackwardPasses()

    @property
    def leads(self) -> bool:
        """Control was taken, in this execution or an earlier one."""
        return True

    @property
    def repeats(self) -> bool:
        """Whether the script was executed before in this process."""
        return self.session.executions > 1

    def leave(self) -> None:
        """Take away what listens in the script's thread."""
        self.listening.leave()

    def on_create(self, kind: str, thing: Any) -> None:
        """Note what the script makes."""
        self.run.registers.of[kind].add(thing)
        frameworks.adapt(self.session.taps)

    def on_optimizer_built(self, optimizer: Optimizer) -> None:
        """Nothing is asked of an optimizer that is made while the script is led."""

    def on_loss_scaled(self, loss: Any, result: Any) -> None:
        """Remember what a gradient scaler made of which loss."""
        self.passes.scaled(loss, result)


class Unwinding(ScriptListener):
    """Listens once the auditor is done: the script ends at the next batch, or after the step."""

    def on_iterate(self, iterator: TappedIterator) -> None:
        """No batch will be drawn."""

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """End the script.

        Raises:
            Unwind: always.
        """
        raise Unwind

    def on_forward(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let the script call its network on the way."""
        return run(args, kwargs)

    def on_backward(self, root: Tensor) -> bool:
        """Let it back-propagate."""
        return True

    def on_scaler_step(self) -> None:
        """A gradient scaler's step is no concern any more."""

    def on_zero_grad(self) -> None:
        """Nor are gradients."""

    def on_step_start(self, optimizer: Optimizer, closure: bool) -> None:
        """Nor is a step that begins."""

    def on_step_end(self, optimizer: Optimizer) -> None:
        """End the script.

        Raises:
            Unwind: always.
        """
        raise Unwind
