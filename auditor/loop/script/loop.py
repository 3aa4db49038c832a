"""The loop of an unmodified script: the interface of every loop, on top of a run that is led."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from nnaudit.errors import NnauditError, TargetError, UserCodeError, user_code
from nnaudit.loop.base import Forward, Loop, Needs, Step, seed_everything
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.loop.observer import Observer
from nnaudit.loop.script import describing
from nnaudit.loop.script.channel import (
    Call,
    Close,
    CommandChannel,
    Invoke,
    Launch,
    Resume,
    StepRequest,
)
from nnaudit.loop.script.execution import Execution
from nnaudit.loop.script.frameworks import as_left
from nnaudit.loop.script.mapping import LossRule, Recipe, find, rest
from nnaudit.loop.script.overlay import Overlay
from nnaudit.loop.script.patches import Patches
from nnaudit.loop.script.run import EndedError, Run, Session
from nnaudit.loop.script.substitute import placed, why_not
from nnaudit.report import Location, TargetInfo
from nnaudit.state.process import (
    keep_accelerator_rng,
    keep_numpy_rng,
    keep_python_rng,
    keep_torch_rng,
)
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import metrics_in
from nnaudit.targets.model_inputs import TARGET_NAMES, ModelInputs, device_of
from nnaudit.targets.target import defined_at

T = TypeVar("T")

EPOCH = 100
"""Batches after which an epoch of a script without a loader is held to be over."""


@dataclass(frozen=True)
class Own:
    """In a batch's place: the script draws its own, from random numbers seeded with ``seed``."""

    seed: int


