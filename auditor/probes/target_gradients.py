"""Gradients that flow into what a loss takes for the truth: targets, and weights of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.autograd import LAYERS, POINTWISE, VIEWS, name_of, parents_of, signed_parents_of
from nnaudit.loop.losses import LOSS_FUNCTIONS, SYMMETRIC
from nnaudit.loop.trace import parameters_of, patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap
from nnaudit.report import Location
from nnaudit.targets import callstack

STEPS = 2

_MOST_NODES = 20_000
"""Larger graphs are not walked: it would take longer than the step."""

_NEAR = 64
"""Nodes of arithmetic that are looked at between a loss and the layers."""

_SOFT = {
    F.kl_div: "kl_div",
    F.cross_entropy: "cross_entropy",
    F.binary_cross_entropy: "bce",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
}
"""Losses of probabilities, which say which of their arguments is the truth."""

_SQUARES = frozenset({"square", "pow", "__pow__", "pow_", "square_"})
_SUMS = frozenset(
    {
        "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "subtract", "__sub__",
        "__rsub__", "__isub__", "rsub",
    }
)  # fmt: skip
_PRODUCTS = frozenset({"mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"})

_CHOOSES = ("MaxBackward", "MinBackward", "AmaxBackward", "AminBackward", "MaximumBackward",
            "MinimumBackward", "ClampBackward", "MeanBackward", "SumBackward")  # fmt: skip
_SLICES = ("SliceBackward", "SelectBackward", "SplitBackward", "UnbindBackward", "IndexBackward")
_LOGARITHMS = ("LogBackward", "LogSoftmaxBackward", "LogsumexpBackward", "LogSigmoidBackward",
               "BinaryCrossEntropyWithLogitsBackward", "NllLossBackward")  # fmt: skip
_ADAPTS = (*VIEWS, *_CHOOSES, "NegBackward")


class Flow(StrEnum):
    """Where a gradient goes that should not."""

    ATTRACTION = "attraction"
    BOOTSTRAP = "bootstrap"
    TEACHER = "teacher"
    ADVANTAGE = "advantage"


@dataclass(frozen=True)
class TargetGradient:
    """A gradient into the target of a loss, or into the weight of a log-probability.

    Attributes:
        flow: what the gradient flows into.
            ATTRACTION: nothing is back-propagated but differences (or cosines) of two outputs that
            both have a gradient, of different trained tensors.
            BOOTSTRAP: one side of a regression is an output of the network, the other is data plus
            a factor times another output of the same network.
            TEACHER: the target of a loss of probabilities comes of parameters that nothing else
            trains.
            ADVANTAGE: a logarithm is multiplied by the difference of data and an output that a
            regression trains.
        kind: our name for the loss function; empty for what is written by hand.
        parameters: how many trained tensors it reaches that way.
        location: the user's line.
    """

    flow: Flow
    kind: str
    parameters: int
    location: Location | None


class TargetGradients(Probe[tuple[TargetGradient, ...]]):
    """Looks at the graphs that a few steps go back through."""

    def measure(self, audit: Audit) -> tuple[TargetGradient, ...]:
        """Return what was seen in every step.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        trained = {id(p) for o in loop.optimizers for p in parameters_of(o) if p.requires_grad}
        series: list[list[Reached]] = []
        elsewhere = set[int]()
        for batch in list(consecutive_batches(loop, STEPS)):
            audit.clock.check()
            loop.prepare(batch)
            watch = _Watch(trained)
            with watch:
                loop.step(batch)
            series.append(watch.found)
            elsewhere |= watch.elsewhere
        return tuple(in_every_step(series, elsewhere))


