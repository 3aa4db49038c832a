"""Taking a batch apart as a script does: what it calls its model with, and the target."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.errors import NnauditError
from nnaudit.loop.script.mapping import LossRule, Recipe, find, rest
from nnaudit.loop.script.steps import Own, ScriptSteps
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import TARGET_NAMES, ModelInputs, device_of


class BatchSplitter:
    """Takes batches apart by what was learnt from the first one, else by letting the script do it.

    Attributes:
        recipe: how a batch becomes the model's arguments; None where it is not known.
        rule: how a batch becomes the loss; None where it is not known.
    """

    def __init__(self, steps: ScriptSteps) -> None:
        """``steps`` are taken where nothing is known."""
        self._steps = steps
        self.recipe: Recipe | None = steps.roles.recipe
        self.rule: LossRule | None = steps.roles.loss
        self._trusted = False

    def split_batch(self, batch: Any) -> ModelInputs:
        """Take ``batch`` apart as the script does: by what was learnt, else by letting it."""
        if isinstance(batch, Own) and batch.fed is not None:
            return batch.fed
        recipe = None if isinstance(batch, Own) else self.trusted_recipe(batch)
        if recipe is not None:
            try:
                return self._fed_by(recipe, batch)
            except (LookupError, RuntimeError, IndexError):
                pass
        return self._fed_by_script(batch)

    def trusted_recipe(self, batch: Any) -> Recipe | None:
        """What was learnt from one batch must hold for a second before it is relied on."""
        if self.recipe is None or self._trusted or self._steps.run.without_loader:
            return self.recipe
        if batches.digest(batch) == batches.digest(self._steps.roles.batch):
            return self.recipe
        try:
            call = self._steps.entry_of(self._steps.undone_step(batch, None))
            args, kwargs = self.recipe.fill(batch)
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
            self.recipe = self.rule = None
        return self.recipe

    def _fed_by(self, recipe: Recipe, batch: Any) -> ModelInputs:
        args, kwargs = recipe.fill(batch)
        inputs = [value for _, value in batches.tensors((args, kwargs))]
        return ModelInputs(args, kwargs, self._target_of(batch, recipe, args, kwargs, inputs))

    def _target_of(
        self, batch: Any, recipe: Recipe, args: Any, kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        take = (self.rule.others or {}).get("target") if self.rule is not None else None
        if take is not None:
            rows = take.rows()
            value = rows.of(batch)
            return recipe.same_as(rows, args, kwargs, value)
        named = _named_target(self._steps.model, args, kwargs)
        if named is not None:
            return named
        left = rest(batch, recipe.paths())
        return left if left is not None else (inputs[0] if inputs else None)

    def _fed_by_script(self, batch: Any) -> ModelInputs:
        order = self._steps.undone_step(batch, None)
        call = self._steps.entry_of(order)
        device = next((t.device for _, t in batches.tensors(batch)), device_of(self._steps.model))
        args, kwargs = batches.to_device((call.args, call.kwargs), device)
        target = _named_target(self._steps.model, args, kwargs)
        main = self._steps.main_loss(order)
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
