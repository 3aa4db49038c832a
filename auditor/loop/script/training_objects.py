"""Who is who in a script: told by what it made, and did until its first optimizer step."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnaudit.loop.losses import LossCall
from nnaudit.loop.script.channel import Call
from nnaudit.loop.script.mapping import LossRule, Recipe, find, loss_rule, recipe
from nnaudit.loop.script.origins import Register
from nnaudit.loop.total_loss import call_worth, is_total
from nnaudit.report import Location
from nnaudit.state.parts import GENERATORS
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.model_inputs import own_loss

KINDS = ("module", "optimizer", "scheduler", "scaler", "loader")

_ROOM = 64 * 2**20
"""Bytes of tensors that a script's own helper may hold and still be restored along."""


class Registers:
    """Everything a script made, by kind."""

    def __init__(self) -> None:
        self.of = {kind: Register() for kind in KINDS}

    def place(self, thing: Any) -> Location | None:
        """Return where ``thing`` was made."""
        return next((p for r in self.of.values() if (p := r.place(thing)) is not None), None)

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that are part of no other."""
        alive: list[nn.Module] = [m for m in self.of["module"].alive() if _is_built(m)]
        inner = {id(child) for module in alive for child in _descendants(module)}
        return tuple(module for module in alive if id(module) not in inner)

    @property
    def empty(self) -> bool:
        """Nothing has been made yet but losses: the script is still setting things up."""
        made = any(len(register) for kind, register in self.of.items() if kind != "module")
        modules = (m for m in self.of["module"].alive() if _is_built(m))
        return not made and not any(p is not None for m in modules for p in m._parameters.values())


def _is_built(module: nn.Module) -> bool:
    return "_modules" in vars(module)


def _descendants(module: nn.Module) -> Iterable[nn.Module]:
    todo = list(module._modules.values())
    seen = set()
    while todo:
        child = todo.pop()
        if child is not None and id(child) not in seen and child is not module:
            seen.add(id(child))
            yield child
            todo += child._modules.values() if _is_built(child) else ()


@dataclass
class Propagated:
    """One backward pass: its root's value, before a gradient scaler, and the user's line."""

    value: Tensor
    location: Location | None


@dataclass
class StepLog:
    """What happened between a batch request and the optimizer step that came of it.

    ``used`` of what was ``propagated`` has gone into a step; the rest may yet be set to zero.
    ``within_backward`` says that an optimizer steps while gradients are computed.
    """

    calls: list[Call] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    propagated: list[Propagated] = field(default_factory=list)
    used: int = 0
    backwards: int = 0
    within_backward: bool = False
    loss_calls: list[LossCall] = field(default_factory=list)
    stepped: list[Optimizer] = field(default_factory=list)
    recent: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=8))
    asked: list[int] = field(default_factory=list)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile``'s, DataParallel's and accelerate's wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


@dataclass
class TrainingObjects:
    """The parts that a script's objects play.

    Attributes:
        model: the network under audit; ``models`` are all outermost modules, ``model`` first.
        optimizer: the one that holds the most of ``model``.
        stepped: the optimizers that stepped in the first round.
        entry, exit: the first and the last call of ``model`` (or of a part of it) in the step;
            the same one where the script calls ``model`` itself.
        main_loss: the loss call that was back-propagated; None where there is none such.
        divisor: by how much the loss was divided before it was back-propagated.
        per_step: batches that one optimizer step takes.
        lookahead: how many batches the script looks ahead.
        recipe, loss: how a batch becomes the model's arguments and the loss; None where unknown.
        backward_at: the user's line that calls backward(); None where a framework does.
        propagates: backward() was called.
        steps_within_backward: hooks on gradients step the optimizers, as gradients come.
    """

    model: nn.Module
    models: tuple[nn.Module, ...]
    optimizer: Optimizer
    optimizers: tuple[Optimizer, ...]
    stepped: tuple[Optimizer, ...]
    schedulers: tuple[Any, ...]
    scalers: tuple[Any, ...]
    helpers: tuple[Any, ...]
    entry: Call | None
    exit: Call | None
    main_loss: LossCall | None
    divisor: int
    per_step: int
    lookahead: int
    batch: Any
    recipe: Recipe | None
    loss: LossRule | None
    backward_at: Location | None
    propagates: bool
    steps_within_backward: bool
    loss_value: float


def find_training_objects(
    registers: Registers,
    log: StepLog,
    loader: int,
    *,
    without_loader: bool,
    past: Collection[Optimizer] = (),
) -> TrainingObjects:
    """Settle who is who.

    ``loader`` is the number of the training loader's iterator; ``without_loader`` says that the
    script draws its batches itself; ``past`` are optimizers of an earlier training, which are left
    out with their schedulers unless they have stepped in this one.

    Raises:
        LookupError: no network was called before the optimizer's step.
    """
    owned = [{id(p) for g in o.param_groups for p in g["params"]} for o in _unique(log.stepped)]
    roots = registers.modules()
    model, calls = _main_model(log.calls, roots, max(owned, key=len))
    mine = {id(p) for p in model.parameters()}
    optimizer = max(
        _unique(log.stepped),
        key=lambda o: sum(p.numel() for g in o.param_groups for p in g["params"] if id(p) in mine),
    )
    requests = max(log.asked.count(loader), 1)
    entry, leave = _ends(calls, log, requests)
    main, divisor, own, value = _main_loss(log, leave, requests)
    lookahead, batch = _used(entry, calls, loader)
    if without_loader:
        lookahead, batch = 0, (_virtual(entry, main) if entry is not None else None)
    whole = entry is not None and entry is leave
    how = None
    if whole and batch is not None and entry is not None:
        how = recipe(entry.args, entry.kwargs, batch, fix=without_loader, times=requests)
    rule = None
    if whole and leave is not None and batch is not None:
        rule = LossRule(None, own=True) if own else loss_rule(main, leave.output, batch)
    schedulers = registers.of["scheduler"].alive()
    over = [o for o in past if o not in log.stepped]
    present = [o for o in registers.of["optimizer"].alive() if o not in over]
    inside = {id(m) for m in model.modules()}
    others = tuple(m for r in roots if id(m := unwrapped(r)) not in inside)
    return TrainingObjects(
        model=model,
        models=(model, *others),
        optimizer=optimizer,
        optimizers=_unique([optimizer, *present, *log.stepped]),
        stepped=_unique(log.stepped),
        schedulers=tuple(
            each for each in schedulers if getattr(each, "optimizer", None) not in over
        ),
        scalers=tuple(registers.of["scaler"].alive()),
        helpers=helpers(),
        entry=entry,
        exit=leave,
        main_loss=main,
        divisor=divisor,
        per_step=max(requests - lookahead, 1),
        lookahead=lookahead,
        batch=batch,
        recipe=how,
        loss=rule,
        backward_at=log.propagated[0].location if log.propagated else None,
        propagates=bool(log.propagated),
        steps_within_backward=log.within_backward,
        loss_value=value,
    )


def _unique(things: Iterable[Any]) -> tuple[Any, ...]:
    return tuple({id(thing): thing for thing in things}.values())


class Ensemble(nn.Module):
    """The networks that a script calls one by one, as one: for its parts, not to be called."""


def _main_model(
    calls: list[Call], roots: tuple[nn.Module, ...], owned: set[int]
) -> tuple[nn.Module, list[Call]]:
    """The module that holds what the main optimizer trains, and its calls.

    Where a script calls the parts of a network one by one, the network is the module that holds
    them all, and the calls are those of the parts.
    """

    def weight(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if id(p) in owned)

    if not any(weight(call.module) for call in calls):
        # An optimizer of copies, or of a network that has been replaced: which is to be found.
        owned = {id(p) for call in calls for p in call.module.parameters() if p.requires_grad}
    called = [call for call in calls if weight(call.module)]
    if not called:
        raise LookupError
    best = max(called, key=lambda call: weight(call.module)).module
    parts = _unique(call.module for call in called)
    if len(parts) == 1 or weight(best) == sum(
        p.numel() for p in _parameters(parts) if id(p) in owned
    ):
        return unwrapped(best), [call for call in called if call.module is best]
    for root in roots:
        inside = {id(m) for m in root.modules()}
        if all(id(part) in inside for part in parts):
            return unwrapped(root), called
    whole = Ensemble()
    names = _names()
    for i, part in enumerate(parts):
        name = names.get(id(part), f"{type(part).__name__.lower()}{i}")
        whole.add_module(name if name not in whole._modules else f"{name}{i}", unwrapped(part))
    return whole, called


def _parameters(modules: Iterable[nn.Module]) -> tuple[Tensor, ...]:
    return _unique(p for module in modules for p in module.parameters())


def settle_rates(optimizers: Iterable[Optimizer], seen: dict[int, list[list[float]]]) -> bool:
    """Write the highest rate of a schedule that the script makes by hand where torch's would be.

    Schedulers keep what an optimizer was made with in the group's ``initial_lr``; a script that
    assigns ``group["lr"]`` before every step does not, and a warm-up's first rate says nothing.
    ``seen`` are the rates of the groups when an optimizer was made, before the loop, and at its
    first steps. Returns whether a rate rises from step to step, and above what the optimizer was
    made with: then its height is not known.
    """
    rises = False
    for optimizer in optimizers:
        rates = seen.get(id(optimizer), [])
        for i, group in enumerate(optimizer.param_groups):
            made, *later = [each[i] for each in rates if i < len(each)] or [0.0]
            if "initial_lr" not in group and len(set(later)) > 1:
                group["initial_lr"] = max(made, *later)
                rises |= later[-1] > max(made, later[0])
    return rises


def _names() -> dict[int, str]:
    """The names of the script's variables by the id of what they hold."""
    names: dict[int, str] = {}
    for frame in callstack.user_frames():
        for name, value in {**frame.f_globals, **frame.f_locals}.items():
            if isinstance(value, nn.Module) and name.isidentifier():
                names.setdefault(id(value), name)
    return names


