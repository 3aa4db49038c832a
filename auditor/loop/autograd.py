"""What autograd's graph says of a tensor: what made it, and how deep the network under it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VIEWS = (
    "AliasBackward", "AsStridedBackward", "CloneBackward", "ExpandBackward", "GatherBackward",
    "IndexBackward", "IndexSelectBackward", "MaskedSelectBackward", "PermuteBackward",
    "ReshapeAliasBackward", "SelectBackward", "SliceBackward", "SplitBackward",
    "SplitWithSizesBackward", "SqueezeBackward", "TBackward", "ToCopyBackward",
    "TransposeBackward", "UnbindBackward", "UnsafeSplitBackward", "UnsafeViewBackward",
    "UnsqueezeBackward", "ViewBackward",
)  # fmt: skip
"""Autograd nodes that move values about without changing them."""

_JOINS = ("CatBackward", "StackBackward")
"""Nodes that put the values of all their parents side by side."""

POINTWISE = (
    "AcosBackward", "AddBackward", "ClampBackward", "ClampMaxBackward", "ClampMinBackward",
    "CosBackward", "DivBackward", "MaskedFillBackward", "MulBackward", "NegBackward",
    "PowBackward", "RsubBackward", "ScatterBackward", "SqrtBackward", "SubBackward",
    "WhereBackward",
)  # fmt: skip
"""Nodes of arithmetic that authors do on finished outputs: scaling, margins, masks."""

_PRODUCTS = ("MmBackward", "BmmBackward")
"""Products without a bias: similarities of two sets of vectors among them."""

LAYERS = (
    "AddmmBackward", "BaddbmmBackward", "BmmBackward", "ConvolutionBackward", "EmbeddingBackward",
    "LinearBackward", "MkldnnRnnLayerBackward", "MmBackward", "MvBackward", "TrilinearBackward",
    "CudnnRnnBackward",
)  # fmt: skip
"""Nodes that multiply by weights."""

_LINEAGE = 64
"""How many nodes near a loss are remembered."""

_GRAPH = 200_000
"""Larger graphs are not walked: it would take longer than the step."""


@dataclass(frozen=True)
class Graph:
    """The autograd graph between the data and the model's output.

    Attributes:
        depth: weight layers on the shortest path from the data to the output: shortcuts around
            layers make it small.
        operations: the names of all its nodes, without the number at their end.
    """

    depth: int
    operations: frozenset[str]


def producer_of(tensor: Tensor) -> str:
    """Return the name of the autograd node that computed ``tensor``, looking through views."""
    node = _maker(tensor.grad_fn)
    return name_of(node) if node is not None else ""


def name_of(node: Any) -> str:
    """Return the name of an autograd node, with the number at its end."""
    return str(node.name()).removeprefix("torch::autograd::")


def parents_of(node: Any) -> list[Any]:
    """Return the autograd nodes whose results ``node`` was computed from."""
    return [parent for parent, _ in node.next_functions if parent is not None]


def signed_parents_of(node: Any) -> list[tuple[Any, int]]:
    """Return the parents of a node that adds, each with the sign (1 or -1) by which it enters."""
    name = name_of(node)
    turned = name.startswith(("NegBackward", "RsubBackward"))
    parents = [parent for parent, _ in node.next_functions]
    signs = [
        -1 if turned or (name.startswith("SubBackward") and place == 1) else 1
        for place in range(len(parents))
    ]
    return [
        (parent, sign) for parent, sign in zip(parents, signs, strict=True) if parent is not None
    ]


def _maker(node: Any, joins: int = 2) -> Any:
    """Return the node whose values ``node`` holds: itself, or what views and joins lead to."""
    while node is not None:
        name = name_of(node)
        if name.startswith(_JOINS) and joins:
            makers = [_maker(parent, joins - 1) for parent in parents_of(node)]
            same = len({name_of(maker) if maker is not None else "" for maker in makers}) == 1
            return makers[0] if same else node
        if not name.startswith(VIEWS):
            return node
        node = next(iter(parents_of(node)), None)
    return None


def provenance(tensor: Any) -> dict[str, Any]:
    """Return ``producer``, ``before`` and ``lineage`` of a loss's input."""
    maker = _maker(tensor.grad_fn) if isinstance(tensor, Tensor) else None
    if maker is None:
        return {}
    first = next(iter(parents_of(maker)), None)
    source = _maker(first)
    return {
        "producer": name_of(maker),
        "before": name_of(source) if source is not None else "",
        "lineage": tuple(_lineage(maker)),
    }


def _lineage(maker: Any) -> Iterator[str]:
    """Yield the names of the nodes around ``maker``, nearest first, up to the nearest layers."""
    todo, seen = deque([(maker, 0)]), {maker}
    while todo and len(seen) <= _LINEAGE:
        node, products = todo.popleft()
        name = name_of(node)
        yield name
        products += name.startswith(_PRODUCTS)
        if products <= 1 and name.startswith((*VIEWS, *_JOINS, *POINTWISE, *_PRODUCTS)):
            for parent in parents_of(node):
                if parent not in seen:
                    seen.add(parent)
                    todo.append((parent, products))


def graph_of(tensor: Tensor) -> Graph | None:
    """Walk the autograd graph of ``tensor``; None when it has none or a very large one."""
    order = _topological(tensor.grad_fn)
    if not order:
        return None
    depths: dict[Any, float] = {}
    for node in order:
        name = name_of(node)
        above = [depths[parent] for parent in parents_of(node)]
        # Infinite: made of parameters alone, so no path from the data leads here.
        depth = min(above, default=math.inf)
        if name.startswith(LAYERS) and any(math.isinf(each) for each in above):
            depth = 1.0 if math.isinf(depth) else depth + 1.0
        depths[node] = depth
    depth = depths[order[-1]]
    operations = frozenset(name_of(node).rstrip("0123456789") for node in order)
    return Graph(0 if math.isinf(depth) else int(depth), operations)


def _topological(root: Any) -> list[Any]:
    """Return the nodes under ``root``, each after its parents; empty when there are too many."""
    order: list[Any] = []
    seen: set[Any] = set()
    todo = [(root, False)] if root is not None else []
    while todo:
        node, parents_done = todo.pop()
        if parents_done:
            order.append(node)
            continue
        if node in seen:
            continue
        if len(seen) > _GRAPH:
            return []
        seen.add(node)
        todo.append((node, True))
        todo += [(parent, False) for parent in parents_of(node) if parent not in seen]
    return order


def in_transform() -> bool:
    """Whether a transform of torch.func (``vmap``, ``grad``) is at work.

    The tensors within it stand for others, and cannot be looked at, nor kept until it is over.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None
