"""What libraries remember of a program, and would refuse it when it is executed again.

Must not import torch. Libraries that the program has not imported remember nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nnaudit.state.trackers import forget_runs

ERRORS_AS_THEY_ARE = {"HYDRA_FULL_ERROR": "1"}
"""Environment variables without which a library prints an error of the program's and exits."""

_OF_A_RUN = ("GlobalHydra", "HydraConfig")
"""Hydra's classes of which there is one object, that of the program that is under way."""

_REGISTRIES = (
    ("omegaconf.omegaconf", "OmegaConf", "register_new_resolver", "replace"),
    ("transformers.models.auto.configuration_auto", "_LazyConfigMapping", "register", "exist_ok"),
    ("transformers.models.auto.auto_factory", "_LazyAutoMapping", "register", "exist_ok"),
    ("mmengine.registry.registry", "Registry", "_register_module", "force"),
)
"""What refuses a name that it knows: by module, class and method, and the argument to take it."""


@contextmanager
def beginning_anew() -> Iterator[None]:
    """For the time of a ``with``, let a program be executed as if it were the first time.

    The one that is paused within an execution finds its own again afterwards.
    """
    forget_runs()
    with ExitStack() as stack:
        stack.enter_context(_without_hydra())
        for names in _REGISTRIES:
            stack.enter_context(_taking_known_names(*names))
        yield


@contextmanager
def _without_hydra() -> Iterator[None]:
    singleton: Any = sys.modules.get("hydra.core.singleton")
    if singleton is None:
        yield
        return
    instances = singleton.Singleton._instances
    before = {kind: instances.pop(kind) for kind in _of_a_run(instances)}
    try:
        yield
    finally:
        for kind in _of_a_run(instances):
            del instances[kind]
        instances.update(before)


def _of_a_run(instances: dict[type, Any]) -> list[type]:
    return [kind for kind in instances if kind.__name__ in _OF_A_RUN]


@contextmanager
def _taking_known_names(module: str, kind: str, method: str, argument: str) -> Iterator[None]:
    owner = getattr(sys.modules.get(module), kind, None)
    real = vars(owner).get(method) if owner is not None else None
    if real is None:
        yield
        return
    static = isinstance(real, staticmethod)
    function = real.__func__ if static else real

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, argument: True})

    setattr(owner, method, staticmethod(taking) if static else taking)
    try:
        yield
    finally:
        setattr(owner, method, real)