def _ends(calls: list[Call], log: StepLog, requests: int) -> tuple[Call | None, Call | None]:
    """The first and the last of the ``calls`` that make one forward pass."""
    if not calls:
        return None, None
    if len({id(call.module) for call in calls}) > 1:
        return calls[0], _compared(calls, log.loss_calls) or calls[-1]
    # Called as often as there were batches or backward passes: once for each.
    count = log.counts.get(id(calls[0].module), 1)
    once = count <= max(requests, log.backwards)
    return (calls[0], calls[0]) if once else (calls[0], calls[-1])


def _compared(calls: list[Call], losses: list[LossCall]) -> Call | None:
    """The call whose output goes into a loss function."""
    for loss in losses:
        prediction = loss.arguments.get("input")
        for call in reversed(calls):
            if isinstance(prediction, Tensor) and find(prediction, call.output) is not None:
                return call
    return None


def _main_loss(
    log: StepLog, leave: Call | None, requests: int
) -> tuple[LossCall | None, int, bool, float]:
    """The loss call that was back-propagated, its divisor, whether the model made it, its value."""
    if not log.propagated:
        return None, 1, False, float("nan")
    first = log.propagated[0]
    value = float(first.value)
    divisors = sorted({1, len(log.propagated), requests})
    own = own_loss(leave.output) if leave is not None and leave.output is not None else None
    if own is not None and own.numel() == 1:
        for divisor in divisors:
            if is_total(float(own), value * divisor):
                return None, divisor, True, value
    for divisor in divisors:
        if (call := call_worth(log.loss_calls, value * divisor)) is not None:
            return call, divisor, False, value
    return None, 1, False, value


