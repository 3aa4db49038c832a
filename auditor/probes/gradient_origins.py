"""Which losses the gradients of several networks come from: who trains whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.autograd import LAYERS, VIEWS, name_of, signed_parents_of
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import own_line, parameters_of, patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.movement import same
from nnaudit.report import Location

STEPS = 4
"""Steps of each optimizer that are looked at, where it steps with every batch."""

_MOST_NODES = 256

_MOST_BATCHES = 12
"""Critics are trained five times, and more, as often as their generators."""


@dataclass(frozen=True)
class Leftover:
    """A gradient that an optimizer gets from a loss on which another one steps.

    Either that one has stepped before, or the loss reaches its parameters through those of this
    optimizer, whose own loss does not reach them, and it steps after.

    Attributes:
        optimizer: the number of the one that gets it.
        other: the one whose loss it is.
        cosine: between that part of the gradient and the rest, which is of the optimizer's own.
        share: the norm of that part, relative to the rest.
        location: the line of the optimizer's step.
        maximised: that loss is the output of the optimizer's own network, or its negative, and
            nothing else: as an actor's is what the critic says of it.
    """

    optimizer: int
    other: int
    cosine: float
    share: float
    location: Location | None
    maximised: bool = False


@dataclass(frozen=True)
class SharedGradient:
    """The gradients with which two optimizers step the same parameters, one after the other.

    Attributes:
        holder: the optimizer that holds more than the other.
        owner: the one that holds nothing but them; the later one where both hold more.
        tensors: how many parameters they share.
        contained: the owner holds nothing else.
        cosine: between the two gradients of the shared parameters.
        downstream: the holder's gradient reaches its other parameters through the shared ones,
            and the owner's does not reach them at all: as a generator's reaches the generator
            through the discriminator. No other optimizer holds these.
        location: the line of the holder's step.
    """

    holder: int
    owner: int
    tensors: int
    contained: bool
    cosine: float
    downstream: bool
    location: Location | None


@dataclass(frozen=True)
class Doubled:
    """A step of two optimizers, one after the other, on the same gradient of the same parameters.

    Attributes:
        first, second: their numbers.
        tensors: how many parameters they share.
        location: the line of the second's step.
    """

    first: int
    second: int
    tensors: int
    location: Location | None


@dataclass(frozen=True)
class Untrained:
    """A network that gets a gradient in every step, and that no optimizer holds.

    Attributes:
        model: its number among the loop's.
        type: its class.
        tensors: how many of its parameters get one.
    """

    model: int
    type: str
    tensors: int


@dataclass(frozen=True)
class Origins:
    """What :class:`GradientOrigins` saw.

    Attributes:
        optimizers: the classes of the optimizers.
        networks: for each optimizer, the class of the network whose parameters it holds, and of
            the part of it, as the user's code names them; empty where it holds several.
        steps: how often each optimizer stepped.
        leftovers: all there were, in order.
        shared: all there were, in order.
        untrained: networks beside the main one.
        frozen: optimizers none of whose parameters required a gradient at any of their steps.
        doubled: all there were, in order.
        unreached: optimizers that had no gradient at all at any of their steps, though their
            network was called before each with gradients on, and parameters of it could have had
            one.
    """

    optimizers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    shared: tuple[SharedGradient, ...] = ()
    untrained: tuple[Untrained, ...] = ()
    frozen: tuple[int, ...] = ()
    doubled: tuple[Doubled, ...] = ()
    unreached: tuple[int, ...] = ()


class GradientOrigins(Probe[Origins]):
    """Takes a few steps of a program with several networks, and notes who made each gradient."""

    steps = 8

    def measure(self, audit: Audit) -> Origins:
        """Return what was seen; nothing where there is one optimizer and one network.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        if len(loop.optimizers) < 2 and len(loop.models) < 2:
            return Origins()
        # A script that draws its own batches takes steps to draw them, which are undone.
        some = list(consecutive_batches(loop, _MOST_BATCHES))
        watch = _Watch(loop)
        with watch:
            for batch in some:
                audit.clock.check()
                with watch.muted():
                    loop.prepare(batch)
                loop.step(batch)
                if min(watch.steps) >= STEPS:
                    break
        return Origins(
            optimizers=tuple(type(optimizer).__name__ for optimizer in loop.optimizers),
            networks=tuple(_networks(loop)),
            steps=tuple(watch.steps),
            leftovers=tuple(watch.leftovers),
            shared=tuple(watch.shared),
            untrained=tuple(watch.untrained()),
            frozen=tuple(_always(watch.frozen, watch.steps)),
            doubled=tuple(watch.doubled),
            unreached=tuple(_always(watch.unreached, watch.steps)),
        )


