"""Whether the inputs reach the network as the loader made them."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.probes.rows import Layout
from nnaudit.targets import batch as batches


class UnmodifiedInputs(Probe[frozenset[str]]):
    """The paths in a training batch whose tensors the network is called with as they are.

    What the step scales, augments or moves about on the way is not among them, and nothing is
    where the network was not seen to be called.
    """

    def measure(self, audit: Audit) -> frozenset[str]:
        """Call the network on the first batch, as the program does.

        Raises:
            UserCodeError: the loader raised.
        """
        batch = next(iter(audit.loop.batches()), None)
        given: list[Any] = []

        def see(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not given:
                given.append(batches.clone((args, kwargs)))

        handle = audit.loop.model.register_forward_pre_hook(see, with_kwargs=True)
        try:
            audit.loop.forward(batch, train=True)
        except UserCodeError:
            return frozenset()
        finally:
            handle.remove()
        paths = Layout.of(audit.loop, batch).inputs
        own = dict(batches.tensors(batch))
        return frozenset(path for path in paths if given and batches.paths_of(given, own[path]))