def in_every_step(series: list[list[Reached]], elsewhere: set[int]) -> Iterator[TargetGradient]:
    """Yield what was seen in each of the steps, but what another loss trains properly.

    Args:
        elsewhere: what some loss reached by another way than as a teacher, or by attraction.
    """
    for each in dict.fromkeys(series[0] if series else []):
        alone = each.flow in (Flow.TEACHER, Flow.ATTRACTION)
        if alone and not each.tensors.isdisjoint(elsewhere):
            continue
        if all(any(each.place == other.place for other in more) for more in series[1:]):
            yield TargetGradient(each.flow, each.kind, len(each.tensors), each.location)


@dataclass(frozen=True)
class Reached:
    """What a step's gradients reach by way of a target, by the identities of the tensors."""

    flow: Flow
    kind: str
    tensors: frozenset[int]
    location: Location | None

    @property
    def place(self) -> tuple[Flow, Location | None]:
        """What makes it the same in another step."""
        return self.flow, self.location


class _Watch:
    """Listens to a step's arithmetic, and judges it before each backward pass."""

    def __init__(self, trained: set[int]) -> None:
        self.found: list[Reached] = []
        self.elsewhere: set[int] = set()
        self._trained = trained
        self._tap = Tap()
        self._stack = ExitStack()
        self._depth = 0

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._tap)
            stack.enter_context(patched(torch.autograd, "backward", self._backward))
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _backward(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
            nodes = [x.grad_fn for x in roots if isinstance(x, Tensor) and x.grad_fn is not None]
            if not self._depth:
                found, elsewhere = found_in(self._tap, nodes, self._trained)
                self.found += found
                self.elsewhere |= elsewhere
            self._depth += 1
            try:
                real(tensors, *args, **kwargs)
            finally:
                self._depth -= 1

        return backward


@dataclass
class _Comparison:
    """Two nodes that a loss compares; of a loss of probabilities the second is the truth.

    ``result`` is the node of what came out, which grows with the difference where ``sign`` is 1 and
    falls where it is -1.
    """

    one: Any
    other: Any
    kind: str
    location: Location | None
    result: Any = None
    sign: int = 1


class Tap(ResultTap):
    """Notes the losses of a step and the arithmetic around them, by autograd's nodes.

    Attributes:
        regressions: squares and torch's losses whose sides both have a graph.
        fitted: nodes that a loss compares with data.
        soft: losses of probabilities whose target has a graph.
        sums, varied: nodes that add data; and such as differs between rows.
        factors: nodes that multiply by numbers without a graph.
        products: of two tensors that both have a graph.
        similarities: calls of ``cosine_similarity`` of such.
        scalars: nodes that multiply or divide by one number, with its sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.regressions: list[_Comparison] = []
        self.soft: list[_Comparison] = []
        self.products: list[_Comparison] = []
        self.similarities: list[_Comparison] = []
        self.scalars: dict[Any, int] = {}
        self.fitted: list[Any] = []
        self.sums: dict[Any, Any] = {}
        self.varied: dict[Any, Any] = {}
        self.factors: dict[Any, Any] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Note what the judging asks after, by its function."""
        if made.grad_fn is None:
            return
        if func in LOSS_FUNCTIONS:
            given = [*args, *(kwargs[name] for name in ("input", "target") if name in kwargs)]
            if len(given) >= 2 and all(isinstance(each, Tensor) for each in given[:2]):
                self._compared(func, given[0], given[1], made.grad_fn)
            return
        if func is F.cosine_similarity:
            given = [*args, *(kwargs[name] for name in ("x1", "x2") if name in kwargs)][:2]
            if all(isinstance(each, Tensor) and each.grad_fn is not None for each in given):
                nodes, where = [each.grad_fn for each in given], callstack.user_line()
                self.similarities.append(
                    _Comparison(nodes[0], nodes[1], "cosine_similarity", where, made.grad_fn, -1)
                )
            return
        name = getattr(func, "__name__", "")
        if name in _SQUARES and isinstance(args[0], Tensor):
            self._squared(args[0], args[1] if len(args) > 1 else 2, made.grad_fn)
        elif len(args) >= 2 and (name in _SUMS or name in _PRODUCTS):
            if args[0] is args[1]:
                self._squared(args[0], 2, made.grad_fn)
            else:
                self._combined(name, args[0], args[1], made.grad_fn)

    def _compared(self, func: Any, given: Tensor, target: Tensor, made: Any) -> None:
        if given.grad_fn is None and target.grad_fn is None:
            return
        both = given.grad_fn is not None and target.grad_fn is not None
        seen = _Comparison(given.grad_fn, target.grad_fn, LOSS_FUNCTIONS[func], None, made)
        if both and func in _SOFT:
            seen.location = callstack.user_line()
            self.soft.append(seen)
        elif both and LOSS_FUNCTIONS[func] in SYMMETRIC:
            seen.location = callstack.user_line()
            self.regressions.append(seen)
        elif not both:
            self.fitted.append(given.grad_fn if given.grad_fn is not None else target.grad_fn)

    def _squared(self, base: Any, exponent: Any, made: Any) -> None:
        node = base.grad_fn if isinstance(base, Tensor) else None
        if node is None or exponent != 2:
            return
        self.fitted.append(node)
        sides = parents_of(node)
        if name_of(node).startswith(("SubBackward", "RsubBackward")) and len(sides) == 2:
            where = callstack.user_line()
            self.regressions.append(_Comparison(sides[0], sides[1], "", where, made))

    def _combined(self, name: str, one: Any, other: Any, made: Any) -> None:
        nodes = [x.grad_fn if isinstance(x, Tensor) else None for x in (one, other)]
        graphs = [node for node in nodes if node is not None]
        if len(graphs) == 2 and name in _PRODUCTS:
            where = callstack.user_line()
            self.products.append(_Comparison(graphs[0], graphs[1], "", where, made, -1))
        elif len(graphs) == 1:
            plain = other if nodes[0] is not None else one
            if name in _PRODUCTS:
                self.factors[made] = graphs[0]
                if (sign := _sign(plain)) != 0:
                    self.scalars[made] = sign
            elif isinstance(plain, Tensor) and not plain.requires_grad and plain.numel() > 1:
                self.sums[made] = graphs[0]
                if _varies(plain):
                    self.varied[made] = graphs[0]


def _sign(factor: Any) -> int:
    """Return the sign of a single number; 0 for anything else."""
    if isinstance(factor, Tensor):
        if factor.numel() != 1:
            return 0
        factor = float(factor.detach())
    return (factor > 0) - (factor < 0) if isinstance(factor, (int, float)) else 0


def _varies(values: Tensor) -> bool:
    if values.layout is not torch.strided:
        return False
    flat = values.detach().flatten()
    return bool((flat != flat[0]).any())


# --- judging --------------------------------------------------------------------------------------


@dataclass
class _Graph:
    """The trained tensors under nodes, walked where they are asked for."""

    trained: set[int]
    known: dict[Any, frozenset[int]] = field(default_factory=dict)

    def leaves(self, node: Any, without: Iterable[Any] = ()) -> frozenset[int]:
        """Return the trained tensors under ``node``, by paths that avoid the nodes ``without``."""
        avoided = set(without)
        if avoided or node not in self.known:
            variables = (getattr(each, "variable", None) for each in _under([node], avoided))
            found = frozenset(id(v) for v in variables if v is not None and id(v) in self.trained)
            if avoided:
                return found
            self.known[node] = found
        return self.known[node]


def found_in(tap: Tap, roots: list[Any], trained: set[int]) -> tuple[list[Reached], frozenset[int]]:
    """Return the gradients into targets of what is back-propagated from ``roots``.

    And what else it reaches: by ways that do not lead through the target of a loss.
    """
    graph = _Graph(trained)
    targets = [each.other for each in tap.soft]
    elsewhere = frozenset[int]().union(*(graph.leaves(root, targets) for root in roots))
    if not (tap.regressions or tap.soft or tap.products or tap.similarities):
        return [], elsewhere
    used = set(_under(roots, set()))
    if len(used) >= _MOST_NODES:
        return [], elsewhere
    judges = (
        (Flow.BOOTSTRAP, tap.regressions, _bootstraps),
        (Flow.TEACHER, tap.soft, _taught),
        (Flow.ADVANTAGE, tap.products, _weighs),
    )
    found = [
        Reached(flow, seen.kind, reached, seen.location)
        for flow, comparisons, judge in judges
        for seen in comparisons
        if seen.one in used and seen.other in used and (reached := judge(tap, graph, seen))
    ]
    attracted = list(_attracted(tap, graph, roots, used))
    return found + attracted, frozenset() if attracted else elsewhere


def _attracted(tap: Tap, graph: _Graph, roots: list[Any], used: set[Any]) -> Iterator[Reached]:
    """Yield the comparisons, where what is back-propagated is nothing but attraction.

    Two that are computed in the same way (two views, whitened) may keep their spread by that.
    """
    compared = {
        each.result: each
        for each in (*tap.regressions, *tap.similarities, *tap.products)
        if each.result is not None and (each not in tap.products or _are_normalised(each))
    }
    met = [each for root in roots for each in _terms(tap, root, compared)]
    if not met or None in met or any(_anchors(node) for node in used):
        return
    for seen in dict.fromkeys(each.result for each in met if each is not None):
        sides = (compared[seen].one, compared[seen].other)
        if any(node in tap.sums for side in sides for node in _lineage(side)):
            continue  # data plus an output is to meet the other one
        one, other = map(graph.leaves, sides)
        if one and other and one != other:
            least = min(one, other, key=len)
            yield Reached(Flow.ATTRACTION, compared[seen].kind, least, compared[seen].location)


def _terms(tap: Tap, root: Any, compared: dict[Any, _Comparison]) -> Iterator[_Comparison | None]:
    """Yield the comparisons that ``root`` is a sum of; None for whatever else it holds."""
    todo, seen = [(root, 1)], set[Any]()
    while todo:
        node, sign = todo.pop()
        name = name_of(node)
        if (found := compared.get(node)) is not None:
            yield found if found.sign == sign else None
        elif node not in seen and name.startswith(_ADDS):
            seen.add(node)
            if name.startswith("MulBackward"):
                sign *= tap.scalars.get(node, 0)
            todo += [(parent, sign * theirs) for parent, theirs in signed_parents_of(node)]
        elif node not in seen:
            yield None


_ADDS = (
    "NegBackward", "MeanBackward", "SumBackward", "DivBackward", "MulBackward", "AddBackward",
    "SubBackward", "RsubBackward", *VIEWS,
)  # fmt: skip

_WHITENS = (
    "LinalgCholeskyExBackward", "LinalgInvExBackward", "LinalgEighBackward", "LinalgSvdBackward",
    "LinalgQrBackward", "LinalgSolveExBackward",
)  # fmt: skip


def _anchors(node: Any) -> bool:
    """Whether ``node`` whitens, or is an input by which the network itself is differentiated."""
    variable = getattr(node, "variable", None)
    free = variable is not None and not isinstance(variable, nn.Parameter)
    return free or name_of(node).startswith(_WHITENS)


def _are_normalised(seen: _Comparison) -> bool:
    """Whether both factors of a product were divided by their norms just before."""
    return all(_is_normalised(node) for node in (seen.one, seen.other))


def _is_normalised(node: Any) -> bool:
    if not name_of(node).startswith("DivBackward") or len(parents := parents_of(node)) != 2:
        return False
    divisor = parents[1]
    for _ in range(4):
        if "Norm" in name_of(divisor):
            return True
        divisor = next(iter(parents_of(divisor)), None)
        if divisor is None:
            return False
    return False


def _bootstraps(tap: Tap, graph: _Graph, seen: _Comparison) -> frozenset[int]:
    """Return what a target reaches that is data plus a factor times an output."""
    for online, target in ((seen.one, seen.other), (seen.other, seen.one)):
        made, added, scaled, cut = _reduced(tap, target)
        plain, too, _, cut_too = _reduced(tap, online)
        if not (added and scaled) or too:
            continue
        mine, theirs = graph.leaves(plain), graph.leaves(made)
        if not mine or not theirs or not (mine <= theirs or theirs <= mine):
            continue
        if made is plain and not (cut and cut_too):
            continue  # one output, corrected by itself
        if made is plain or not _share_calls(plain, made):
            return theirs
    return frozenset()


def _reduced(tap: Tap, node: Any) -> tuple[Any, bool, bool, bool]:
    """Follow ``node`` down to the layers.

    Returns the node there; whether data was added on the way, and the output before multiplied by
    numbers; whether it is a part of what the layers made.
    """
    added = scaled = cut = False
    for _ in range(_NEAR):
        if node in tap.sums:
            added, node = True, tap.sums[node]
        elif node in tap.factors:
            scaled, node = scaled or added, tap.factors[node]
        elif name_of(node).startswith(_ADAPTS) and (parents := parents_of(node)):
            cut = cut or name_of(node).startswith(_SLICES)
            node = parents[0]
        else:
            break
    return node, added, scaled, cut


def _share_calls(one: Any, other: Any) -> bool:
    """Whether two outputs come of a common intermediate result: of one call of the network."""
    mine = {node for node in _under([one], set()) if not hasattr(node, "variable")}
    return any(node in mine for node in _under([other], set()))


def _taught(tap: Tap, graph: _Graph, seen: _Comparison) -> frozenset[int]:
    """Return what the truth of a loss is computed from: another network than what learns it."""
    learner, teacher = graph.leaves(seen.one), graph.leaves(seen.other)
    layers = any(name_of(node).startswith(LAYERS) for node in _under([seen.other], set()))
    # Labels that are parameters themselves are learnt on purpose.
    return teacher if learner and layers and not learner & teacher else frozenset()


def _weighs(tap: Tap, graph: _Graph, seen: _Comparison) -> frozenset[int]:
    """Return what the weight of a logarithm reaches: data minus what a regression trains."""
    for policy, weight in ((seen.one, seen.other), (seen.other, seen.one)):
        near = set(_lineage(policy))
        if not any(name_of(node).startswith(_LOGARITHMS) for node in near):
            continue
        for difference in _lineage(weight):
            value = tap.varied.get(difference)
            if value is None or difference in near or not _is_difference(difference):
                continue
            makers = {_reduced(tap, node)[0] for node in tap.fitted}
            regressed = difference in tap.fitted or _reduced(tap, value)[0] in makers
            if regressed and (reached := graph.leaves(value)):
                return reached
    return frozenset()


def _is_difference(node: Any) -> bool:
    return bool(name_of(node).startswith(("SubBackward", "RsubBackward")))


def _lineage(node: Any) -> Iterator[Any]:
    """Yield ``node`` and the nodes of arithmetic under it, nearest first, down to the layers."""
    todo, seen = [node], {node}
    while todo and len(seen) <= _NEAR:
        each = todo.pop(0)
        yield each
        if name_of(each).startswith((*VIEWS, *POINTWISE, *_CHOOSES, "ExpBackward")):
            fresh = [parent for parent in parents_of(each) if parent not in seen]
            seen.update(fresh)
            todo += fresh


def _under(roots: list[Any], avoided: set[Any]) -> Iterator[Any]:
    """Yield the nodes of a graph, each once, up to a limit."""
    todo, seen = list(roots), set(roots)
    while todo and len(seen) < _MOST_NODES:
        node = todo.pop()
        if node in avoided:
            continue
        yield node
        for parent in parents_of(node):
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
