"""The networks that a rank trains: their weights at one moment, and what distributes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nnaudit.ranks import sharding
from nnaudit.ranks.record import Gradients, Held, Weights, Wrapped
from nnaudit.ranks.wrappers import Wrapper
from nnaudit.targets import callstack


class Networks:
    """Every network that is called with gradients, and every DistributedDataParallel object.

    Attributes:
        trained: the networks, without their wrappers, in the order of their first calls.
    """

    def __init__(self) -> None:
        self.trained: list[nn.Module] = []
        self._wrappers: list[Wrapper] = []

    def add_wrapper(self, wrapper: DistributedDataParallel) -> None:
        """Note a wrapper, and the line that makes it."""
        self._wrappers.append(Wrapper(wrapper, callstack.user_line()))

    def called(self, module: nn.Module) -> None:
        """Note that ``module`` was called with gradients, from outside of any other."""
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        if not any(inner is known for known in self.trained):
            self.trained.append(inner)
        for wrapper in self._wrappers:
            wrapper.called(module)

    def stepped(self) -> None:
        """Note that the first optimizer step is about to be taken."""
        for wrapper in self._wrappers:
            wrapper.stepped()

    def weights(self, when: str, step: int) -> Weights:
        """Return hashes of all weights, of what this rank holds wholly."""
        parameters: dict[str, str] = {}
        buffers: dict[str, str] = {}
        replicated: list[str] = []
        sharded = 0
        held = {id(p) for w in self._wrappers for p in w.parameters()}
        for name, parameter in self._named("parameters"):
            if (whole := sharding.whole(parameter)) is None:
                sharded += 1
                continue
            parameters[name] = bits(whole)
            if id(parameter) in held:
                replicated.append(name)
        for name, buffer in self._named("buffers"):
            if (whole := sharding.whole(buffer)) is not None:
                buffers[name] = bits(whole)
        return Weights(
            when=when,
            step=step,
            parameters=parameters,
            buffers=buffers,
            replicated=tuple(replicated),
            broadcast=any(w.broadcasts for w in self._wrappers),
            sharded=sharded,
        )

    def gradients(self) -> Gradients:
        """Return hashes of all gradients that this rank holds wholly, and that are not zero."""
        found: dict[str, str] = {}
        for name, parameter in self._named("parameters"):
            gradient = parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                continue
            whole = sharding.whole(gradient)
            if whole is not None and bool(whole.any()):
                found[name] = bits(whole)
        return Gradients(gradients=found)

    def _named(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for number, network in enumerate(self.trained):
            prefix = f"{number}." if number else ""
            for name, tensor in getattr(network, f"named_{kind}")():
                yield prefix + name, tensor

    def wrapped(self) -> Iterator[Wrapped]:
        """Yield how every wrapper was called."""
        return (wrapper.noted() for wrapper in self._wrappers)

    def held(self, optimizers: Iterable[Optimizer]) -> Held:
        """Compare what the optimizers step with what the networks hold."""
        stepped = {
            id(p): p for each in optimizers for group in each.param_groups for p in group["params"]
        }
        own = {name: p for name, p in self._named("parameters") if p.requires_grad}
        known = {id(p) for p in own.values()}
        return Held(
            stale=sum(key not in known for key in stepped),
            unstepped=tuple(
                name
                for name, p in own.items()
                if id(p) not in stepped and sharding.is_sharded(p) and p.grad is not None
            ),
        )

    @property
    def joins(self) -> bool:
        """Whether the script handles unequal numbers of steps, by torch's ``Join``."""
        return any(wrapper.joins for wrapper in self._wrappers)

    @property
    def data_parallel(self) -> bool:
        """As of :class:`nnaudit.ranks.record.Summary`."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if any(wrapper.size == world for wrapper in self._wrappers):
            return True
        meshes: list[Any] = [
            mesh
            for network in self.trained
            if any(type(m).__name__.startswith("FSDP") for m in network.modules())
            for p in network.parameters()
            if (mesh := sharding.mesh(p)) is not None
        ]
        return bool(meshes) and all(m.ndim == 1 and m.size() == world for m in meshes)

    def strategies(self, optimizers: Iterable[Optimizer]) -> Iterator[str]:
        """Yield the names of what distributes the work."""
        if self._wrappers:
            yield "DistributedDataParallel"
        if any(sharding.is_sharded(p) for _, p in self._named("parameters")):
            yield "sharded parameters"
        kinds = {type(m).__name__ for network in self.trained for m in network.modules()}
        yield from sorted({"FullyShardedDataParallel", "DeepSpeedEngine"} & kinds)
        if any(type(each).__name__ == "ZeroRedundancyOptimizer" for each in optimizers):
            yield "ZeroRedundancyOptimizer"


def bits(tensor: Tensor) -> str:
    """Return a hash of the bits of ``tensor``."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()