def _used(entry: Call | None, calls: list[Call], loader: int) -> tuple[int, Any]:
    """How far the script looks ahead, and the batch that reached the model in ``entry``.

    A script that draws all batches of an accumulated step before it uses the first has some in hand
    then, and none, or those of the next step, at its last call.
    """
    given = [batch for key, batch in entry.recent if key == loader] if entry is not None else []
    if entry is None or not given:
        return 0, None
    first = _drawn_after(entry, loader)
    if first is None:
        return 0, given[0]
    last = _drawn_after(calls[-1], loader) if first else None
    return min(first, first if last is None else last), given[first]


def _drawn_after(call: Call, loader: int) -> int | None:
    """How many batches were drawn after the one that reached the model in ``call``, if one did."""
    given = (batch for key, batch in call.recent if key == loader)
    tensors = [tensor for _, tensor in batches.tensors((call.args, call.kwargs))]
    found = (any(find(each, batch) is not None for each in tensors) for batch in given)
    return next((number for number, is_there in enumerate(found) if is_there), None)


def _virtual(entry: Call, main: LossCall | None) -> Any:
    """Make a batch of what reached the model and the loss in a script without a loader."""
    target = main.arguments.get("target") if main is not None else None
    inputs = [value for value in entry.args if isinstance(value, Tensor)]
    first = next((t for _, t in batches.tensors((entry.args, entry.kwargs))), None)
    if isinstance(target, Tensor):
        if any(find(target, value) is not None for value in (inputs, entry.kwargs)):
            target = None
        elif first is not None and target.numel() == first.numel() and target.ndim < first.ndim:
            target = target.reshape(first.shape)
    if not entry.kwargs:
        return (*inputs, target) if target is not None else tuple(inputs)
    named = {f"input{i}": value for i, value in enumerate(inputs)}
    named.update({k: v for k, v in entry.kwargs.items() if isinstance(v, Tensor)})
    return {**named, "target": target} if target is not None else named


