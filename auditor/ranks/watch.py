"""Watching a script on one rank: it runs as it would, for the first steps of two epochs.

An epoch, and a validation, is cut short after the same number of steps or batches on every rank.
Everything here happens in the script's thread.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from nnaudit.loop.script.channel import Unwind
from nnaudit.loop.script.patches import TappedIterator
from nnaudit.ranks import items
from nnaudit.ranks.first_step import MOST as KEPT
from nnaudit.ranks.first_step import Kept, gradients, kept
from nnaudit.ranks.generators import drawn, states
from nnaudit.ranks.journal import Journal
from nnaudit.ranks.loaders import Loaders
from nnaudit.ranks.networks import Networks
from nnaudit.ranks.record import Batch, Order, Resumed, Stepped, Summary, Validation
from nnaudit.ranks.sampling import Indices, described
from nnaudit.ranks.sharding import Piece
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

STEPS = 8
"""Optimizer steps of an epoch, where it is cut short."""

EPOCHS = 2
"""Epochs that are watched: an order that repeats itself shows in the second."""

UNCUT_STEPS = 200
"""Optimizer steps that are watched at most of a script whose epochs are not cut short."""

ASIDE = 3
"""Batches of a validation, where it is cut short."""


LAST = 3.0
"""Seconds for which a stream is read on, to see where it ends."""

MOST = 10_000
"""Batches up to which it is read."""


class Watch:
    """Listens to a script that goes its own way, and writes down what the ranks are compared by.

    Attributes:
        leads, repeats: the script is not driven.
        first_step: what the first optimizer step was taken with.
    """

    leads = False
    repeats = False

    def __init__(self, journal: Journal, *, shortens: bool, steps: int = UNCUT_STEPS) -> None:
        """``shortens`` says whether epochs and validations are cut short; else ``steps`` end it."""
        self.journal = journal
        self._shortens = shortens
        self._steps = steps
        self._loaders = Loaders()
        self._training: set[int] = set()
        self._since_backward: list[int] = []
        self._steps_in_epoch = 0
        self._backwards = self._begun_at = 0
        self._main: Optimizer | None = None
        self._closure = self._reduced = False
        self._unclipped: dict[str, Piece] = {}
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._networks = Networks()
        self._indices = Indices()
        self._validating = False
        self._states: dict[str, str] = {}
        self._inputs = ""
        self._reading: tuple[TappedIterator, int] | None = None
        self._stream: tuple[TappedIterator, int] | None = None
        self._data: Any = None
        self._kept: list[tuple[int, Any]] = []
        self._noted: set[tuple[int, int]] = set()
        self.first_step: Kept | None = None

    # --- what is made -----------------------------------------------------------------------------

    def on_create(self, kind: str, thing: Any) -> None:
        """Note wrappers, and where loaders are made."""
        if kind == "module" and isinstance(thing, DistributedDataParallel):
            self._networks.add_wrapper(thing)
        if kind == "loader":
            self._loaders.made(thing)

    def on_optimizer_built(self, optimizer: Optimizer) -> None:
        """Nothing is asked of it yet."""

    # --- loaders ----------------------------------------------------------------------------------

    def listening(self) -> AbstractContextManager[None]:
        """Follow what the loaders' samplers give, for the time of a ``with``."""
        return self._indices.listening()

    def on_iterate(self, iterator: TappedIterator) -> None:
        """Begin the loader's own iterator, as the script would."""
        number, reading = self._loaders.number(iterator.loader), self._reading
        trained = self._loaders.has_trained(number, self.journal.step)
        if trained and reading is not None and reading[1] == number:
            self._note_order(*reading)  # it has left off without asking for one more batch
        self._indices.renew(iterator.loader)
        with self._indices.of(iterator):
            iterator.begin()

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """Give the script the loader's own next batch, until enough was seen."""
        number = self._loaders.number(iterator.loader)
        if iterator.count == 0:
            self._begun_at = self._backwards
            if torch.is_grad_enabled():
                self._begin_pass(number)
        if not torch.is_grad_enabled() or self._is_aside(iterator, number):
            return self._aside(iterator, number)
        if number in self._training:
            self._resume()
            self._end_if_seen(iterator, number)
            if iterator.count == 0:
                self._note_weights(f"the start of epoch {self._loaders.epoch(number)}")
        self._since_backward.append(number)
        self.journal.doing = f"training step {self.journal.step + 1}"
        return self._draw(iterator, number)

    def _is_aside(self, iterator: TappedIterator, number: int) -> bool:
        """Whether a loader that is read with gradients does not seem to be trained on."""
        if number in self._training:
            return False
        unused = self._backwards == self._begun_at
        return bool(self.journal.step) or (self._shortens and unused and iterator.count >= ASIDE)

    def _begin_pass(self, number: int) -> None:
        """A loader is read from its beginning, with gradients.

        Raises:
            Unwind: enough epochs, or steps, were seen.
        """
        step = self.journal.step
        passes = self._loaders.begin(number, step)
        self._kept = [each for each in self._kept if each[0] != number]
        enough = step >= (EPOCHS * STEPS if self._shortens else self._steps)
        if enough or (number in self._training and passes > EPOCHS):
            self._resume()
            self.journal.doing = f"what follows step {self.journal.step}"
            raise Unwind
        if number in self._training:
            self._resume()
            self._steps_in_epoch = 0

    def _end_if_seen(self, iterator: TappedIterator, number: int) -> None:
        """End the epoch, or what is watched, where enough steps were seen.

        Raises:
            StopIteration: the epoch is over.
            Unwind: nothing more is to be seen.
        """
        if not self._shortens and self.journal.step >= self._steps:
            self._note_order(iterator, number)
            raise Unwind
        if self._shortens and self._steps_in_epoch >= STEPS:
            self._note_order(iterator, number)
            iterator.exhausted = True
            self.journal.doing = f"what follows epoch {self._loaders.epoch(number)}"
            raise StopIteration

    def _draw(self, iterator: TappedIterator, number: int) -> Any:
        before = states()
        self._reading = iterator, number
        try:
            with self._indices.of(iterator):
                batch = iterator.draw()
        except StopIteration:
            self._note_order(iterator, number)
            self.journal.doing = f"what follows epoch {self._loaders.epoch(number)}"
            raise
        self._states = states()
        self._remember_data(iterator.loader)
        if self._main is None and len(self._kept) <= KEPT:
            self._kept.append((number, batches.clone(batch)))
        base = self._indices.base(iterator)
        workers = getattr(iterator.loader, "num_workers", 0)
        self.journal.add(
            Batch(
                loader=number,
                epoch=self._loaders.epoch(number),
                index=iterator.count,
                step=self.journal.step,
                digest=batches.digest(batch),
                drew=drawn(before, self._states),
                worker_seed=getattr(base, "_base_seed", None) if workers else None,
            )
        )
        iterator.count += 1
        return batch

    def _remember_data(self, loader: Any) -> None:
        data = getattr(loader, "dataset", None)
        if self._data is None and not isinstance(data, IterableDataset):
            self._data = data

    def _note_order(self, iterator: TappedIterator, number: int) -> None:
        """Write down the order of the whole epoch, what is left of it without loading it."""
        self._reading = None
        base = self._indices.base(iterator)
        data: Any = getattr(iterator.loader, "dataset", None)
        if isinstance(data, IterableDataset):
            self._stream = iterator, number
        if base is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            return
        this = number, self._loaders.epoch(number)
        if this in self._noted:
            return
        self._noted.add(this)
        complete = self._indices.follow(base)
        found = self._indices.found(base)
        if not all(isinstance(i, int) for rows in found for i in rows):
            return
        self.journal.add(
            Order(
                loader=number,
                epoch=self._loaders.epoch(number),
                indices=tuple(i for rows in found for i in rows),
                batches=len(found),
                complete=complete,
                length=len(data),
                **described(iterator.loader),
                at=self._loaders.place(iterator.loader),
            )
        )
        self._indices.forget(base)

    def _note_length(self, iterator: TappedIterator, number: int) -> None:
        """Write down how many batches a stream has: it is read to its end, where that is near.

        Its items are not known.
        """
        until, ended = time.monotonic() + LAST, False
        while not ended and iterator.count < MOST and time.monotonic() < until:
            try:
                iterator.draw()
                iterator.count += 1
            except StopIteration:
                ended = True
        self.journal.add(
            Order(
                loader=number,
                epoch=self._loaders.epoch(number),
                indices=(),
                batches=iterator.count,
                complete=ended,
                length=0,
                sampler=type(iterator.loader.dataset).__name__,
                at=self._loaders.place(iterator.loader),
            )
        )

    # --- validation -------------------------------------------------------------------------------

    def _aside(self, iterator: TappedIterator, number: int) -> Any:
        """Give the script a batch that it does not train on, of the first few."""
        if self._shortens and iterator.count >= ASIDE:
            self._leave(number)
            raise StopIteration
        self._validating = True
        self.journal.doing = f"the validation after step {self.journal.step}"
        try:
            batch = iterator.draw()
        except StopIteration:
            self._leave(number)
            raise
        if torch.is_grad_enabled():
            self._since_backward.append(number)  # unless it is trained on after all
        iterator.count += 1
        self.journal.add(
            Validation(
                after=self.journal.step,
                digest=batches.digest(batch),
                collectives=self.journal.collectives,
                at=callstack.user_line(),
            )
        )
        return batch

    def _leave(self, number: int) -> None:
        """A pass is over, and no gradient was computed from its last batches."""
        self._since_backward = [each for each in self._since_backward if each != number]

    def _resume(self) -> None:
        """The script trains, or is at its end: what was validation is over."""
        if self._validating:
            self._validating = False
            self.journal.add(Resumed(after=self.journal.step, collectives=self.journal.collectives))

    # --- networks ---------------------------------------------------------------------------------

    def on_forward(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note which network is trained, and whether its wrapper is called."""
        if torch.is_grad_enabled() and next(module.parameters(), None) is not None:
            self._networks.called(module)
            if not self._inputs:
                self._inputs = batches.digest((args, kwargs))
        return run(args, kwargs)

    def on_backward(self, root: Tensor) -> bool:
        """Note that what was read since the last one is trained on."""
        if self._closure:
            self._begin_first()
        self._backwards += 1
        self._training.update(self._since_backward)
        self._since_backward.clear()
        self._validating = False
        return True

    def on_loss_scaled(self, loss: Any, result: Any) -> None:
        """No concern."""

    def on_zero_grad(self) -> None:
        """No concern."""

    def on_scaler_step(self) -> None:
        """A skipped step is one, too: all ranks skip it."""

    def on_step_start(self, optimizer: Optimizer, closure: bool) -> None:
        """Keep the state before the first step.

        A ``closure`` computes the gradients within it.
        """
        self._optimizers.add(optimizer)
        if self._main is not None:
            return
        self._main = optimizer
        if closure and not self._networks.trained:
            self._closure = True
            return
        self._begin_first()
        self._end_first()

    def _begin_first(self) -> None:
        self._closure = False
        self._note_weights("the first step")
        if len({number for number, _ in self._kept}) == 1:
            read = [batch for _, batch in self._kept]
            self.first_step = kept(self._networks.trained, read, self._backwards)
        self._kept = []

    def _end_first(self) -> None:
        """Keep the gradients of the first step."""
        if self._reduced:
            return
        self._reduced = True
        self._networks.stepped()
        self.journal.add(self._networks.gradients())
        if self.first_step is not None:
            self.first_step.gradients = self._unclipped or gradients(self._networks.trained)

    def on_clip(self) -> None:
        """Keep the gradients of the first step as they are before they are clipped."""
        if not self._reduced and not self._unclipped:
            self._unclipped = gradients(self._networks.trained)

    def on_step_end(self, optimizer: Optimizer) -> None:
        """Count a step of the optimizer that stepped first.

        Raises:
            Unwind: nothing more is to be seen of a script without a loader.
        """
        if optimizer is not self._main:
            return
        journal = self.journal
        if not journal.step:
            self._end_first()
        drew = drawn(self._states, states()) if self._states else {}
        journal.add(Stepped(step=journal.step, drew=drew, inputs=self._inputs))
        journal.step += 1
        journal.doing = f"what follows step {journal.step}"
        self._steps_in_epoch += 1
        self._inputs = ""
        if journal.step in (1, STEPS):
            self._note_weights(f"step {journal.step}")
        if not self._training and journal.step >= EPOCHS * STEPS:
            raise Unwind
        self._states = states()

    def _note_weights(self, when: str) -> None:
        self.journal.add(self._networks.weights(when, self.journal.step))

    # --- the end ----------------------------------------------------------------------------------

    def note_wrappers(self) -> None:
        """Write down how the wrappers were called: of a script that raised, too."""
        for wrapped in self._networks.wrapped():
            self.journal.add(wrapped)

    def finish(self) -> None:
        """Write down what is known at the end."""
        self._resume()
        if self._main is not None:
            self._note_weights("the end")
        self.note_wrappers()
        self.journal.add(self._networks.held(self._optimizers))
        if self._stream is not None and self._shortens:
            with suppress(Exception):  # the user's stream may do what it likes
                self._note_length(*self._stream)
        augments: bool | None = None
        digests: dict[int, str] = {}
        with suppress(Exception):  # the user's data may do what it likes
            augments = None if self._data is None else items.augments(self._data)
        for number in self._training:
            with suppress(Exception):
                digests[number] = items.digest(self._loaders[number].dataset)
        self.journal.add(
            Summary(
                augments=augments,
                items=digests,
                backend=distributed.get_backend() if distributed.is_initialized() else "",
                strategies=tuple(sorted(self._networks.strategies(self._optimizers))),
                joins=self._networks.joins,
                data_parallel=self._networks.data_parallel,
            )
        )
