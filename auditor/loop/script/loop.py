"""The loop of an unmodified script: the interface of every loop, on top of a run that is led."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import Forward, Loop, Needs, Step
from nnaudit.loop.batch_target import inputs_and_target
from nnaudit.loop.losses import LossCall
from nnaudit.loop.observer import Observer
from nnaudit.loop.script import describing
from nnaudit.loop.script.channel import Call, Close, Launch, StepRequest
from nnaudit.loop.script.evaluation import EvaluatedBatches
from nnaudit.loop.script.execution import Execution
from nnaudit.loop.script.frameworks import as_left
from nnaudit.loop.script.mapping import LossRule, Recipe
from nnaudit.loop.script.naming import named_values
from nnaudit.loop.script.own_batches import OwnBatches
from nnaudit.loop.script.run import Run
from nnaudit.loop.script.splitting import BatchSplitter
from nnaudit.loop.script.steps import Own, ScriptSteps, function_modes
from nnaudit.loop.script.substitute import placed, why_not
from nnaudit.loop.script.validation import find_validation
from nnaudit.report import Location, TargetInfo
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import Metric, library_metrics, metrics_in
from nnaudit.targets.model_inputs import ModelInputs, device_of
from nnaudit.targets.target import defined_at

_NO_LOADER = "the script draws its batches itself: there is no loader, and no epoch of one"

_NOT_AGAIN = (
    "the script draws its batches itself, and none of them a second time from the same random "
    "numbers"
)


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
        self.makes_batches = run.without_loader
        self.rates_rise = run.rates_rise
        self.planned_epochs = run.planned_epochs
        self.counted_epochs, self.runs_whole = run.span.epochs, run.span.whole
        self.counted_batches = run.span.batches if run.without_loader else 0
        self._steps = ScriptSteps(run)
        self._has_ended_epoch = False
        self._splitter = BatchSplitter(self._steps)
        self._own_batches = OwnBatches(self._steps)
        self.metrics = metrics_in(run.variables) or self._steps.invoke(self._library_metrics)

    def _library_metrics(self) -> tuple[Metric, ...]:
        return library_metrics([*named_values(), *self.model.named_modules()])

    @property
    def val_loader(self) -> Any:
        """What the script validates with: a loader, batches of its own, or None."""
        if not self._run.validation_known:
            self._run.validation_known = True
            find_validation(self._run, self._steps)
        return self._run.val_loader

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

    def bounded(self, allow: Callable[[], None]) -> AbstractContextManager[None]:
        """Call ``allow`` before each of the script's steps for the time of a ``with``."""
        return self._session.count.bounded(allow)

    @property
    def subjects(self) -> Subjects:
        """Everything a step may change."""
        return self._run.subjects

    def lacks(self, need: Needs) -> str:
        """Return why ``need`` is not offered, or an empty string."""
        free = self._why_own
        unseen = "" if self._roles.propagates else "no backward() was seen, and so no loss"
        reasons = {
            Needs.TRAIN_LOADER: free and _NO_LOADER,
            Needs.ITEMS: _NO_LOADER if self._run.without_loader else "",
            Needs.OWN_BATCHES: "",
            Needs.STEPS: free or unseen,
            Needs.OWN_STEPS: unseen,
            Needs.UPDATES: "",
            Needs.TARGETS: "",
            Needs.OPTIMIZER: "",
            Needs.FRESH_RUN: "",
            Needs.WIDTH: "a script has no width argument that nnaudit knows of",
        }
        if need is Needs.VAL_LOADER:  # looked for only when asked: it takes steps
            return "" if self.val_loader is not None else "no validation loader was seen"
        if need is Needs.TARGETS:
            return free or self._why_no_targets
        if need is Needs.SAME_BATCH:
            return "" if not free or self._own_batches.repeats else _NOT_AGAIN
        return reasons[need]

    @property
    def _why_own(self) -> str:
        """Why the script's batches can only be its own; empty where others can be put there."""
        return why_not(self._roles) if self._run.without_loader else ""

    @cached_property
    def _why_no_targets(self) -> str:
        fed = inputs_and_target(self, self._roles.batch)
        tensors = [value for value in fed.inputs if isinstance(value, Tensor)]
        alone = fed.target is None or (bool(tensors) and fed.target is tensors[0])
        return "the batches hold inputs only" if alone else ""

    # --- data -------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """Start one epoch of the script's training loader, beside the script's own."""
        if self._run.without_loader:
            return self._own_batches.seeded() if self._why_own else self._own_batches.drawn()
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

        iterator = self._steps.invoke(begin)
        while (batch := self._steps.invoke(draw)) is not _END:
            yield batch

    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart as the script does: by what was learnt, else by letting it."""
        return self._splitter.split_batch(batch)

    def validation_modes(self) -> dict[str, bool]:
        """Return, by module name, which were in train mode when the script validated."""
        if self.lacks(Needs.VAL_LOADER):  # which looks for it
            return {}
        modes = self._run.evaluated.modes
        named = self.model.named_modules()
        return {name: modes[module] for name, module in named if module in modes}

    # --- steps ------------------------------------------------------------------------------------

    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        """Let the script do one round of its own loop on ``batch``.

        Where one optimizer step takes several batches (accumulation), all of them are ``batch``.
        """
        self.prepare(batch)
        order = StepRequest(self._steps.given(batch))
        if observe or losses:
            order.observer = Observer(self.model, self.optimizers, losses_only=not observe)
            order.watch = self._roles.entry is not self._roles.exit
        self._steps.command(order)
        self._session.count.taken += 1
        loss = self._steps.loss_of(order)
        if order.observation is not None:
            order.observation.total_loss = loss
            if order.calls and order.observation.output is None:
                leave = self._steps.exit_of(order)
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

        None for a script that has only one, that fails in between, or whose loop a framework
        counts. One that ends there has come to its last epoch: it is executed again, and in its
        first epoch now.
        """
        if not self._run.has_epochs:
            return None
        executions = self._run.reruns
        found = self._end_epoch(batch)
        several = self._run.span.epochs > 1 or self._has_ended_epoch
        if found is None and self._run.reruns != executions and several:
            found = self._end_epoch(batch)
        self._has_ended_epoch |= found is not None
        return found

    def _end_epoch(self, batch: Any) -> Step | None:
        """Return the first step of the next epoch; None where this was the last."""
        before = self._run.reruns, self._session.validates_whole
        order = StepRequest(batch, Observer(self.model, self.optimizers), ends_epoch=True)
        try:
            self._steps.command(order)
        except UserCodeError:
            return None
        self._session.count.taken += 1
        if self._run.reruns != before[0] and self._session.validates_whole == before[1]:
            return None  # its last epoch
        return Step(
            self._steps.loss_of(order), order.lr, order.ended - order.started, order.observation
        )

    def prepare(self, batch: Any) -> None:
        """Get the batches that a script looking ahead has already drawn out of the way."""
        self._steps.prepare(batch)

    def forward(self, batch: Any, *, train: bool = False) -> Forward:
        """Run the model, and the loss, without gradient or update.

        As the script did where that is known to be only a call of each; else by a step of the
        script's that is undone.
        """
        recipe = None if isinstance(batch, Own) else self._splitter.trusted_recipe(batch)
        if recipe is None or self._splitter.rule is None or self._roles.entry is None:
            return self._forward_by_script(batch, train)
        return self._direct(batch, recipe, self._splitter.rule, self._roles.entry, train)

    def _direct(
        self, batch: Any, recipe: Recipe, rule: LossRule, entry: Call, train: bool
    ) -> Forward:
        modes = {module: module.training for module in self.model.modules()}
        observer = Observer(nn.Identity(), losses_only=True)
        ours = function_modes()

        def compute() -> tuple[Any, Tensor]:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for kind, enabled, dtype in entry.autocast:
                    if enabled:
                        stack.enter_context(torch.autocast(kind, dtype))
                for mode in ours:
                    stack.enter_context(mode)
                stack.enter_context(observer)
                stack.enter_context(user_code("running the model on a batch"))
                made = recipe.fill(batches.clone(batch))
                args, kwargs = placed(made, (entry.args, entry.kwargs), self.device)
                output = entry.module(*args, **kwargs)
                return output, self._loss_at(rule, output, batch, observer.observation.loss_calls)

        self.model.train(train)
        try:
            output, loss = self._steps.invoke(compute)
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

    def _forward_by_script(self, batch: Any, train: bool) -> Forward:
        order = self._steps.undone_step(batch, train)
        call = self._steps.exit_of(order)
        return Forward(
            call.output if call is not None else None, self._steps.loss_of(order), order.loss_calls
        )

    # --- the script's thread ----------------------------------------------------------------------

    def relaunched(
        self, seed: int, *, width: float = 1.0, keeps_files: bool = False
    ) -> AbstractContextManager[Loop]:
        """Execute the script anew, on top of this paused run, up to its training loop.

        Runs can be stepped only in the reverse order of their opening: see
        :meth:`ScriptSteps.command`.
        """
        return self._relaunch(seed, keeps_files=keeps_files)

    @contextmanager
    def _relaunch(self, seed: int, *, keeps_files: bool) -> Iterator[Loop]:
        commands = self._session.commands
        self._session.count.allow()
        with preserved(self.subjects):
            run: Run = commands.ask(Launch(Execution(self._session, seed, keeps_files=keeps_files)))
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
        if isinstance(thing, EvaluatedBatches):
            return thing.location
        within = getattr(thing, "base_dataloader", None)
        return None if thing is None else place(within) or place(thing)

    @property
    def run(self) -> Run:
        """The run that is led."""
        return self._run


_END = object()


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