def helpers() -> tuple[Any, ...]:
    """Return objects in the script's variables that hold tensors beside its networks: averages.

    And generators of random numbers.
    """
    found: dict[int, Any] = {}
    for frame in callstack.user_frames():
        for name, value in list(callstack.variables(frame).items()):
            if not name.startswith("__") and _is_helper(value):
                found[id(value)] = value
    return tuple(found.values())


def _is_helper(value: Any) -> bool:
    from torch.utils.data import DataLoader, Dataset, Sampler

    if isinstance(value, GENERATORS):
        return True
    known = (nn.Module, Optimizer, DataLoader, Dataset, Sampler, Tensor, type)
    if isinstance(value, known) or (callable(value) and not hasattr(value, "__dict__")):
        return False
    if type(value) in (dict, list):
        return 0 < _room(value) <= _ROOM
    module = type(value).__module__
    # The auditor's own: what stands between a loader's iterator and the script.
    others = ("builtins", "torch", "numpy", "nnaudit")
    if module.partition(".")[0] in others or not hasattr(value, "__dict__"):
        return False
    return 0 < _room(vars(value)) <= _ROOM


def _room(value: Any) -> int:
    if not isinstance(value, (dict, list)) or len(value) > 10_000:
        return 0
    inner = value.values() if isinstance(value, dict) else value
    total = 0
    for item in inner:
        if isinstance(item, Tensor):
            total += item.numel() * item.element_size()
        elif isinstance(item, (dict, list)) and len(item) <= 10_000:
            leaves = item.values() if isinstance(item, dict) else item
            total += sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
    return total


def recorded(
    module: nn.Module, args: Any, kwargs: Any, recent: Iterable[tuple[int, Any]] = ()
) -> Call:
    """Return a record of the call of ``module`` that is about to be made.

    ``recent`` are the batches that the script has been given, by the number of their iterator.
    """
    return Call(
        module,
        batches.clone(args),
        batches.clone(kwargs),
        recent=tuple(recent),
        grad=torch.is_grad_enabled(),
        autocast=autocast_state(),
        given=tuple(tensor.detach() for _, tensor in batches.tensors((args, kwargs))),
    )


def autocast_state() -> tuple[tuple[str, bool, Any], ...]:
    """Return what the calling thread is casting to, by kind of device."""
    return tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    )