class ScriptLoop(Loop):
    """Drives a script that is paused in its training loop. Lives in the auditor's thread."""

    def __init__(self, run: Run) -> None:
        """``run`` has been taken hold of, and waits in the state before its first step."""
        assert run.roles is not None
        self._run = run
        self._roles = run.roles
        self._session = run.session
        self.name = run.session.path.stem
        self.model = self._roles.model
        self.models = self._roles.models
        self.optimizers = self._roles.optimizers
        self.schedulers = self._roles.schedulers
        self.device = device_of(self.model)
        self.train_loader = _Stream(self) if run.without_loader else run.train_loader
        self.val_loader = run.val_loader
        self.rates_rise = run.rates_rise
        self.planned_epochs = run.planned_epochs
        self.counted_epochs, self.runs_whole = run.span.epochs, run.span.whole
        self._recipe: Recipe | None = self._roles.recipe
        self._rule: LossRule | None = self._roles.loss
        self._trusted = False
        self._moves = True
        self._in_flight: list[str] = []
        self._execution = 0
        self._full_batch = False
        self.metrics = metrics_in(vars(sys.modules["__main__"]))

    @property
    def epoch_per_step(self) -> bool:  # type: ignore[override]
        """Whether the optimizer steps only when the loader has ended."""
        return self.run.ends_epoch

    @property
    def starting(self) -> bool:  # type: ignore[override]
        """Whether the script, having ended, is being executed again up to its training loop."""
        return self.run.starting

    @property
    def steps_taken(self) -> int:  # type: ignore[override]
        """Optimizer steps since the audit began, relaunched runs included."""
        return self._session.count.taken

    @property
    def subjects(self) -> Subjects:
        """Everything a step may change."""
        return self._run.subjects

    def lacks(self, need: Needs) -> str:
        """Return why ``need`` is not offered, or an empty string."""
        free = why_not(self._roles) if self._run.without_loader else ""
        unseen = "" if self._roles.propagates else "no backward() was seen, and so no loss"
        reasons = {
            Needs.TRAIN_LOADER: free,
            Needs.VAL_LOADER: ""
            if self.val_loader is not None
            else "no validation loader was seen",
            Needs.STEPS: free or unseen,
            Needs.OWN_STEPS: unseen,
            Needs.TARGETS: "",
            Needs.OPTIMIZER: "",
            Needs.FRESH_RUN: "",
            Needs.WIDTH: "a script has no width argument that nnaudit knows of",
        }
        if need is Needs.TARGETS:
            return free or self._why_no_targets()
        return reasons[need]

    def _why_no_targets(self) -> str:
        fed = self.split_batch(self._roles.batch)
        tensors = [value for value in fed.inputs if isinstance(value, Tensor)]
        alone = fed.target is None or (bool(tensors) and fed.target is tensors[0])
        return "the batches hold inputs only" if alone else ""

    # --- data -------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """Start one epoch of the script's training loader, beside the script's own."""
        if self._run.without_loader:
            return self._own() if why_not(self._roles) else self._drawn()
        return self._iterate(self.train_loader, "the training loader")

    def val_batches(self) -> Iterator[Any]:
        """Start one pass over the script's validation loader."""
        return self._iterate(self.val_loader, "the validation loader")

    def _iterate(self, loader: Any, name: str) -> Iterator[Any]:
        """Yield ``loader``'s batches, made in the script's thread, as the script would get them."""

        def begin() -> Any:
            with user_code(f"iterating over {name}"):
                return iter(loader)

        def draw() -> Any:
            with as_left(loader), user_code(f"reading a batch from {name}"):
                return next(iterator, _END)

        iterator = self._invoke(begin)
        while (batch := self._invoke(draw)) is not _END:
            yield batch

    def _drawn(self) -> Iterator[Any]:
        """Yield what the script draws by itself, step after step, the steps undone.

        Where two steps use the very same tensors, one batch is the whole epoch.
        """
        if self._moves and not self._full_batch:
            # It is paused between a batch's input and, it may be, its target: with variables that
            # were put back since, they would be those of two batches, which need not fit.
            with suppress(UserCodeError):
                self._draw()
        first: tuple[Call, Any] | None = None
        for count in range(1 if self._full_batch else EPOCH):
            drawn = self._draw()
            if first is None:
                first = drawn
            elif count == 1 and _is_same(first, drawn):
                self._full_batch = True
                return
            yield drawn[1]

    def _draw(self) -> tuple[Call, Any]:
        """Return what the script draws next, and the call that shows it; the step is undone.

        Where the script is in its data is not: else it would draw the same again.
        """
        counters = self._run.counters
        before = dict(counters.values)
        with self._undone():
            listener = Observer(nn.Identity(), losses_only=True)
            order = self._command(StepRequest(None, watch=True, dry=True, observer=listener))
            drawn = self._entry_of(order), self._redrawn(order)
            moved = {k: v for k, v in counters.values.items() if isinstance(v, (int, float))}
        self._moves = any(before.get(key) != value for key, value in moved.items())
        counters.values.update(moved)
        return drawn

    def _own(self) -> Iterator[Any]:
        """Yield what makes the script draw one of its batches, where others cannot take its place.

        Each is from random numbers of its own, and the same whenever a step is taken on it, as far
        as what the script draws depends on them.
        """
        for _ in range(EPOCH):
            yield Own(int(torch.randint(2**31, ())))

    def _given(self, batch: Any) -> Any:
        """Return what is handed to the script for ``batch``: nothing where it draws its own."""
        if isinstance(batch, Own):
            seed_everything(batch.seed)
            return None
        return batch

    def _redrawn(self, order: StepRequest) -> Any:
        """Return the batch that the script used in ``order``, in the form of the first."""
        call = self._entry_of(order)
        everything = (call.args, call.kwargs, [c.arguments.get("target") for c in order.loss_calls])
        shape = self._roles.batch
        names = list(shape) if isinstance(shape, dict) else list(range(len(shape)))
        inputs = [value for value in call.args if isinstance(value, Tensor)]
        made: dict[Any, Any] = {}
        for name in names:
            if isinstance(name, str) and name in call.kwargs:
                made[name] = call.kwargs[name]
            elif name == "target" or (isinstance(name, int) and name >= len(inputs)):
                target = next(t for t in everything[2] if isinstance(t, Tensor))
                made[name] = _shaped(target, shape[name], inputs)
            else:
                made[name] = inputs[int(str(name).removeprefix("input"))]
        cpu = {name: value.detach().cpu() for name, value in made.items()}
        return cpu if isinstance(shape, dict) else tuple(cpu.values())

    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart as the script does: by what was learnt, else by letting it."""
        recipe = None if isinstance(batch, Own) else self._trusted_recipe(batch)
        if recipe is not None:
            try:
                return self._fed_by(recipe, batch)
            except (LookupError, RuntimeError, IndexError):
                pass
        return self._fed_by_script(batch)

    def _trusted_recipe(self, batch: Any) -> Recipe | None:
        """What was learnt from one batch must hold for a second before it is relied on."""
        if self._recipe is None or self._trusted or self._run.without_loader:
            return self._recipe
        if batches.digest(batch) == batches.digest(self._roles.batch):
            return self._recipe
        try:
            call = self._entry_of(self._shadow(batch, None))
            args, kwargs = self._recipe.fill(batch)
        except (LookupError, RuntimeError, NnauditError):
            return None
        given, made = (
            list(batches.tensors((call.args, call.kwargs))),
            list(batches.tensors((args, kwargs))),
        )
        agrees = len(given) == len(made) and all(
            a.shape == b.shape and torch.equal(a.cpu(), b.to(a.dtype).cpu())
            for (_, a), (_, b) in zip(given, made, strict=True)
        )
        self._trusted = agrees
        if not agrees:
            self._recipe = self._rule = None
        return self._recipe

    def _fed_by(self, recipe: Recipe, batch: Any) -> ModelInputs:
        args, kwargs = recipe.fill(batch)
        inputs = [value for _, value in batches.tensors((args, kwargs))]
        return ModelInputs(args, kwargs, self._target_of(batch, recipe, args, kwargs, inputs))

    def _target_of(
        self, batch: Any, recipe: Recipe, args: Any, kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        take = (self._rule.others or {}).get("target") if self._rule is not None else None
        if take is not None:
            rows = take.rows()
            value = rows.of(batch)
            return recipe.same_as(rows, args, kwargs, value)
        named = _named_target(self.model, args, kwargs)
        if named is not None:
            return named
        left = rest(batch, recipe.paths())
        return left if left is not None else (inputs[0] if inputs else None)

    def _fed_by_script(self, batch: Any) -> ModelInputs:
        order = self._shadow(batch, None)
        call = self._entry_of(order)
        device = next((t.device for _, t in batches.tensors(batch)), self.device)
        args, kwargs = batches.to_device((call.args, call.kwargs), device)
        target = _named_target(self.model, args, kwargs)
        main = self._main_loss(order)
        if target is None and main is not None and isinstance(main.arguments.get("target"), Tensor):
            target = main.target.to(device)
            for value in (*args, *kwargs.values()):
                if (
                    isinstance(value, Tensor)
                    and value.shape == target.shape
                    and torch.equal(value, target)
                ):
                    target = value
        if target is None:
            used = {
                take.path
                for _, value in batches.tensors((args, kwargs))
                if (take := find(value, batch)) is not None
            }
            left = rest(batch, used) if used else _last_part(batch)
            target = left if left is not None else args[0] if args else None
        return ModelInputs(args, kwargs, target)

    # --- steps ------------------------------------------------------------------------------------

    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        """Let the script do one round of its own loop on ``batch``.

        Where one optimizer step takes several batches (accumulation), all of them are ``batch``.
        """
        self.prepare(batch)
        order = StepRequest(self._given(batch))
        if observe or losses:
            order.observer = Observer(self.model, self.optimizers, losses_only=not observe)
            order.watch = self._roles.entry is not self._roles.exit
        self._command(order)
        self._session.count.taken += 1
        loss = self._loss_of(order)
        if order.observation is not None:
            order.observation.total_loss = loss
            if order.calls and order.observation.output is None:
                leave = self._exit_of(order)
                order.observation.output = leave.output if leave is not None else None
        return Step(
            loss,
            order.lr or self._run.rates(),
            order.ended - order.started,
            order.observation,
            max(order.handed, 1),
        )

    def next_epoch(self, batch: Any) -> Step | None:
        """Let the script's epoch end, validation and all, and observe the first step of the next.

        None for a script that has only one, that ends or fails in between (validation is cut short,
        which not all code expects), or whose loop a framework counts.
        """
        if not self._run.has_epochs:
            return None
        before = self._run.reruns
        order = StepRequest(batch, Observer(self.model, self.optimizers), ends_epoch=True)
        try:
            self._command(order)
        except UserCodeError:
            return None
        self._session.count.taken += 1
        if self._run.reruns != before:
            return None
        return Step(self._loss_of(order), order.lr, order.ended - order.started, order.observation)

    def prepare(self, batch: Any) -> None:
        """Get the batches that a script looking ahead has already drawn out of the way."""
        # One that is paused where it calls its network has drawn the batch that it calls it with.
        lookahead = 1 if isinstance(batch, Own) else self._roles.lookahead
        if not lookahead:
            return
        digest = batches.digest(batch)
        if self._execution != self._run.reruns:
            self._execution, self._in_flight = self._run.reruns, []
        while len(self._in_flight) < lookahead or set(self._in_flight) != {digest}:
            with preserved(self.subjects):
                self._command(StepRequest(self._given(batch)))
            self._in_flight = [*self._in_flight, digest][-lookahead:]

    def _loss_of(self, order: StepRequest) -> float:
        if not order.roots:
            return float("nan")
        # Of several batches all alike, the first is the one that nothing has gone before.
        each = max(len(order.roots) // max(order.handed, 1), 1)
        if each == 1:
            return float(order.roots[0].detach()) * self._roles.divisor
        roots = [root.detach().float().reshape(()) for root in order.roots[:each]]
        # Together, for every number read from a device costs a wait.
        return float(torch.stack(roots).sum()) * self._roles.divisor

    def forward(self, batch: Any, *, train: bool = False) -> Forward:
        """Run the model, and the loss, without gradient or update.

        As the script did where that is known to be only a call of each; else by a step of the
        script's that is undone.
        """
        recipe = None if isinstance(batch, Own) else self._trusted_recipe(batch)
        if recipe is None or self._rule is None or self._roles.entry is None:
            return self._forward_by_script(batch, train)
        return self._direct(batch, recipe, self._rule, self._roles.entry, train)

    def _direct(
        self, batch: Any, recipe: Recipe, rule: LossRule, entry: Call, train: bool
    ) -> Forward:
        modes = {module: module.training for module in self.model.modules()}
        observer = Observer(nn.Identity(), losses_only=True)

        def compute() -> tuple[Any, Tensor]:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for kind, enabled, dtype in entry.autocast:
                    if enabled:
                        stack.enter_context(torch.autocast(kind, dtype))
                stack.enter_context(self._mirrored())
                stack.enter_context(observer)
                stack.enter_context(user_code("running the model on a batch"))
                made = recipe.fill(batches.clone(batch))
                args, kwargs = placed(made, (entry.args, entry.kwargs), self.device)
                output = entry.module(*args, **kwargs)
                return output, self._loss_at(rule, output, batch, observer.observation.loss_calls)

        self._stack_of_auditor = _modes()
        self.model.train(train)
        try:
            output, loss = self._invoke(compute)
        finally:
            for module, mode in modes.items():
                module.training = mode
        calls = tuple(observer.observation.loss_calls)
        return Forward(batches.detached(output), float(loss), calls)

    def _loss_at(self, rule: LossRule, output: Any, batch: Any, inner: list[LossCall]) -> Tensor:
        """The loss of ``output``; one that the model computed on the way need not be again."""
        for call in inner:
            if (
                rule.call is not None
                and call.function is rule.call.function
                and call.value is not None
            ):
                return call.value
        return rule.loss(output, batch)

    @contextmanager
    def _mirrored(self) -> Iterator[None]:
        with ExitStack() as stack:
            for mode in self._stack_of_auditor:
                stack.enter_context(mode)
            yield

    def _forward_by_script(self, batch: Any, train: bool) -> Forward:
        order = self._shadow(batch, train)
        call = self._exit_of(order)
        return Forward(
            call.output if call is not None else None, self._loss_of(order), order.loss_calls
        )

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo what a step did, except that random numbers go on, as after any forward pass."""
        after: list[Callable[[], object]] = []
        with preserved(self.subjects):
            yield
            after = [keep() for keep in _GENERATORS]
        for undo in after:
            undo()

    def _shadow(self, batch: Any, train: bool | None) -> StepRequest:
        """Do a step on ``batch`` and undo it: what it showed is wanted, not what it did."""
        self.prepare(batch)
        with preserved(self.subjects) if train is None else self._undone():
            if train is not None:
                self.model.train(train)
            listener, given = Observer(nn.Identity(), losses_only=True), self._given(batch)
            order = StepRequest(given, observer=listener, watch=True, dry=True, train=train)
            self._command(order)
        return order

    def _calls_of(self, order: StepRequest) -> list[Call]:
        mine = {id(p) for p in self.model.parameters()}
        calls = [c for c in order.calls if any(id(p) in mine for p in c.module.parameters())]
        return [call for call in calls if call.grad] or calls

    def _entry_of(self, order: StepRequest) -> Call:
        calls = self._calls_of(order)
        if not calls:
            name = type(self.model).__name__
            raise EndedError(f"the script has gone on to something in which {name} is not called")
        return calls[0]

    def _exit_of(self, order: StepRequest) -> Call | None:
        """The last call of the module whose output the script compares with the target."""
        calls = self._calls_of(order)
        leave = self._roles.exit
        of_it = [
            c for c in calls if leave is not None and self._run.is_same(c.module, leave.module)
        ]
        found = of_it or calls
        return found[-1] if found else None

    def _main_loss(self, order: StepRequest) -> LossCall | None:
        seen = Observation(loss_calls=list(order.loss_calls), total_loss=self._loss_of(order))
        return seen.main_loss

    # --- the script's thread ----------------------------------------------------------------------

    def _command(self, order: StepRequest) -> StepRequest:
        self._must_be_innermost()
        order.modes = _modes()
        done: StepRequest = self._session.commands.ask(Resume(order))
        return done

    def _invoke(self, function: Callable[[], T]) -> T:
        result: T = self._session.commands.ask(Invoke(function))
        return result

    def _must_be_innermost(self) -> None:
        runs = self._session.runs
        if runs and runs[-1] is not self._run:
            raise RuntimeError(
                "a run that was relaunched later is still open: a script's runs lie on top of one "
                "another, and only the last can take steps"
            )

    def relaunched(self, seed: int, *, width: float = 1.0) -> AbstractContextManager[Loop]:
        """Execute the script anew, on top of this paused run, up to its training loop.

        Runs can be stepped only in the reverse order of their opening: see
        :meth:`_must_be_innermost`.
        """
        return self._relaunch(seed)

    @contextmanager
    def _relaunch(self, seed: int) -> Iterator[Loop]:
        commands = self._session.commands
        with preserved(self.subjects):
            run: Run = commands.ask(Launch(Execution(self._session, seed)))
            try:
                yield ScriptLoop(run)
            finally:
                commands.ask(Close())

    # --- telling ----------------------------------------------------------------------------------

    def info(self) -> TargetInfo:
        """Say what was captured, and what each missing piece disables."""
        return describing.info(self, self._run)

    def locate(self, thing: Any) -> Location | None:
        """Return the user's line that made ``thing``; parts by name, objects by themselves."""
        run, roles = self._run, self._roles
        if isinstance(thing, str):
            lines: dict[str, Location | None] = {
                "model": self._made(self.model),
                "train_loader": run.training_at
                if run.without_loader
                else self._made(self.train_loader),
                "val_loader": self._made(self.val_loader),
                "optimizer": self._made(roles.optimizer),
                "scheduler": self._made(next(iter(self.schedulers), None)),
                "loss": roles.main_loss.location
                if roles.main_loss is not None
                else roles.backward_at,
                "training_step": roles.backward_at or run.training_at,
            }
            return lines.get(thing)
        return self._made(thing) or defined_at(thing)

    def _made(self, thing: Any) -> Location | None:
        place = self._run.registers.place
        within = getattr(thing, "base_dataloader", None)
        return None if thing is None else place(within) or place(thing)

    @property
    def run(self) -> Run:
        """The run that is led."""
        return self._run


