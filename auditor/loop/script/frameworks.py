"""What frameworks need beyond the taps.

Most loops end when their loader does, and so never end under an audit. Those of Lightning, ignite
and transformers count their batches themselves: their bounds are taken off. (Where that does not
work, in another version, the script ends and is run again: slower, but the same.) fastai has an
optimizer class of its own, which is dressed as one of torch's.

Nothing here imports a framework: it acts on what the script has imported.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer

from nnaudit.loop.script.patches import Patches
from nnaudit.state.objects import TIES
from nnaudit.targets import callstack

FOREVER = 2**62


def adapt(taps: Patches) -> None:
    """Put in what a framework needs as soon as the script has imported it."""
    _adapt_transformers(taps)
    _adapt_fastai(taps)


def make_endless() -> bool:
    """Take the bounds off the framework's loop in which the calling thread's script is paused.

    Returns whether it is in one.
    """
    found = False
    for owner in callstack.receivers():
        kind = f"{type(owner).__module__}.{type(owner).__qualname__}"
        if kind.endswith("loops.fit_loop._FitLoop"):
            _unbind_lightning(owner)
            found = True
        elif kind == "ignite.engine.engine.Engine":
            owner.state.epoch_length = FOREVER
            owner.state.max_iters = None
            found = True
        elif kind.startswith(("fastai.", "skorch.")):
            found = True
    return found


def validation_of_framework() -> Any:
    """Return the validation loader of the framework in whose loop the script is, or None."""
    for owner in callstack.receivers():
        names = {cls.__name__ for cls in type(owner).__mro__}
        if "Trainer" in names and getattr(owner, "eval_dataset", None) is not None:
            try:
                return owner.get_eval_dataloader()
            except Exception:
                return None
        if "_FitLoop" in names and (loader := _lightning_validation(owner)) is not None:
            return loader
        if "Learner" in names and len(getattr(owner, "dls", ())) > 1:
            return owner.dls[1]
    return None


# --- Lightning ------------------------------------------------------------------------------------


def _lightning_validation(loop: Any) -> Any:
    """Return the first validation loader that Lightning would ask for at the epoch's end."""
    source = getattr(loop.epoch_loop.val_loop, "_data_source", None)
    try:
        made = source.dataloader() if source is not None and source.is_defined() else None
    except Exception:
        return None
    if isinstance(made, dict):
        made = list(made.values())
    return next(iter(made), None) if isinstance(made, (list, tuple)) else made


def ties_to_run(module: Any) -> dict[str, Any]:
    """Return the attributes by which a LightningModule is tied to the trainer that runs it now.

    One that takes the place of another in a later execution is that trainer's from then on.
    """
    if not any(cls.__name__ == "LightningModule" for cls in type(module).__mro__):
        return {}
    return {name: vars(module)[name] for name in TIES if name in vars(module)}


def keeps_the_log(module: Any) -> bool:
    """Whether ``module`` only holds a value that was logged: each trainer has its own."""
    return type(module).__name__ == "_ResultMetric"


def _unbind_lightning(loop: Any) -> None:
    loop.max_batches = float("inf")
    loop.max_epochs = -1
    loop.epoch_loop.max_steps = -1
    loop.trainer.val_check_batch = float("inf")
    fetcher = getattr(loop, "_data_fetcher", None)
    if fetcher is not None:
        fetcher.length = None
        fetcher.done = False


# --- transformers ---------------------------------------------------------------------------------


def _adapt_transformers(taps: Patches) -> None:
    module = sys.modules.get("transformers.trainer")
    trainer = getattr(module, "Trainer", None)
    if trainer is None or not hasattr(trainer, "_run_epoch"):
        return

    def make(real: Any) -> Any:
        @wraps(real)
        def run_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
            if taps.active_listener() is not None and "num_update_steps_per_epoch" in kwargs:
                # Nothing that is done every so many steps is of use to an audit.
                for name in ("max_steps", "logging_steps", "eval_steps", "save_steps"):
                    setattr(self.state, name, FOREVER)
                each = kwargs["steps_in_epoch"] // max(kwargs["num_update_steps_per_epoch"], 1)
                kwargs["num_update_steps_per_epoch"] = 2**48
                kwargs["steps_in_epoch"] = 2**48 * max(each, 1)
            return real(self, *args, **kwargs)

        return run_epoch

    taps.patch_once(trainer, "_run_epoch", make)


# --- accelerate -----------------------------------------------------------------------------------


