"""The loop for a target handed over in parts: nnaudit writes the training loop itself.

It is the plain loop of every tutorial: train mode, zero the gradients, forward, loss, backward,
step. With ``training_step`` the user's own forward and loss take the place of ours; one that asks
for the optimizer does the whole step itself.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.errors import TargetError, user_code
from nnaudit.loop.base import Forward, Loop, Needs, Step, seed_everything
from nnaudit.loop.observation import Observation
from nnaudit.loop.observer import Observer
from nnaudit.report import Location, Part, TargetInfo
from nnaudit.state.objects import keep_generator
from nnaudit.state.reach import generators_of
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import metrics_of
from nnaudit.targets.model_inputs import (
    BatchFormat,
    DefaultLoss,
    ModelInputs,
    convention_for,
    has_forward,
    own_loss,
)
from nnaudit.targets.target import Target, defined_at

WIDTH_NAMES = (
    "width", "width_multiplier", "width_mult", "hidden", "hidden_size", "hidden_dim",
    "hidden_channels", "channels", "d_model", "n_embd", "embed_dim",
)  # fmt: skip
"""Arguments of ``build_model`` that scale the hidden layers: the first that exists is used."""


@dataclass
class StepCount:
    """Optimizer steps of an audit, shared by a loop and the runs relaunched from it.

    ``allow`` is called before whatever takes the time of a step, and raises when there is none
    left.
    """

    taken: int = 0
    allow: Callable[[], None] = lambda: None

    @contextmanager
    def bounded(self, allow: Callable[[], None]) -> Iterator[None]:
        """Call ``allow`` before each step for the time of the block."""
        was, self.allow = self.allow, allow
        try:
            yield
        finally:
            self.allow = was


class DirectLoop(Loop):
    """Drives a :class:`~nnaudit.targets.target.Target`."""

    def __init__(
        self,
        target: Target,
        device: torch.device,
        seed: int,
        *,
        width: float = 1.0,
        count: StepCount | None = None,
    ) -> None:
        """Build everything the target's factories make, under ``seed``, on ``device``.

        Raises:
            TargetError: a factory returned something of the wrong kind, or the loader is empty.
            UserCodeError: the user's code raised.
        """
        self._target = target
        self._count = count or StepCount()
        self._convention: BatchFormat | None = None
        self.loss: Callable[[Any, Any], Tensor] = target.loss or DefaultLoss()
        self._generators = generators_of((target.training_step, target.loss, target.model))
        kept = (keep_generator(generator) for generator in self._generators)
        self._rewinds = tuple(undo for undo in kept if undo is not None)
        self.name = target.name
        self.device = device
        seed_everything(seed)
        self.model = _on(self._build_model(width), device)
        self.handed_over_in_eval = _all_in_eval(self.model)
        self.never_steps = target.never_steps
        self.train_loader = self._build_loader("train_loader", target.train_loader)
        self.val_loader = self._build_loader("val_loader", target.val_loader)
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        self._materialise()
        self.optimizers = self._build_optimizers()
        self.schedulers = self._build_schedulers()
        self.models = (self.model,)
        self.metrics = metrics_of(target.metric)
        self.model.train()

    @property
    def steps_taken(self) -> int:  # type: ignore[override]
        """Optimizer steps since the audit began, relaunched runs included."""
        return self._count.taken

    def bounded(self, allow: Callable[[], None]) -> AbstractContextManager[None]:
        """Call ``allow`` before each step or forward pass for the time of a ``with``."""
        return self._count.bounded(allow)

    @property
    def subjects(self) -> Subjects:
        """Everything a step may change."""
        loss = (self.loss,) if isinstance(self.loss, nn.Module) else ()
        loaders = tuple(x for x in (self.train_loader, self.val_loader) if x is not None)
        return Subjects(
            models=(*self.models, *loss),
            optimizers=self.optimizers,
            schedulers=self.schedulers,
            loaders=loaders,
            extras=self._generators,
        )

    def lacks(self, need: Needs) -> str:
        """Return why ``need`` is not offered, or an empty string."""
        reasons: dict[Needs, Callable[[], str]] = {
            Needs.TRAIN_LOADER: lambda: _undefined("train_loader", self.train_loader),
            Needs.ITEMS: lambda: _undefined("train_loader", self.train_loader),
            Needs.OWN_BATCHES: lambda: _undefined("train_loader", self.train_loader),
            Needs.SAME_BATCH: lambda: _undefined("train_loader", self.train_loader),
            Needs.VAL_LOADER: lambda: _undefined("val_loader", self.val_loader),
            Needs.STEPS: self._why_no_steps,
            Needs.OWN_STEPS: self._why_no_steps,
            Needs.UPDATES: self._why_no_steps,
            Needs.TARGETS: self._why_no_targets,
            Needs.OPTIMIZER: lambda: _undefined("optimizer", self._target.optimizer),
            Needs.FRESH_RUN: self._why_not_fresh,
            Needs.WIDTH: lambda: (
                "" if self._width_name() else "build_model takes no width argument"
            ),
        }
        return reasons[need]()

    def _why_no_steps(self) -> str:
        if self.train_loader is None:
            return _undefined("train_loader", None)
        trainable = any(p.requires_grad for p in self.model.parameters())
        return "" if trainable else "the model has no trainable parameter"

    def _why_no_targets(self) -> str:
        if self.train_loader is None:
            return _undefined("train_loader", None)
        fed = self.split_batch(self._first_batch())
        # A model may be given its labels beside its inputs; only the first input stands alone.
        alone = fed.target is None or any(fed.target is value for value in fed.inputs[:1])
        return "the batches hold inputs only" if alone else ""

    def _why_not_fresh(self) -> str:
        if self._target.reload is not None or not isinstance(self._target.model, nn.Module):
            return ""
        return "the model is an object: hand over a function that builds it"

    def batches(self) -> Iterator[Any]:
        """Start one epoch of the training loader."""
        return self._iterate(self.train_loader, "train_loader")

    def val_batches(self) -> Iterator[Any]:
        """Start one pass over the validation loader."""
        return self._iterate(self.val_loader, "val_loader")

    @staticmethod
    def _iterate(loader: Any, name: str) -> Iterator[Any]:
        with user_code(f"iterating over {name}"):
            iterator = iter(loader)
        while True:
            with user_code(f"reading a batch from {name}"):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch

    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart by the target's convention."""
        return self._settled().split_batch(batch)

    def called_with(self, batch: Any) -> ModelInputs:
        """Let a ``training_step`` of the user's call the model, and note what it is given."""
        if self._target.training_step is None or isinstance(self.model, torch.jit.ScriptModule):
            return self.split_batch(batch)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(batches.clone((args, kwargs)))

        with preserved(self.subjects):
            # Not forward(), which forbids gradients: a penalty on them would raise.
            handle = self.model.register_forward_pre_hook(note, with_kwargs=True)
            try:
                with torch.enable_grad(), user_code("running the training step"):
                    self._target.training_step(
                        self.model,
                        batches.to_device(batch, self.device),
                        **self._asked_for(self._target.training_step),
                    )
            finally:
                handle.remove()
        if not calls:  # only parts of the model are called
            return self.split_batch(batch)
        args, kwargs = batches.to_device(calls[0], _device_of(batch, self.device))
        return ModelInputs(args, kwargs, self._target_beside(batch))

    def _target_beside(self, batch: Any) -> Any:
        """The part of ``batch`` that is a target by the convention; None where there is none."""
        try:
            return self.split_batch(batch).target
        except TargetError:  # a batch that only the training step understands
            return None

    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        """Zero the gradients, compute the loss in train mode, back-propagate, update."""
        self._count.allow()
        moved = batches.to_device(batch, self.device)
        if not (observe or losses):
            return self._timed_step(moved, None)
        observer = Observer(self.model, self.optimizers, losses_only=not observe)
        try:
            with observer:
                return self._timed_step(moved, observer.observation)
        except Exception as error:
            error.observation = observer.observation  # type: ignore[attr-defined]
            raise

    def _timed_step(self, batch: Any, observation: Observation | None) -> Step:
        lrs = tuple(
            group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups
        )
        started = self._clock()
        loss = self._update(batch, observation)
        self._count.taken += 1
        return Step(loss, lrs, self._clock() - started, observation)

    def _update(self, batch: Any, observation: Observation | None) -> float:
        if (step := self._target.training_step) is not None and (asked := self._asked_for(step)):
            with user_code("running the training step"):
                returned = step(self.model, batch, **asked)
            # What was back-propagated already may well come as a number.
            number = isinstance(returned, (int, float))
            loss = float(returned if number else self._checked(returned).detach())
            if observation is not None:
                observation.total_loss = loss
            return loss
        return self._plain_update(batch, observation)

    def _asked_for(self, step: Callable[..., Any]) -> dict[str, Any]:
        """Return what a ``training_step`` that updates the weights itself is given for it."""
        offered = {
            "optimizer": self.optimizers[0] if len(self.optimizers) == 1 else self.optimizers,
            "optimizers": self.optimizers,
            "scheduler": self.schedulers[0] if len(self.schedulers) == 1 else self.schedulers,
            "schedulers": self.schedulers,
        }
        names = _parameters_of(step)
        if not {"optimizer", "optimizers"} & names:
            return {}
        return {name: value for name, value in offered.items() if name in names}

    def _plain_update(self, batch: Any, observation: Observation | None) -> float:
        losses: list[float] = []

        def closure() -> Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            with user_code("computing the training loss"):
                loss = self._checked(self._training_loss(batch))
            losses.append(float(loss.detach()))
            if observation is not None:
                observation.total_loss = losses[0]
            with user_code("back-propagating the loss"):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self.optimizers):
            with user_code("taking the optimizer's step"):
                self.optimizers[0].step(closure)  # type: ignore[arg-type]
        else:
            closure()
            with user_code("taking the optimizer's step"):
                for optimizer in self.optimizers:
                    optimizer.step()
        return losses[0]

    def _training_loss(self, batch: Any) -> Tensor:
        if self._target.training_step is not None:
            return self._target.training_step(self.model, batch)
        fed = self.split_batch(batch)
        output = self.model(*fed.args, **fed.kwargs)
        return self._loss_of(output, fed)

    def _loss_of(self, output: Any, fed: ModelInputs) -> Tensor:
        computed = own_loss(output) if self._target.loss is None else None
        return computed if computed is not None else self.loss(output, fed.target)

    def _checked(self, loss: Any) -> Tensor:
        source = "training_step" if self._target.training_step is not None else "loss_fn"
        where = self._target.locations.get("training_step") or self._target.locations.get("loss")
        place = f"{where.file}:{where.line}: " if where else ""
        if not isinstance(loss, Tensor):
            raise TargetError(
                f"{place}{source} returned a {type(loss).__name__}: return the loss as a tensor"
            )
        if loss.numel() != 1:
            raise TargetError(
                f"{place}{source} returned a tensor of shape {tuple(loss.shape)}: a loss must be "
                "one number, so end it with .mean()"
            )
        return loss

    def forward(self, batch: Any, *, train: bool = False) -> Forward:
        """Run model and loss without gradient; modes are put back."""
        self._count.allow()
        modes = {module: module.training for module in self.model.modules()}
        moved = batches.to_device(batch, self.device)
        compute = self._loss_without_step(moved)
        observer = Observer(self.model, losses_only=True)
        self.model.train(train)
        try:
            with torch.no_grad(), observer, user_code("running the model on a batch"):
                loss = compute()
        finally:
            for module, mode in modes.items():
                module.training = mode
        seen = observer.observation
        value = None if loss is None else float(loss)
        return Forward(seen.output, value, tuple(seen.loss_calls))

    def _loss_without_step(self, batch: Any) -> Callable[[], Tensor | None]:
        """Return what computes the loss of a forward pass.

        Where only a whole step does, that is done and undone; of several networks that train each
        other it says nothing of a forward pass, hence None.
        """
        step = self._target.training_step
        if step is None or not self._asked_for(step):
            return lambda: self._checked(self._training_loss(batch))
        if not has_forward(self.model):
            return lambda: None
        fed = self.called_with(batch)

        def compute() -> Tensor | None:
            if self._target.loss is None and len(self.optimizers) == 1:
                return self._loss_of_undone_step(batch)
            output = self.model(*fed.args, **fed.kwargs)
            known = self._target.loss is not None or own_loss(output) is not None
            return self._checked(self._loss_of(output, fed)) if known else None

        return compute

    def _loss_of_undone_step(self, batch: Any) -> Tensor:
        # cuDNN's recurrent layers have no backward pass in eval mode.
        recurrent = torch.backends.cudnn.flags(enabled=self.model.training)
        with preserved(self.subjects), torch.enable_grad(), recurrent:
            return torch.tensor(self._update(batch, None))

    @contextmanager
    def _relaunch(self, seed: int, width: float) -> Iterator[Loop]:
        with preserved(Subjects(extras=self._generators)):
            seed_everything(seed)
            for rewind in self._rewinds:
                rewind()
            target = self._target.reload() if self._target.reload is not None else self._target
            yield DirectLoop(target, self.device, seed, width=width, count=self._count)

    def relaunched(
        self, seed: int, *, width: float = 1.0, keeps_files: bool = False
    ) -> AbstractContextManager[Loop]:
        """Build the target anew under ``seed``, its file executed again where there is one."""
        return self._relaunch(seed, width)

    def locate(self, thing: Any) -> Location | None:
        """Return where a part (by name), a module's class or a function is defined."""
        if isinstance(thing, str):
            return self._target.locations.get(thing)
        return defined_at(thing)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _first_batch(self) -> Any:
        with preserved(self.subjects if hasattr(self, "optimizers") else Subjects()):
            for batch in self.batches():
                return batch
        where = self._target.locations.get("train_loader")
        place = f"{where.file}:{where.line}: " if where else ""
        raise TargetError(
            f"{place}train_loader yields no batch: is the dataset empty, or smaller than one batch "
            "with drop_last=True?"
        )

    def _settled(self) -> BatchFormat:
        if self._convention is None:
            self._convention = convention_for(self.model, self._first_batch())
        return self._convention

    def _build_model(self, width: float) -> nn.Module:
        made = self._target.model
        if not isinstance(made, nn.Module):
            with user_code("building the model"):
                made = made(**self._width_argument(width))
        if not isinstance(made, nn.Module):
            raise TargetError(f"build_model() returned a {type(made).__name__}, not an nn.Module")
        return made

    def _width_name(self) -> str:
        factory = self._target.model
        if isinstance(factory, nn.Module):
            return ""
        parameters = inspect.signature(factory).parameters
        for name in WIDTH_NAMES:
            if name in parameters and isinstance(parameters[name].default, (int, float)):
                return name
        return ""

    def _width_argument(self, width: float) -> dict[str, Any]:
        name = self._width_name()
        if width == 1.0 or not name or isinstance(self._target.model, nn.Module):
            return {}
        default = inspect.signature(self._target.model).parameters[name].default
        return {name: type(default)(default * width)}

    @staticmethod
    def _build_loader(name: str, loader: Any) -> Any:
        is_loader = isinstance(loader, torch.utils.data.DataLoader)
        made = hasattr(loader, "__iter__") and not isinstance(loader, type)
        if callable(loader) and not is_loader and not made:
            factory = loader
            with user_code(f"building {name}"):
                loader = factory()
            if isinstance(loader, Iterator):
                loader = _Generated(factory)
        if loader is not None and not hasattr(loader, "__iter__"):
            raise TargetError(f"{name} is a {type(loader).__name__}, which cannot be iterated over")
        if isinstance(loader, Iterator):
            raise TargetError(
                f"{name} is a {type(loader).__name__} that can be read only once: hand over the "
                "loader itself, or a function that makes it"
            )
        return loader

    def _materialise(self) -> None:
        """Run lazy modules once: an optimizer cannot hold parameters without a shape."""
        if any(is_lazy(p) for p in self.model.parameters()) and self.train_loader is not None:
            fed = self.split_batch(batches.to_device(self._first_batch(), self.device))
            with torch.no_grad(), user_code("running the model on a batch"):
                self.model(*fed.args, **fed.kwargs)

    def _build_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        made = self._target.optimizer
        if not any(p.requires_grad for p in self.model.parameters()):
            return ()
        if made is None:
            made = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-3)
        elif not isinstance(made, (torch.optim.Optimizer, list, tuple)):
            with user_code("building the optimizer"):
                made = made(self.model)
        found = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        for optimizer in found:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TargetError(
                    f"build_optimizer(model) returned a {type(optimizer).__name__}, "
                    "not a torch.optim.Optimizer"
                )
        return found

    def _build_schedulers(self) -> tuple[Any, ...]:
        made = self._target.scheduler
        if made is None or not self.optimizers:
            return ()
        if callable(made) and not hasattr(made, "step"):
            with user_code("building the scheduler"):
                made = made(self.optimizers[0])
        return tuple(made) if isinstance(made, (list, tuple)) else (made,)

    def info(self) -> TargetInfo:
        """Say what was handed over, which defaults stand in, and what the gaps disable."""
        return TargetInfo(
            name=self.name,
            path=self._target.path,
            form=self._target.form,
            parts=tuple(self._parts()),
        )

    def _parts(self) -> Iterator[Part]:
        count = sum(p.numel() for p in self.model.parameters() if not is_lazy(p))
        yield self._part("model", f"{type(self.model).__name__}, {count:,} parameters")
        yield self._loader_part(
            "train_loader", self.train_loader, "checks but those of the model alone"
        )
        yield self._loader_part("val_loader", self.val_loader, "checks on validation data")
        if self.train_loader is not None:
            yield Part(name="batch", description=self._settled().description, origin="default")
        yield self._loss_part()
        names = ", ".join(_described_optimizer(o) for o in self.optimizers) or "none"
        yield self._part("optimizer", names, default=self._target.optimizer is None)
        if self.schedulers:
            names = ", ".join(type(s).__name__ for s in self.schedulers)
            yield self._part("scheduler", f"{names}; tiny-subset runs hold the lr constant")
        if self._target.unused:
            yield Part(
                name="own loop",
                description=f"not audited, because as a script {self._target.unused}",
                origin="absent",
                disables=("checks of what only your loop does",),
            )

    def _loss_part(self) -> Part:
        if self._target.training_step is not None:
            return self._part("training_step", "the user's own forward and loss")
        if self._target.loss is not None:
            name = getattr(self.loss, "__name__", type(self.loss).__name__)
            return self._part("loss", name)
        return self._part("loss", f"{DefaultLoss.__doc__.splitlines()[0]}", default=True)  # type: ignore[union-attr]

    def _loader_part(self, name: str, loader: Any, disables: str) -> Part:
        if loader is None:
            return Part(name=name, description="none", origin="absent", disables=(disables,))
        size = getattr(loader, "batch_size", None)
        description = type(loader).__name__ + (f", batch size {size}" if size else "")
        return self._part(name, description)

    def _part(self, name: str, description: str, *, default: bool = False) -> Part:
        return Part(
            name=name,
            description=description,
            origin="default" if default else "user",
            location=self._target.locations.get(name),
        )


class _Generated:
    """A loader written as a generator function: every epoch calls it again."""

    def __init__(self, factory: Callable[[], Iterator[Any]]) -> None:
        self._factory = factory

    def __iter__(self) -> Iterator[Any]:
        return self._factory()


def _undefined(name: str, part: Any) -> str:
    return f"no {name} is defined" if part is None else ""


def _parameters_of(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    if getattr(model, "hf_device_map", None) or _quantised(model):
        return model
    return model.to(device)


def _device_of(batch: Any, default: torch.device) -> torch.device:
    return next((tensor.device for _, tensor in batches.tensors(batch)), default)


def _quantised(model: nn.Module) -> bool:
    return bool(getattr(model, "is_quantized", False))


def _all_in_eval(model: nn.Module) -> bool:
    return not any(module.training for module in model.modules())


def _described_optimizer(optimizer: torch.optim.Optimizer) -> str:
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    return f"{type(optimizer).__name__}, lr {', '.join(f'{rate:g}' for rate in rates)}"