_END = object()
_GENERATORS = (keep_python_rng, keep_numpy_rng, keep_torch_rng, keep_accelerator_rng)


class _Stream:
    """Stands for the training loader of a script that has none: iterating lets the script draw.

    Attributes:
        endless: rows may come again before the iteration ends.
    """

    endless = True

    def __init__(self, loop: ScriptLoop) -> None:
        self._loop = loop

    def __iter__(self) -> Iterator[Any]:
        return self._loop.batches()


def _shaped(target: Tensor, like: Tensor, inputs: list[Tensor]) -> Tensor:
    """Return ``target`` in the form that the first batch's has, ``like``: of its input, if so."""
    if target.numel() == like.numel():
        return target.reshape(like.shape)
    first = next((each for each in inputs if each.numel() == target.numel()), None)
    return target.reshape(first.shape) if first is not None and like.ndim > target.ndim else target


def _is_same(a: tuple[Call, Any], b: tuple[Call, Any]) -> bool:
    """Whether two calls were given the very same tensors, and the same batch with them.

    The same place in memory: what is drawn or copied anew has another, for ``a`` is still held.
    """
    pairs = [(each.data_ptr(), each.shape, each.stride()) for each in a[0].given]
    again = [(each.data_ptr(), each.shape, each.stride()) for each in b[0].given]
    return bool(pairs) and pairs == again and batches.digest(a[1]) == batches.digest(b[1])