@contextmanager
def as_left(loader: Any) -> Iterator[None]:
    """Iterating over ``loader`` beside the script must not tell the script that its epoch is over.

    Accelerate's loaders write into a state that all share which of them is being read, and whether
    it is at its end; gradients are accumulated accordingly.
    """
    state = getattr(loader, "gradient_state", None)
    if state is None or not hasattr(state, "dataloader_references"):
        yield
        return
    names = ("end_of_dataloader", "remainder")
    references = list(state.dataloader_references)
    before = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(loader, name, value)
        state.dataloader_references[:] = references


# --- fastai ---------------------------------------------------------------------------------------


def _adapt_fastai(taps: Patches) -> None:
    module = sys.modules.get("fastai.optimizer")
    cls = getattr(module, "Optimizer", None)
    if cls is None:
        return

    def construct(real: Any) -> Any:
        @wraps(real)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            real(self, *args, **kwargs)
            if taps.active_listener() is not None:
                self.nnaudit_view = FastaiOptimizer(self)

        return init

    def step(real: Any) -> Any:
        @wraps(real)
        def step_(self: Any, *args: Any, **kwargs: Any) -> Any:
            view = getattr(self, "nnaudit_view", None)
            if view is None:
                return real(self, *args, **kwargs)
            return view.around(lambda: real(self, *args, **kwargs))

        return step_

    taps.patch_once(cls, "__init__", construct)
    taps.patch_once(cls, "step", step)


class FastaiOptimizer(Optimizer):
    """A fastai optimizer, to be read and turned like one of torch's. Its step is fastai's."""

    def __init__(self, inner: Any) -> None:
        """Present ``inner``, whose parameter groups and state stay its own."""
        parameters = [p for group in inner.param_lists for p in group]
        super().__init__(parameters, {})
        self.inner = inner
        self.hypers = list(inner.hypers)
        groups: list[Any] = [
            _Group(list(ps), hyper)
            for ps, hyper in zip(inner.param_lists, self.hypers, strict=True)
        ]
        self.param_groups: list[Any] = groups

    @property
    def state(self) -> Any:
        """What fastai keeps for each parameter."""
        inner = self.__dict__.get("inner")
        return {} if inner is None else inner.state

    @state.setter
    def state(self, value: Any) -> None:
        """Ignored: torch's constructor would put an empty one in its place."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of torch's optimizers."""
        numbers = {id(p): i for i, p in enumerate(self._parameters())}
        return {
            "state": {numbers[id(p)]: dict(state) for p, state in self.state.items()},
            "param_groups": [
                {**group._hyper, "params": [numbers[id(p)] for p in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Any) -> None:
        """Take up a state that :meth:`state_dict` returned."""
        for i, parameter in enumerate(self._parameters()):
            if i in state_dict["state"]:
                self.inner.state[parameter] = copy.deepcopy(state_dict["state"][i])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group._hyper.update({name: v for name, v in saved.items() if name != "params"})

    def _parameters(self) -> list[Any]:
        return [p for group in self.param_groups for p in group["params"]]

    def around(self, step: Any) -> Any:
        """Do fastai's ``step`` with the hooks of a torch optimizer around it."""
        from torch.optim import optimizer as torch_optimizer

        before: tuple[Any, ...] = (
            torch_optimizer._global_optimizer_pre_hooks,
            self._optimizer_step_pre_hooks,
        )
        after: tuple[Any, ...] = (
            self._optimizer_step_post_hooks,
            torch_optimizer._global_optimizer_post_hooks,
        )
        for hooks in before:
            for hook in list(hooks.values()):
                hook(self, (), {})
        with torch.no_grad():
            result = step()
        for hooks in after:
            for hook in list(hooks.values()):
                hook(self, (), {})
        return result

    def step(self, closure: Any = None) -> Any:
        """Do fastai's step."""
        self.inner.step()

    def __repr__(self) -> str:
        names = ", ".join(getattr(cb, "__name__", str(cb)) for cb in self.inner.cbs)
        return f"fastai Optimizer({names})"


class _Group(MutableMapping[str, Any]):
    """A parameter group whose hyper-parameters are fastai's, under torch's names."""

    NAMES = {"weight_decay": "wd", "momentum": "mom", "alpha": "sqr_mom"}  # noqa: RUF012

    def __init__(self, parameters: list[Any], hyper: dict[str, Any]) -> None:
        self._parameters = parameters
        self._hyper = hyper

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self._parameters
        return self._hyper[self.NAMES.get(name, name)]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            self._parameters = value
        else:
            self._hyper[self.NAMES.get(name, name)] = value

    def __delitem__(self, name: str) -> None:
        del self._hyper[self.NAMES.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        inverse = {short: name for name, short in self.NAMES.items()}
        return iter(["params", *(inverse.get(name, name) for name in self._hyper)])

    def __len__(self) -> int:
        return 1 + len(self._hyper)
