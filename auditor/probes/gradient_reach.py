"""Which parameters gradients reach, and what becomes of the loss when the others are moved."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.control import constant_lr
from nnaudit.loop.observation import Observation
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.noise import REPEATS, ROUNDINGS, eps_of
from nnaudit.measure.reseeded import varies
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.perturbation import outputs_of
from nnaudit.state.snapshot import Subjects, preserved

STEPS = 10
"""Branches that start at zero need a step per layer of zeros until gradients get through."""

DIRECTIONS = 5
"""Random directions in which a block is moved; the median counts."""

MOVE = 1e-3
"""How far, relative to the root mean square of the parameter: a smooth loss moves by less."""

FAR = 0.3
"""How far a block is moved that no graph connects: enough to cross the steps of a step function."""

BLOCKS = 16
"""Blocks that are moved, at most: one cause makes few."""

_NO_GRAPH = "does not require grad"

_SUMMING = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
"""Layers the offset of which gets the sum of the gradients that their output gets."""


@dataclass(frozen=True)
class Block:
    """Neighbouring parameters that no gradient reaches.

    Attributes:
        name: the module that holds them all, or the parameter itself.
        type: of that module; empty for a parameter alone.
        parameters: their names.
        absent: whether the gradient is None in every step, rather than exactly zero.
        called: whether the module, or any inside it, was called in training.
        starved: whether it was called only with no rows at all: an expert without tokens.
        partial: whether it is part of a layer other parameters of which are reached.
        moves_loss, moves_output: whether moving them a little does; not tried with an offset the
            gradients of which cancel.
        intended: why they seem to be cut off on purpose; empty where nothing says so.
    """

    name: str
    type: str
    parameters: tuple[str, ...]
    absent: bool
    called: bool
    starved: bool
    partial: bool
    moves_loss: bool
    moves_output: bool
    intended: str = ""


@dataclass(frozen=True)
class UnregisteredParameters:
    """Parameters that gradients reach but that neither the model nor an optimizer knows.

    Attributes:
        owner: name of the module that keeps them in ``attribute``.
        container: what the attribute is: ``list``, ``dict``, a ``Tensor``.
        count: how many parameters.
    """

    owner: str
    attribute: str
    container: str
    count: int

    @property
    def place(self) -> str:
        """Where it is kept, as the model's attribute."""
        return f"{self.owner}.{self.attribute}".lstrip(".")

    @property
    def registration(self) -> str:
        """The line that would register it."""
        if self.container in ("Tensor", "Parameter"):
            return f"self.{self.attribute} = nn.Parameter(...)"
        kind = "nn.ModuleDict" if "dict" in self.container.lower() else "nn.ModuleList"
        return f"self.{self.attribute} = {kind}(self.{self.attribute})"


@dataclass(frozen=True)
class Reach:
    """What :class:`GradientReach` found.

    Attributes:
        parameters: how many an optimizer trains.
        reached: how many of them got a gradient in any step.
        steps: in how many steps that was looked for.
        blocks: the others, by neighbourhood; parameters that the program updates itself (moving
            averages) are left out.
        strays: parameters outside the model.
        severed: what the backward pass raised when the loss hangs on no parameter at all.
    """

    parameters: int
    reached: int
    steps: int
    blocks: tuple[Block, ...] = ()
    strays: tuple[UnregisteredParameters, ...] = ()
    severed: UserCodeError | None = None


@dataclass
class _Seen:
    """What a run of observed steps shows about each trained parameter."""

    owned: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    in_train_mode: set[str] = field(default_factory=set)
    under_gradient: set[str] = field(default_factory=set)
    fed: set[str] = field(default_factory=set)
    steps: int = 0

    def add(self, observation: Observation) -> None:
        self.steps += 1
        self.under_gradient.update(observation.training_flags)
        for gradient in observation.gradients:
            if gradient.owned:
                self.owned.add(gradient.parameter)
            if gradient.norm is not None:
                self.present.add(gradient.parameter)
                if gradient.norm != 0.0:  # NaN is a gradient too: GRAD106 speaks of it
                    self.reached.add(gradient.parameter)
        for activation in observation.activations:
            self.called.add(activation.module)
            if activation.training:
                self.in_train_mode.add(activation.module)
            if 0 not in activation.shape:
                self.fed.add(activation.module)


