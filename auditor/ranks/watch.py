"""Watching a script on one rank: it runs as it would, for the first steps of two epochs.

An epoch, and a validation, is cut short after the same number of steps or batches on every rank.
Everything here happens in the script's thread.
"""

from __future__ import annotations

import hashlib
import os
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import IterableDataset, RandomSampler, WeightedRandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from nnaudit.loop.base import seed_everything
from nnaudit.loop.script.channel import Unwind
from nnaudit.loop.script.patches import TappedIterator
from nnaudit.ranks.first_step import FirstStep, kept
from nnaudit.ranks.journal import Journal
from nnaudit.ranks.record import (
    Batch,
    Order,
    Resumed,
    Stepped,
    Summary,
    Validation,
    Weights,
    Wrapped,
)
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

STEPS = 8
"""Optimizer steps of an epoch, where it is cut short."""

EPOCHS = 2
"""Epochs that are watched: an order that repeats itself shows in the second."""

UNCUT_STEPS = 200
"""Optimizer steps that are watched of a script whose epochs are not cut short."""

ASIDE = 3
"""Batches of a validation, where it is cut short."""

_CUDA: Any = torch.cuda

FOLLOWED = 2_000_000
"""Items of an epoch that are followed."""


class Watch:
    """Listens to a script that goes its own way, and writes down what the ranks are compared by.

    Attributes:
        leads, repeats: the script is not driven.
        first_step: what the first optimizer step was taken with.
    """

    leads = False
    repeats = False

    def __init__(self, journal: Journal, *, shortens: bool) -> None:
        """``shortens`` says whether epochs and validations are cut short."""
        self.journal = journal
        self._shortens = shortens
        self._loaders: list[Any] = []
        self._passes: list[int] = []
        self._training: set[int] = set()
        self._since_backward: list[int] = []
        self._steps_in_epoch = 0
        self._backwards = self._begun_at = 0
        self._main: Optimizer | None = None
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._networks: list[nn.Module] = []
        self._wrappers: list[_Wrapper] = []
        self._places: dict[int, Location | None] = {}
        self._indices = _Indices()
        self._validating = False
        self._states: dict[str, str] = {}
        self._inputs = ""
        self._data: Any = None
        self._kept: list[Any] = []
        self.first_step: FirstStep | None = None

    # --- what is made -----------------------------------------------------------------------------

    def on_create(self, kind: str, thing: Any) -> None:
        """Note wrappers, and where loaders are made."""
        if kind == "module" and isinstance(thing, DistributedDataParallel):
            self._wrappers.append(_Wrapper(thing, callstack.user_line()))
        if kind == "loader":
            self._places[id(thing)] = callstack.user_line()

    def on_optimizer_built(self, optimizer: Optimizer) -> None:
        """Nothing is asked of it yet."""

    # --- loaders ----------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Follow what the loaders' samplers give, for the time of a ``with``."""
        owner: Any = _BaseDataLoaderIter
        real, indices = owner._next_index, self._indices

        def next_index(base: Any) -> Any:
            found = real(base)
            indices.add(base, found)
            return found

        owner._next_index = next_index
        try:
            yield
        finally:
            owner._next_index = real

    def on_iterate(self, iterator: TappedIterator) -> None:
        """Begin the loader's own iterator, as the script would."""
        with self._indices.of(iterator):
            iterator.begin()

    def on_next_batch(self, iterator: TappedIterator) -> Any:
        """Give the script the loader's own next batch, until enough was seen."""
        number = self._number(iterator.loader)
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
                self._note_weights(f"the start of epoch {self._passes[number] - 1}")
        self._since_backward.append(number)
        self.journal.doing = f"training step {self.journal.step + 1}"
        return self._draw(iterator, number)

    def _is_aside(self, iterator: TappedIterator, number: int) -> bool:
        """Whether a loader that is read with gradients does not seem to be trained on."""
        if number in self._training:
            return False
        unused = self._backwards == self._begun_at
        return bool(self.journal.step) or (self._shortens and unused and iterator.count >= ASIDE)

    def _number(self, loader: Any) -> int:
        """Return the number of a loader; one made anew for the same data has the same."""
        data, place = getattr(loader, "dataset", None), self._places.get(id(loader))
        for number, known in enumerate(self._loaders):
            anew = place is not None and place == self._places.get(id(known))
            if known is loader or (anew and getattr(known, "dataset", None) is data):
                return number
        self._loaders.append(loader)
        self._passes.append(0)
        return len(self._loaders) - 1

    def _begin_pass(self, number: int) -> None:
        """A loader is read from its beginning, with gradients.

        Raises:
            Unwind: enough epochs, or steps, were seen.
        """
        self._passes[number] += 1
        enough = self.journal.step >= EPOCHS * STEPS
        if enough or (number in self._training and self._passes[number] > EPOCHS):
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
        if not self._shortens and self.journal.step >= UNCUT_STEPS:
            self._note_order(iterator, number)
            raise Unwind
        if self._shortens and self._steps_in_epoch >= STEPS:
            self._note_order(iterator, number)
            iterator.exhausted = True
            self.journal.doing = f"what follows epoch {self._passes[number] - 1}"
            raise StopIteration

    def _draw(self, iterator: TappedIterator, number: int) -> Any:
        before = states()
        try:
            with self._indices.of(iterator):
                batch = iterator.draw()
        except StopIteration:
            self._note_order(iterator, number)
            self.journal.doing = f"what follows epoch {self._passes[number] - 1}"
            raise
        self._states = states()
        self._remember_data(iterator.loader)
        if self._main is None:
            self._kept.append(batches.clone(batch))
        base = self._indices.base(iterator)
        workers = getattr(iterator.loader, "num_workers", 0)
        self.journal.add(
            Batch(
                loader=number,
                epoch=self._passes[number] - 1,
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
        base = self._indices.base(iterator)
        data: Any = getattr(iterator.loader, "dataset", None)
        if base is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            return
        complete = self._indices.follow(base)
        found = self._indices.found(base)
        if not all(isinstance(i, int) for rows in found for i in rows):
            return
        self.journal.add(
            Order(
                loader=number,
                epoch=self._passes[number] - 1,
                indices=tuple(i for rows in found for i in rows),
                batches=len(found),
                complete=complete,
                length=len(data),
                **_sampling(iterator.loader),
                at=self._places.get(id(iterator.loader)),
            )
        )
        self._indices.forget(base)

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
            inner = module.module if isinstance(module, DistributedDataParallel) else module
            if not any(inner is known for known in self._networks):
                self._networks.append(inner)
            for wrapper in self._wrappers:
                wrapper.called(module)
            if not self._inputs:
                self._inputs = batches.digest((args, kwargs))
        return run(args, kwargs)

    def on_backward(self, root: Tensor) -> bool:
        """Note that what was read since the last one is trained on."""
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
        """Keep the state before the first step."""
        if self._main is None:
            self._main = optimizer
            self._note_weights("the first step")
            self.first_step = kept(self._networks, self._kept)
            self._kept = []
        self._optimizers.add(optimizer)

    def on_step_end(self, optimizer: Optimizer) -> None:
        """Count a step of the optimizer that stepped first.

        Raises:
            Unwind: nothing more is to be seen of a script without a loader.
        """
        if optimizer is not self._main:
            return
        journal = self.journal
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
        parameters: dict[str, str] = {}
        buffers: dict[str, str] = {}
        replicated: list[str] = []
        sharded = 0
        held = {id(p) for w in self._wrappers for p in w.parameters()}
        for number, network in enumerate(self._networks):
            prefix = f"{number}." if number else ""
            for name, parameter in network.named_parameters():
                if _is_sharded(parameter):
                    sharded += 1
                    continue
                parameters[prefix + name] = bits(parameter)
                if id(parameter) in held:
                    replicated.append(prefix + name)
            for name, buffer in network.named_buffers():
                if not _is_sharded(buffer):
                    buffers[prefix + name] = bits(buffer)
        self.journal.add(
            Weights(
                when=when,
                step=self.journal.step,
                parameters=parameters,
                buffers=buffers,
                replicated=tuple(replicated),
                broadcast=any(w.broadcasts for w in self._wrappers),
                sharded=sharded,
            )
        )

    # --- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write down what is known at the end."""
        self._resume()
        if self._main is not None:
            self._note_weights("the end")
        for wrapper in self._wrappers:
            self.journal.add(wrapper.noted())
        augments = None
        with suppress(Exception):  # the user's data may do what it likes
            augments = self._augments()
        self.journal.add(
            Summary(
                augments=augments,
                backend=distributed.get_backend() if distributed.is_initialized() else "",
                strategies=tuple(sorted(self._strategies())),
                joins=any(w.joins for w in self._wrappers),
                data_parallel=self._is_data_parallel(),
            )
        )

    def _augments(self) -> bool | None:
        """Whether an item of the training set differs from itself under another seed."""
        if self._data is None:
            return None
        seen = []
        for seed in (1, 1, 2):
            seed_everything(seed)
            seen.append(batches.digest((self._data[0],)))
        return seen[0] == seen[1] != seen[2]

    def _is_data_parallel(self) -> bool:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if any(wrapper.size == world for wrapper in self._wrappers):
            return True
        meshes = [
            p.device_mesh  # type: ignore[attr-defined]
            for network in self._networks
            if any(type(m).__name__.startswith("FSDP") for m in network.modules())
            for p in network.parameters()
            if type(p).__name__ == "DTensor"
        ]
        return bool(meshes) and all(m.ndim == 1 and m.size() == world for m in meshes)

    def _strategies(self) -> Iterator[str]:
        if self._wrappers:
            yield "DistributedDataParallel"
        kinds = {type(p).__name__ for network in self._networks for p in network.parameters()}
        if "DTensor" in kinds:
            yield "sharded parameters"
        for network in self._networks:
            if any(type(m).__name__ == "FullyShardedDataParallel" for m in network.modules()):
                yield "FullyShardedDataParallel"
        if any(type(o).__name__ == "ZeroRedundancyOptimizer" for o in self._optimizers):
            yield "ZeroRedundancyOptimizer"


class _Wrapper:
    """A DistributedDataParallel object, and how it is called."""

    def __init__(self, wrapper: DistributedDataParallel, at: Location | None) -> None:
        self._wrapper, self._at = wrapper, at
        self._forwards = self._bypassed = 0
        self._bypassed_at: Location | None = None
        self._inner: set[int] = set()
        self.joins = False
        self.size = 0

    @property
    def _network(self) -> nn.Module | None:
        network: nn.Module | None = self._wrapper.__dict__.get("_modules", {}).get("module")
        return network

    @property
    def broadcasts(self) -> bool:
        return bool(getattr(self._wrapper, "broadcast_buffers", False))

    def parameters(self) -> Iterator[nn.Parameter]:
        network = self._network
        return iter(()) if network is None else network.parameters()

    def called(self, module: nn.Module) -> None:
        """Note that ``module`` was called, from outside of any other."""
        network = self._network
        if network is None:
            return
        if not self._inner:
            self._inner = {id(m) for m in network.modules()}
            self.size = distributed.get_world_size(self._wrapper.process_group)
        handle = getattr(self._wrapper, "_join_config", None)
        self.joins |= bool(getattr(handle, "enable", False))
        if module is self._wrapper:
            self._forwards += 1
        elif id(module) in self._inner:
            self._bypassed += 1
            self._bypassed_at = self._bypassed_at or callstack.user_line()

    def noted(self) -> Wrapped:
        return Wrapped(
            network=type(self._network).__name__,
            forwards=self._forwards,
            bypassed=self._bypassed,
            at=self._at,
            bypassed_at=self._bypassed_at,
        )


class _Indices:
    """The indices that loaders' iterators ask for, by iterator."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, list[list[Any]]]] = {}
        self._bases: dict[int, Any] = {}
        self._current: int | None = None

    @contextmanager
    def of(self, iterator: TappedIterator) -> Iterator[None]:
        """What is asked for in the block belongs to ``iterator``."""
        before, self._current = self._current, iterator.key
        try:
            yield
        finally:
            self._current = before

    def add(self, base: Any, found: Any) -> None:
        rows = list(found) if isinstance(found, (list, tuple)) else [found]
        rows = [int(i) if isinstance(i, (np.integer, int)) else i for i in rows]
        self._found.setdefault(id(base), (base, []))[1].append(rows)
        if self._current is not None:
            self._bases[self._current] = base

    def base(self, iterator: TappedIterator) -> Any:
        return self._bases.get(iterator.key)

    def found(self, base: Any) -> list[list[Any]]:
        return self._found[id(base)][1]

    def follow(self, base: Any) -> bool:
        """Let the sampler give the rest of its epoch; returns whether it came to its end."""
        rows = self.found(base)
        total = sum(map(len, rows))
        while total < FOLLOWED:
            try:
                base._next_index()
            except StopIteration:
                return True
            total += len(rows[-1])
        return False

    def forget(self, base: Any) -> None:
        self._found.pop(id(base), None)


def _sampling(loader: Any) -> dict[str, Any]:
    """Describe what chooses the items of ``loader``."""
    chain = [loader]
    for each in chain:  # which grows: a batch sampler may wrap another one, or a sampler
        inner = [getattr(each, name, None) for name in ("sampler", "batch_sampler")]
        chain += [x for x in inner if x is not None and not any(x is known for known in chain)]
    chain = chain[1:]
    waiting = [each for each in chain if callable(getattr(each, "set_epoch", None))]
    return {
        "sampler": type((waiting or chain or [loader])[0]).__name__,
        "waits_for_epoch": bool(waiting),
        "replaces": any(
            isinstance(each, (RandomSampler, WeightedRandomSampler)) and each.replacement
            for each in chain
        ),
    }


def _is_sharded(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor" or type(tensor).__name__ == "FlatParameter"


def bits(tensor: Tensor) -> str:
    """Return a hash of the bits of ``tensor``."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()


def states() -> dict[str, str]:
    """Return a hash of the state of every global random number generator."""
    numpy: Any = np.random.get_state()
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": numpy[1].tobytes() + str(numpy[2:]).encode(),
        "random": str(random.getstate()).encode(),
    }
    if _CUDA.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {name: hashlib.blake2b(raw, digest_size=8).hexdigest() for name, raw in found.items()}


def drawn(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Return the states ``before`` of those generators whose state has changed since."""
    return {name: state for name, state in before.items() if after.get(name) != state}
