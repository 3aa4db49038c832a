"""DistributedDataParallel objects, and how the script calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnaudit.ranks.record import Wrapped
from nnaudit.report import Location
from nnaudit.targets import callstack


class Wrapper:
    """A DistributedDataParallel object, and how it is called.

    Attributes:
        joins: it is called within torch's ``Join``.
        size: how many ranks it spans; 0 until something of it is called.
    """

    def __init__(self, wrapper: DistributedDataParallel, at: Location | None) -> None:
        self._wrapper, self._at = wrapper, at
        self._forwards = self._bypassed = 0
        self._bypassed_at: Location | None = None
        self._inner: set[int] = set()
        self._unused: tuple[str, ...] = ()
        self.joins = False
        self.size = 0

    @property
    def _network(self) -> nn.Module | None:
        network: nn.Module | None = self._wrapper.__dict__.get("_modules", {}).get("module")
        return network

    @property
    def broadcasts(self) -> bool:
        """Whether it gives rank 0's buffers to all ranks."""
        return bool(getattr(self._wrapper, "broadcast_buffers", False))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that it holds."""
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

    def stepped(self) -> None:
        """Note which parameters have no gradient when the first optimizer step is taken.

        Where none has, the step is another network's.
        """
        network, wrapper = self._network, cast("Any", self._wrapper)
        by_design = getattr(wrapper, "find_unused_parameters", False) or wrapper.static_graph
        if network is not None and self._forwards and not by_design:
            ignored: set[str] = getattr(wrapper, "parameters_to_ignore", set())
            waits = {
                name: p.grad is None
                for name, p in network.named_parameters()
                if p.requires_grad and name not in ignored
            }
            if not all(waits.values()):
                self._unused = tuple(name for name, unused in waits.items() if unused)

    def noted(self) -> Wrapped:
        """Return how it was called."""
        return Wrapped(
            network=type(self._network).__name__,
            forwards=self._forwards,
            bypassed=self._bypassed,
            at=self._at,
            bypassed_at=self._bypassed_at,
            unused=self._unused,
        )