class GradientReach(Probe[Reach]):
    """Believes the first steps where all is well, and looks at :data:`STEPS` more where not."""

    probes = (FirstSteps,)
    steps = 8

    def measure(self, audit: Audit) -> Reach:
        """Find the parameters that no gradient reaches, and move them.

        Raises:
            UserCodeError: a step raised something else than a missing graph.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        first = audit.probe(FirstSteps)
        if first.error is not None and not first.steps and _NO_GRAPH in str(first.error.original):
            return Reach(len(_trained(loop)), 0, 1, severed=first.error)
        first.require()
        seen = _Seen()
        for observation in first.completed:
            seen.add(observation)
        strays = tuple(_strays(loop, first.batches[0]))
        trainable = set(_trained(loop))
        if not (seen.owned & trainable) - seen.reached:
            return Reach(
                len(seen.owned & trainable), len(seen.owned & trainable), seen.steps, (), strays
            )
        return self._longer(audit, trainable, strays)

    @staticmethod
    def _longer(
        audit: Audit, trainable: set[str], strays: tuple[UnregisteredParameters, ...]
    ) -> Reach:
        loop, seen = audit.loop, _Seen()
        before = {n: p.detach().clone() for n, p in loop.model.named_parameters() if n in trainable}
        some = list(consecutive_batches(loop, STEPS))
        # At the rate the author plans for: with a warm-up from zero nothing would leave zero.
        with constant_lr(loop):
            for batch in some:
                audit.clock.check()
                step = loop.step(batch, observe=True)
                if step.observation is not None:
                    seen.add(step.observation)
        owned = seen.owned & trainable
        missing = owned - seen.reached
        now = dict(loop.model.named_parameters())
        # No optimizer changes what has no gradient: the program does, by a moving average.
        by_hand = {n for n in missing - seen.present if _changed(now.get(n), before[n])}
        found = list(_blocks(audit, seen, missing - by_hand, owned, some[0]))
        intent = _Intent(audit, seen, before)
        blocks = tuple(replace(block, intended=intent.of(block)) for block in found)
        return Reach(len(owned), len(owned & seen.reached), seen.steps, blocks, strays)


class _Intent:
    """Says whether a block that is cut off from the loss is so on purpose.

    Leaving gradients out of a loaded feature extractor, a helper in eval mode or a target network
    is customary, and that its parameters are given to the optimizer all the same does no harm.
    """

    def __init__(self, audit: Audit, seen: _Seen, before: Mapping[str, Tensor]) -> None:
        self._audit, self._seen, self._before = audit, seen, before

    def of(self, block: Block) -> str:
        """Return the sign of a purpose, empty where there is none or nothing is cut."""
        if not (block.absent and block.moves_loss and block.called):
            return ""
        if block.type:
            inside = {m for m in self._seen.called if _within(m, block.name)}
        else:  # a parameter alone is used by the module that keeps it
            inside = self._seen.called & {block.name.rpartition(".")[0]}
        if not inside & self._seen.in_train_mode:
            return "it is in eval mode during training"
        if self._is_copy(block):
            return "its weights equal those of another part, as in a target network"
        if self._audit.loop.lacks(Needs.FRESH_RUN):
            without = not inside & self._seen.under_gradient
            return "it is called without gradients" if without else ""
        drawn = self._drawn_at_random
        own = [drawn[name] for name in block.parameters if name in drawn]
        if own and not any(own) and any(drawn.values()):
            return "its weights are loaded while the rest is randomly initialised"
        return ""

    def _is_copy(self, block: Block) -> bool:
        """Whether every parameter has begun as one of another part of the model."""
        own = set(block.parameters)
        # Layers of one list may have begun as copies of each other (nn.TransformerEncoder).
        siblings = re.split(r"(?<=\.)\d+(?:\.|$)", f".{block.name}")[0][1:]
        is_listed = siblings != block.name
        others = [
            value
            for name, value in self._before.items()
            if name not in own and not (is_listed and name.startswith(siblings))
        ]
        varied = [self._before[name] for name in own if varies(self._before[name])]
        return bool(varied) and all(
            any(v.shape == o.shape and torch.equal(v, o) for o in others) for v in varied
        )

    @cached_property
    def _drawn_at_random(self) -> dict[str, bool]:
        self._audit.clock.check()
        # The weights to compare are those of the start.
        with self._audit.loop.relaunched(self._audit.seed + 1) as other:
            theirs = {n: p.detach() for n, p in other.model.named_parameters()}
            if {id(p) for p in other.model.parameters()} & set(
                map(id, self._audit.loop.model.parameters())
            ):
                return {}  # the very same model, not one made anew
            return {
                name: not torch.equal(value, theirs[name])
                for name, value in self._before.items()
                if name in theirs and value.shape == theirs[name].shape and varies(value)
            }


def _within(module: str, name: str) -> bool:
    return not name or module == name or module.startswith(f"{name}.")


def _changed(now: Tensor | None, before: Tensor) -> bool:
    return now is None or now.shape != before.shape or not torch.equal(now.detach(), before)


def _trained(loop: Loop) -> list[str]:
    held = {id(p) for o in loop.optimizers for group in o.param_groups for p in group["params"]}
    return [
        n for n, p in loop.model.named_parameters()
        if p.requires_grad and id(p) in held and not is_lazy(p) and p.numel()
    ]  # fmt: skip


# --- blocks --------------------------------------------------------------------------------------


def _blocks(
    audit: Audit, seen: _Seen, missing: set[str], owned: set[str], batch: Any
) -> Iterator[Block]:
    modules = dict(audit.loop.model.named_modules())
    groups = _grouped(missing, owned, modules)
    with _Mover(audit, batch) as mover:
        for index, (name, parameters) in enumerate(sorted(groups.items())):
            module = modules.get(name)
            inside = [m for m in modules if m == name or m.startswith(f"{name}.")]
            # A parameter alone belongs to the module that keeps it.
            keeper = name if module is not None else name.rpartition(".")[0]
            places = inside if module is not None else [keeper]
            called = any(m in seen.called for m in places)
            absent = not any(p in seen.present for p in parameters)
            known = index >= BLOCKS or (not absent and _sums_to_zero(parameters, seen, modules))
            moves = (False, False) if known else mover.moves(parameters, absent=absent)
            yield Block(
                name=name,
                type=type(module).__name__ if module is not None else "",
                parameters=parameters,
                absent=absent,
                called=called,
                starved=called and not any(m in seen.fed for m in places),
                partial=_is_partial(name, module, modules.get(keeper)),
                moves_loss=moves[0],
                moves_output=moves[1],
            )


def _grouped(
    missing: set[str], owned: set[str], modules: Mapping[str, nn.Module]
) -> dict[str, tuple[str, ...]]:
    """Group parameters under the outermost module all of whose trained parameters are missing."""
    groups: dict[str, list[str]] = {}
    for name in sorted(missing):
        parts = name.split(".")
        home = name
        for depth in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:depth])
            inside = {p for p in owned if p.startswith(f"{prefix}.")}
            if prefix not in modules or not inside <= missing:
                break
            home = prefix
        if owned == missing:
            home = ""
        groups.setdefault(home, []).append(name)
    return {name: tuple(parameters) for name, parameters in groups.items()}


def _is_partial(name: str, module: nn.Module | None, keeper: nn.Module | None) -> bool:
    """Whether a parameter stands alone in a layer that does learn, where that can be normal.

    An offset may cancel in what follows; an attention over one key, or a recurrence over one
    step, leaves part of torch's own layers without use.
    """
    if module is not None:
        return False
    whole = isinstance(keeper, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
    return whole or "bias" in name.rpartition(".")[2]


def _sums_to_zero(
    parameters: tuple[str, ...], seen: _Seen, modules: Mapping[str, nn.Module]
) -> bool:
    """Whether an offset's gradient is the sum of some that are not zero, and cancel.

    A layer whose weights get a gradient has one at its output, so the graph beyond it is whole.
    The offset of a critic that is told +1 for half of its rows and -1 for the others is such.
    """
    home, _, name = parameters[0].rpartition(".")
    layer = modules.get(home)
    if len(parameters) > 1 or name != "bias" or not isinstance(layer, _SUMMING):
        return False
    as_torch_has_it = type(layer).forward.__module__.startswith("torch.nn.")
    weights = [p for p in seen.reached if p.startswith(f"{home}.") and ".weight" in p]
    return as_torch_has_it and bool(weights)


class _Mover:
    """Moves parameters a little, and looks whether loss and output move."""

    def __init__(self, audit: Audit, batch: Any) -> None:
        self._audit, self._batch = audit, batch
        self._parameters = dict(audit.loop.model.named_parameters())
        self._eps = eps_of(audit.loop.model)
        self._generator = torch.Generator().manual_seed(audit.seed)

    def __enter__(self) -> _Mover:
        self._kept = preserved(Subjects(models=self._audit.loop.models))
        self._snapshot = self._kept.__enter__()
        self._base = self._forward()
        self._snapshot.restore()
        again = self._forward()
        self._noise = tuple(_distance(a, b) for a, b in zip(self._base, again, strict=True))
        return self

    def __exit__(self, *error: Any) -> None:
        self._kept.__exit__(*error)

    def _forward(self) -> tuple[Tensor | None, Tensor | None]:
        """Return loss and output; the state and the random numbers are the same in every call."""
        done = self._audit.loop.forward(self._batch, train=True)
        loss = None if done.loss is None else torch.tensor([done.loss], dtype=torch.float64)
        return loss, outputs_of(done.output)

    def moves(self, names: tuple[str, ...], *, absent: bool) -> tuple[bool, bool]:
        """Say whether moving ``names`` moves the loss (or what stands for it) and the output.

        What has no graph cannot be moved by any distance: where a little does nothing, for what
        follows is a step function (int, >, argmax), much is tried too.
        """
        little = self._moves_by(MOVE, names, absent)
        return self._moves_by(FAR, names, absent) if absent and not any(little) else little

    def _moves_by(self, size: float, names: tuple[str, ...], absent: bool) -> tuple[bool, bool]:
        votes = [[0, 0] for _ in range(2)]
        for _ in range(DIRECTIONS):
            self._audit.clock.check()
            self._snapshot.restore()
            self._shift(names, size)
            try:
                moved = self._forward()
            except UserCodeError:
                continue
            for i in range(2):
                votes[i][0] += self._differs(i, moved[i], absent)
                votes[i][1] += 1
        loss, output = (counted > total / 2 for counted, total in votes)
        # A script may not tell its loss: then the output stands for it.
        return (loss if self._base[0] is not None else output), output

    def _differs(self, index: int, moved: Tensor | None, absent: bool) -> bool:
        base = self._base[index]
        if base is None or moved is None:
            return False
        distance = _distance(base, moved)
        # What hangs on nothing cannot change a bit; what cancels changes by roundings.
        rounding = 0.0 if absent else ROUNDINGS * max(self._eps, 2.0**-23) * float(base.abs().max())
        return distance > max(REPEATS * self._noise[index], rounding)

    def _shift(self, names: Iterable[str], by: float) -> None:
        with torch.no_grad():
            for name in names:
                parameter = self._parameters[name]
                values = parameter.detach()
                size = float(values.abs().float().square().mean().sqrt()) or 0.01
                step = torch.randn(values.shape, generator=self._generator).to(values.device)
                parameter.add_((by * size * step).to(values.dtype))


def _distance(first: Tensor | None, second: Tensor | None) -> float:
    if first is None or second is None or first.shape != second.shape or not first.numel():
        return 0.0
    distance = float((first - second).abs().max())
    return 0.0 if math.isnan(distance) else distance


# --- parameters outside the model ----------------------------------------------------------------

_OWN = frozenset(vars(nn.Module()))
"""What every module has of its own: parameters, hooks."""

_DEPTH = 3


def _strays(loop: Loop, batch: Any) -> Iterator[UnregisteredParameters]:
    # Not of all models: of a script the layers in a list are networks of their own.
    known = {id(p) for p in loop.model.parameters()}
    known |= {id(p) for o in loop.optimizers for g in o.param_groups for p in g["params"]}
    candidates = [
        (owner, attribute, value, leaves)
        for owner, module in loop.model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in _OWN
        and (leaves := [p for p in _leaves_in(value) if id(p) not in known])
    ]
    if not candidates:
        return
    with preserved(loop.subjects):
        for _, _, _, leaves in candidates:
            for leaf in leaves:
                leaf.grad = None
        loop.step(batch)
        reached = {
            id(p)
            for _, _, _, leaves in candidates
            for p in leaves
            if p.grad is not None and bool(p.grad.to_dense().abs().max() > 0)
        }
    for owner, attribute, value, leaves in candidates:
        count = sum(id(p) in reached for p in leaves)
        if count:
            yield UnregisteredParameters(owner, attribute, type(value).__name__, count)


def _leaves_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield what could be trained in a plain container: of modules that are in train mode."""
    if isinstance(value, nn.Module):
        # One put into eval mode by hand is a helper: a perceptual loss, a teacher.
        if depth and value.training:
            yield from (p for p in value.parameters() if p.requires_grad and not is_lazy(p))
    elif isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif depth < _DEPTH and isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves_in(each, depth + 1)
    elif depth < _DEPTH and isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _leaves_in(each, depth + 1)