def _modes() -> tuple[Any, ...]:
    """The function modes of the calling thread, which act in no other by themselves."""
    overrides: Any = torch.overrides
    stack = overrides._get_current_function_mode_stack()
    return tuple(mode for mode in stack if not isinstance(mode, DeviceContext))


def _last_part(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    if isinstance(batch, dict):
        return next((batch[name] for name in TARGET_NAMES if name in batch), None)
    return None


def _named_target(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that is a target by its name, where a model takes its own."""
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        names = []
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return next((given[n] for n in TARGET_NAMES if isinstance(given.get(n), Tensor)), None)


def run_script(
    path: Path,
    argv: list[str],
    device: str,
    seed: int,
    body: Callable[[ScriptLoop], T],
    *,
    objects: bool = False,
    loop: int | None = None,
) -> T:
    """Run the script at ``path`` in the calling thread, and ``body`` on its loop in another.

    Must be called in the main thread: scripts install signal handlers, which works there only.
    ``argv`` are the script's own arguments. With ``objects`` the file is no script: it hands over
    an object of a framework, whose own loop is run. ``loop`` says which of the script's training
    loops to audit, from 1. Returns what ``body`` returns.

    Raises:
        TargetError: there is no such script, or it never trains, or in fewer loops.
        UserCodeError: it crashed before its first optimizer step.
        Exception: whatever ``body`` raised.
    """
    path = path.absolute()
    if not path.is_file():
        raise TargetError(f"{path}: no such file")
    outcome: list[tuple[Any, BaseException | None]] = []
    threads: list[threading.Thread] = []
    commands = CommandChannel()

    def audit(run: Run, intra: int) -> None:
        torch.set_num_threads(intra)
        try:
            outcome.append((body(ScriptLoop(run)), None))
        except BaseException as error:
            outcome.append((None, error))
        # The run itself, and whatever was relaunched and left open.
        for _ in session.runs:
            commands.tell(Close())

    def start(run: Run) -> None:
        thread = threading.Thread(
            target=audit, args=(run, torch.get_num_threads()), name="nnaudit", daemon=True
        )
        threads.append(thread)
        thread.start()

    with ExitStack() as stack:
        stack.enter_context(preserved(Subjects()))
        stack.enter_context(on_device(device))
        taps = stack.enter_context(Patches())
        # An audit is too short to compile for: what torch.compile made runs as it was written.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        overlay = stack.enter_context(Overlay((Path.cwd(), path.parent)))
        session = Session(
            path,
            argv,
            seed,
            taps,
            overlay,
            commands,
            start,
            device=device,
            objects=objects,
            loop=loop,
        )
        try:
            Execution(session, seed).execute()
        except BaseException as error:
            if threads:
                # The auditor waits for an answer that will not come.
                commands.answer(None, error)
            raise
        finally:
            for thread in threads:
                thread.join(timeout=10)
            commands.over = True
    value, failure = outcome[0]
    if failure is not None:
        raise failure
    result: T = value
    return result


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Hide the accelerators from a script that is to run on the CPU."""
    hidden, cuda = "CUDA_VISIBLE_DEVICES", cast(Any, torch.cuda)
    if name != "cpu" or cuda.is_initialized():
        yield
        return
    before = os.environ.get(hidden)
    os.environ[hidden] = ""
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(hidden, None)
        else:
            os.environ[hidden] = before
