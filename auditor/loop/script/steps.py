"""Steps of a paused script, as the auditor's thread asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._device import DeviceContext

from nnaudit.loop.base import seed_everything
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observer import Observer
from nnaudit.loop.script.channel import Call, Invoke, Resume, StepRequest
from nnaudit.loop.script.run import EndedError, Run
from nnaudit.loop.total_loss import call_worth
from nnaudit.state.objects import generator_state, set_generator_state
from nnaudit.state.parts import GENERATORS
from nnaudit.state.process import (
    keep_accelerator_rng,
    keep_numpy_rng,
    keep_python_rng,
    keep_torch_rng,
)
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.layers import StatisticsNorm
from nnaudit.targets.model_inputs import ModelInputs

T = TypeVar("T")

_GENERATORS = (keep_python_rng, keep_numpy_rng, keep_torch_rng, keep_accelerator_rng)


class Own:
    """In a batch's place: the script draws its own, from random numbers seeded with ``seed``.

    None leaves the random numbers as they are: it has only one. Generators of the script's own are
    put back to where they were when the batch was drawn first. To be looked at it holds the tensors
    that were drawn: ``input0`` and so on are what the network was called with, ``target`` is what
    the loss compared with. Like a batch of graphs it can be neither taken apart nor changed, for
    the script draws it as it is.
    """

    def __init__(
        self,
        seed: int | None,
        states: tuple[Any, ...] = (),
        fed: ModelInputs | None = None,
    ) -> None:
        """``states`` are those of the generators; ``fed`` is how the network was called."""
        self.seed = seed
        self.states = states
        self.fed = fed
        for i, (_, tensor) in enumerate(batches.tensors((fed.args, fed.kwargs)) if fed else ()):
            setattr(self, f"input{i}", tensor)
        if fed is not None and isinstance(fed.target, Tensor):
            self.target = fed.target


class ScriptSteps:
    """Has a run's script take steps, some of which are undone. Lives in the auditor's thread."""

    def __init__(self, run: Run) -> None:
        """``run`` has been taken hold of."""
        assert run.roles is not None
        self.run = run
        self.roles = run.roles
        self.model = run.roles.model
        self._in_flight: list[str] = []
        self._execution = 0

    def command(self, order: StepRequest) -> StepRequest:
        """Let the script take a step; returns ``order`` with what became of it.

        Raises:
            RuntimeError: another run lies on top of this one.
            NnauditError: the step was not taken.
        """
        self._must_be_innermost()
        self.run.session.count.allow()
        order.modes = function_modes()
        done: StepRequest = self.run.session.commands.ask(Resume(order))
        return done

    def invoke(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the script's thread."""
        result: T = self.run.session.commands.ask(Invoke(function))
        return result

    def _must_be_innermost(self) -> None:
        runs = self.run.session.runs
        if runs and runs[-1] is not self.run:
            raise RuntimeError(
                "a run that was relaunched later is still open: a script's runs lie on top of one "
                "another, and only the last can take steps"
            )

    def given(self, batch: Any) -> Any:
        """Return what is handed to the script for ``batch``: nothing where it draws its own."""
        if isinstance(batch, Own):
            if batch.seed is not None:
                seed_everything(batch.seed)
            self.rewind(batch.states)
            return None
        return batch

    def prepare(self, batch: Any) -> None:
        """Get the batches that a script looking ahead has already drawn out of the way."""
        # One that is paused where it calls its network has drawn the batch that it calls it with.
        lookahead = self.roles.lookahead
        if isinstance(batch, Own):
            lookahead = 0 if batch.seed is None else 1
        if not lookahead:
            return
        digest = f"own {batch.seed}" if isinstance(batch, Own) else batches.digest(batch)
        if self._execution != self.run.reruns:
            self._execution, self._in_flight = self.run.reruns, []
        while len(self._in_flight) < lookahead or set(self._in_flight) != {digest}:
            with preserved(self.run.subjects):
                self.command(StepRequest(self.given(batch)))
            self._in_flight = [*self._in_flight, digest][-lookahead:]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo what a step did, except for what any forward pass leaves behind.

        Random numbers go on, and so do the running statistics of the network's normalisations.
        """
        after: list[Callable[[], object]] = []
        with preserved(self.run.subjects):
            yield
            after = [keep() for keep in _GENERATORS]
            after += [partial(self.rewind, self.states()), _keep_statistics(self.model)]
        for undo in after:
            undo()

    def states(self) -> tuple[Any, ...]:
        """Return where the script's own generators of random numbers are."""
        return tuple(generator_state(each) for each in self.roles.helpers)

    def rewind(self, states: tuple[Any, ...]) -> None:
        """Put them to where they were; the states may be those of another run of the script."""
        for generator, state in zip(self.roles.helpers, states, strict=False):
            if isinstance(generator, GENERATORS) and state is not None:
                set_generator_state(generator, state)

    def undone_step(self, batch: Any, train: bool | None) -> StepRequest:
        """Do a step on ``batch`` and undo it: what it showed is wanted, not what it did."""
        self.prepare(batch)
        with preserved(self.run.subjects) if train is None else self.undone():
            if train is not None:
                self.model.train(train)
            listener, given = Observer(nn.Identity(), losses_only=True), self.given(batch)
            order = StepRequest(given, observer=listener, watch=True, dry=True, train=train)
            self.command(order)
        return order

    def loss_of(self, order: StepRequest) -> float:
        """Return the undivided loss that was back-propagated; NaN where nothing was."""
        if not order.roots:
            return float("nan")
        # Of several batches all alike, the first is the one that nothing has gone before.
        each = max(len(order.roots) // max(order.handed, 1), 1)
        if each == 1:
            return float(order.roots[0].detach()) * self.roles.divisor
        roots = [root.detach().float().reshape(()) for root in order.roots[:each]]
        # Together, for every number read from a device costs a wait.
        return float(torch.stack(roots).sum()) * self.roles.divisor

    def main_loss(self, order: StepRequest) -> LossCall | None:
        """Return the loss call whose value that is, if there is one."""
        return call_worth(order.loss_calls, self.loss_of(order))

    def _calls_of(self, order: StepRequest) -> list[Call]:
        mine = {id(p) for p in self.model.parameters()}
        calls = [c for c in order.calls if any(id(p) in mine for p in c.module.parameters())]
        return [call for call in calls if call.grad] or calls

    def entry_of(self, order: StepRequest) -> Call:
        """Return the first call of the model.

        Raises:
            EndedError: it was not called.
        """
        calls = self._calls_of(order)
        if not calls:
            name = type(self.model).__name__
            raise EndedError(f"the script has moved on to code that does not call {name}")
        return calls[0]

    def exit_of(self, order: StepRequest) -> Call | None:
        """The last call of the module whose output the script compares with the target."""
        calls = self._calls_of(order)
        leave = self.roles.exit
        of_it = [c for c in calls if leave is not None and self.run.is_same(c.module, leave.module)]
        found = of_it or calls
        return found[-1] if found else None


def _keep_statistics(model: nn.Module) -> Callable[[], None]:
    """Return what writes the running statistics of ``model`` back as they are now."""
    norms = [module for module in model.modules() if isinstance(module, StatisticsNorm)]
    kept = [
        {name: buffer.clone() for name, buffer in norm.named_buffers() if not is_lazy(buffer)}
        for norm in norms
    ]

    def write() -> None:
        for norm, values in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers():
                if name in values and not is_lazy(buffer):
                    buffer.copy_(values[name])

    return write


def function_modes() -> tuple[Any, ...]:
    """The function modes of the calling thread, which act in no other by themselves."""
    overrides: Any = torch.overrides
    stack = overrides._get_current_function_mode_stack()
    return tuple(mode for mode in stack if not isinstance(mode, DeviceContext))