def _always(times: Sequence[int], steps: Sequence[int]) -> Iterator[int]:
    """Yield the optimizers of which something was true as often as they stepped."""
    for which, (count, taken) in enumerate(zip(times, steps, strict=True)):
        if 0 < taken == count:
            yield which


@dataclass(frozen=True)
class _Made:
    """What one backward pass added to the gradients of one optimizer."""

    number: int
    values: tuple[Tensor | None, ...]


@dataclass
class _Player:
    """One optimizer, since its last step.

    Attributes:
        parameters: what it holds, each once.
        made: what was added to its gradients, one entry for each backward pass.
        used: the backward passes of its last step.
        at_step: gradients of the shared parameters at its last step.
        reached: parameters that got a gradient for its last step, in the order of going back.
        stepped_on: all that was added to the gradients of its last step, and the line of that.
    """

    parameters: list[Tensor]
    made: list[_Made] = field(default_factory=list)
    used: tuple[int, ...] = ()
    at_step: dict[int, Tensor] = field(default_factory=dict)
    reached: tuple[int, ...] = ()
    stepped_on: tuple[tuple[_Made, ...], Location | None] = ((), None)


class _Watch:
    """Listens to backward passes and optimizer steps for the time of a ``with`` block."""

    def __init__(self, loop: Loop) -> None:
        self.steps = [0] * len(loop.optimizers)
        self.frozen = [0] * len(loop.optimizers)
        self.unreached = [0] * len(loop.optimizers)
        self.leftovers: list[Leftover] = []
        self.shared: list[SharedGradient] = []
        self.doubled: list[Doubled] = []
        self._loop = loop
        self._players = [_Player(_unique(parameters_of(o))) for o in loop.optimizers]
        ids = [{id(p) for p in player.parameters} for player in self._players]
        self._ids = ids
        self._pairs = [(i, j) for i, j in combinations(range(len(ids)), 2) if ids[i] & ids[j]]
        held = set().union(*ids)
        self._others = {
            number: [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
            for number, model in enumerate(loop.models)
            if held.isdisjoint(id(p) for p in model.parameters())
        }
        self._called: set[int] = set()
        self._driven: dict[int, int] = {}
        self._number = 0
        self._depth = 0
        self._order: list[int] = []
        self._orders: dict[int, tuple[int, ...]] = {}
        self._maximised: dict[int, frozenset[int]] = {}
        self._stepped: dict[int, list[int]] = {}
        self._within: list[int] = []
        self._muted = False
        self._stack = ExitStack()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Take no notice of what happens in the ``with``: of steps that are undone."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    @property
    def _deaf(self) -> bool:
        return self._muted or self._loop.starting

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(patched(torch.autograd, "backward", self._backward))
            for which, optimizer in enumerate(self._loop.optimizers):
                stack.callback(optimizer.register_step_pre_hook(self._before(which)).remove)
                stack.callback(optimizer.register_step_post_hook(self._after(which)).remove)
            for model in self._loop.models:
                for module in model.modules():
                    if held := self._held_by(module):
                        stack.callback(module.register_forward_pre_hook(self._calls(held)).remove)
            if len(self._players) > 1:
                for parameter in _unique(p for each in self._players for p in each.parameters):
                    if parameter.requires_grad:
                        handle: Any = parameter.register_hook(self._noting(parameter))  # type: ignore[no-untyped-call]
                        stack.callback(handle.remove)
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def untrained(self) -> Iterator[Untrained]:
        """Yield the networks that got a gradient for every step and have not moved."""
        rounds = max(self.steps, default=0)
        for number, parameters in self._others.items():
            if rounds and self._driven.get(number, 0) >= rounds:
                driven = [(p, was) for p, was in parameters if _nonzero(p.grad)]
                if driven and all(same(p, was) for p, was in driven):
                    name = type(self._loop.models[number]).__name__
                    yield Untrained(number, name, len(driven))

    def _held_by(self, module: nn.Module) -> list[int]:
        """Return the optimizers that hold parameters of ``module``'s own."""
        own = {id(p) for p in module.parameters(recurse=False)}
        return [which for which, ids in enumerate(self._ids) if not own.isdisjoint(ids)]

    def _calls(self, holders: list[int]) -> Callable[..., None]:
        def called(*_: Any) -> None:
            if torch.is_grad_enabled() and not self._deaf:
                self._called.update(holders)

        return called

    def _noting(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self._order.append(id(parameter))

        return note

    def _backward(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(*args: Any, **kwargs: Any) -> None:
            if self._depth or self._deaf:
                return real(*args, **kwargs)
            before = [[_kept(p.grad) for p in each.parameters] for each in self._players]
            others = {n: [_state(p.grad) for p, _ in each] for n, each in self._others.items()}
            self._order = []
            root = args[0] if args else kwargs.get("tensors")
            maximised = outputs_alone(root) if isinstance(root, Tensor) else frozenset()
            self._depth += 1
            try:
                real(*args, **kwargs)
            finally:
                self._depth -= 1
            self._number += 1
            self._maximised[self._number] = maximised
            self._orders[self._number] = tuple(self._order)
            for player, was in zip(self._players, before, strict=True):
                self._add(player, was)
            for number, parameters in self._others.items():
                # Of an earlier training a gradient may be left, which no pass of this one touches.
                now = zip(parameters, others[number], strict=True)
                if any(_nonzero(p.grad) and _is_new(p.grad, was) for (p, _), was in now):
                    self._driven[number] = self._driven.get(number, 0) + 1
            return None

        return backward

    def _add(self, player: _Player, was: list[Tensor | None]) -> None:
        """Note what the last backward pass has added, and forget what was zeroed before it."""
        if not any(_nonzero(gradient) for gradient in was):
            player.made.clear()
        added = tuple(
            _difference(p.grad, old) for p, old in zip(player.parameters, was, strict=True)
        )
        if any(_nonzero(values) for values in added):
            player.made.append(_Made(self._number, added))

    def _before(self, which: int) -> Callable[..., None]:
        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._within.append(which)
            if len(self._within) > 1 or self._deaf:
                return  # stepped by one that wraps it
            player = self._players[which]
            trainable = [p for p in player.parameters if p.requires_grad]
            self.frozen[which] += not trainable
            bare = bool(trainable) and all(p.grad is None for p in player.parameters)
            self.unreached[which] += bare and which in self._called
            self._called.discard(which)
            if not any(_nonzero(p.grad) for p in player.parameters):
                return
            line = own_line()
            self._leftover(which, line)
            player.used = tuple(made.number for made in player.made)
            self._passed_through(which)
            player.stepped_on = tuple(player.made), line
            last = player.used[-1] if player.used else 0
            player.reached = self._orders.get(last, ())
            shared = set().union(*(self._ids[i] & self._ids[j] for i, j in self._pairs), set())
            player.at_step = {
                id(p): p.grad.detach().clone()
                for p in player.parameters
                if id(p) in shared and p.grad is not None and p.grad.layout is torch.strided
            }
            for pair in self._pairs:
                if which in pair:
                    self._compare(*pair, line)
                    self._double(which, sum(pair) - which, line)

        return before

    def _after(self, which: int) -> Callable[..., None]:
        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if self._within:
                self._within.pop()
            if self._within or self._deaf:
                return
            self.steps[which] += 1
            player = self._players[which]
            for number in player.used:
                self._stepped.setdefault(number, []).append(which)
            player.made.clear()

        return after

    def _leftover(self, which: int, line: Location | None) -> None:
        """Note the part of the gradient that comes from a loss another optimizer stepped on."""
        made = self._players[which].made
        if len(made) < 2:
            return
        old = [each for each in made[:-1] if self._others_stepped_on(each.number, which)]
        rest = [each for each in made if each not in old]
        if not old:
            return
        theirs, own = (_flat(each, self._players[which].parameters) for each in (old, rest))
        other = self._others_stepped_on(old[-1].number, which)[-1]
        self._left(which, other, theirs, own, line, {each.number for each in old})

    def _passed_through(self, which: int) -> None:
        """Note what others have stepped on that is of the loss of ``which``, led through them."""
        used, ids = set(self._players[which].used), self._ids[which]
        for other, player in enumerate(self._players):
            made, line = player.stepped_on
            lent = [each for each in made if each.number in used]
            rest = [each for each in made if each.number not in used]
            if other == which or not lent or not rest or self._ids[other] & ids:
                continue
            leads = all(
                _comes_first(self._reached(other, each), ids, self._orders[each.number])
                for each in lent
            )
            apart = all(ids.isdisjoint(self._orders[each.number]) for each in rest)
            if leads and apart:
                theirs, own = (_flat(each, player.parameters) for each in (lent, rest))
                self._left(other, which, theirs, own, line, {each.number for each in lent})

    def _reached(self, which: int, made: _Made) -> set[int]:
        return self._ids[which].intersection(self._orders[made.number])

    def _left(
        self,
        which: int,
        other: int,
        theirs: Tensor,
        own: Tensor,
        line: Location | None,
        passes: set[int],
    ) -> None:
        share = float(theirs.norm()) / max(float(own.norm()), 1e-30)
        maximised = all(
            not self._ids[which].isdisjoint(self._maximised.get(number, ())) for number in passes
        )
        self.leftovers.append(
            Leftover(which, other, _cosine(theirs, own), share, line, maximised=maximised)
        )

    def _others_stepped_on(self, number: int, which: int) -> list[int]:
        return [other for other in self._stepped.get(number, []) if other != which]

    def _double(self, which: int, other: int, line: Location | None) -> None:
        """Note that ``which`` steps on the very gradient that ``other`` has stepped on before."""
        mine, theirs = self._players[which], self._players[other]
        if not mine.used or mine.used != theirs.used:
            return
        common = [
            key
            for key in mine.at_step
            if key in theirs.at_step and same(mine.at_step[key], theirs.at_step[key])
        ]
        if common:
            self.doubled.append(Doubled(other, which, len(common), line))

    def _compare(self, one: int, other: int, line: Location | None) -> None:
        """Note how two optimizers' last gradients of the parameters that they share agree."""
        mine, theirs = self._players[one], self._players[other]
        common = [key for key in mine.at_step if key in theirs.at_step]
        apart = not set(mine.used) & set(theirs.used)
        if not common or not mine.used or not theirs.used or not apart:
            return  # one loss, two optimizers: each has its rate
        holder, owner = (
            (one, other) if len(self._ids[one]) >= len(self._ids[other]) else (other, one)
        )
        rest = self._ids[holder] - self._ids[owner]
        # Where these have an optimizer of their own too, one for both is a loss for both (InfoGAN).
        elsewhere = set().union(
            *(ids for which, ids in enumerate(self._ids) if which != holder), set()
        )
        self.shared.append(
            SharedGradient(
                holder,
                owner,
                tensors=len(common),
                contained=self._ids[owner] <= self._ids[holder],
                cosine=_cosine(
                    torch.cat([mine.at_step[key].flatten().float() for key in common]),
                    torch.cat([theirs.at_step[key].flatten().float() for key in common]),
                ),
                downstream=_comes_first(set(common), rest, self._players[holder].reached)
                and rest.isdisjoint(self._players[owner].reached)
                and rest.isdisjoint(elsewhere),
                location=line,
            )
        )


_LINEAR = (
    "NegBackward", "MeanBackward", "SumBackward", "DivBackward", "MulBackward", "AddBackward",
    "SubBackward", "MinimumBackward", "MinBackward", *VIEWS,
)  # fmt: skip
"""Nodes between a loss that is an output itself and the layer that made the output."""


def outputs_alone(root: Tensor) -> frozenset[int]:
    """Return the parameters of the last layers of which ``root`` is a sum, with one sign.

    A loss of a difference, as a critic's of real and generated, has them with both; a loss that
    compares its output with anything has none.
    """
    todo: list[tuple[Any, int]] = [(root.grad_fn, 1)]
    seen, signs = set[tuple[Any, int]](), dict[int, set[int]]()
    while todo and len(seen) < _MOST_NODES:
        node, sign = todo.pop()
        if node is None or (node, sign) in seen:
            continue
        seen.add((node, sign))
        name = name_of(node)
        if name.startswith(LAYERS):
            for key in _weights_of(node):
                signs.setdefault(key, set()).add(sign)
        elif name.startswith(_LINEAR):
            todo += [(parent, sign * theirs) for parent, theirs in signed_parents_of(node)]
    return frozenset(key for key, found in signs.items() if len(found) == 1)


def _weights_of(node: Any) -> Iterator[int]:
    """Yield the parameters that a layer's node multiplies by or adds."""
    for parent, _ in node.next_functions:
        for each in (parent, *(p for p, _ in getattr(parent, "next_functions", ()))):
            if (variable := getattr(each, "variable", None)) is not None:
                yield id(variable)


def _comes_first(first: set[int], then: set[int], order: tuple[int, ...]) -> bool:
    """Whether going back met all of ``first`` before any of ``then``."""
    last = max((i for i, key in enumerate(order) if key in first), default=None)
    begin = min((i for i, key in enumerate(order) if key in then), default=None)
    return last is not None and begin is not None and last < begin


def _networks(loop: Loop) -> Iterator[str]:
    """Yield, for each optimizer, the name of what it holds."""
    for optimizer in loop.optimizers:
        held = {id(p) for p in parameters_of(optimizer)}
        named = (
            (name or type(model).__name__, module)
            for model in loop.models
            for name, module in model.named_modules()
        )
        own = (name for name, module in named if held == {id(p) for p in module.parameters()})
        yield next(own, "") if held else ""


def _unique(parameters: Any) -> list[Tensor]:
    return list({id(p): p for p in parameters}.values())


def _state(gradient: Tensor | None) -> tuple[Tensor, int] | None:
    """Return what tells whether a gradient is written to: the tensor, and its version."""
    return None if gradient is None else (gradient, gradient._version)


def _is_new(gradient: Tensor | None, was: tuple[Tensor, int] | None) -> bool:
    """Whether there is a gradient, and it was written to since its state ``was`` noted."""
    if gradient is None:
        return False
    return was is None or gradient is not was[0] or gradient._version != was[1]


def _kept(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.detach().clone()


def _nonzero(gradient: Tensor | None) -> bool:
    if gradient is None:
        return False
    values = gradient.detach()
    return bool((values._values() if values.is_sparse else values).count_nonzero())


def _difference(now: Tensor | None, was: Tensor | None) -> Tensor | None:
    if now is None or now.layout is not torch.strided:
        return None
    return now.detach().clone() if was is None else now.detach() - was


def _flat(made: list[_Made], parameters: list[Tensor]) -> Tensor:
    """Return the sum of ``made`` as one vector; what a loss does not reach is zero in it."""
    parts = []
    for which, parameter in enumerate(parameters):
        present = [each.values[which] for each in made]
        values = [value.flatten().float() for value in present if value is not None]
        parts.append(sum(values, parameter.new_zeros(parameter.numel(), dtype=torch.float32)))
    return torch.cat(parts)


def _cosine(one: Tensor, other: Tensor) -> float:
    length = float(one.norm() * other.norm())
    return float(one @ other) / length if length > 0.0 else 0.0
