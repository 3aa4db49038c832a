"""Calling the model again with other inputs: what its outputs depend on, and what they do not.

The inputs are those with which the model was really called in the training, as a hook sees them,
so they are right for any loop. A sample is perturbed by putting another real sample in its place,
a position in a sequence by another value seen there: what comes out is as valid as what was
there, be it pixels, token ids, lengths, masks or numbers of categories.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, default_collate

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import Loop, seed_everything
from nnaudit.loop.batch_target import target_of
from nnaudit.loop.control import constant_lr
from nnaudit.loop.losses import LossCall
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.noise import eps_of, tolerance
from nnaudit.report import Location
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of the model."""

WARM_UP = 5
"""Steps after which a branch that starts at zero has left it, one layer of zeros after another."""

_MANY, _SUMS = 2**22, 16
"""Outputs of more elements are replaced by so many sums over their last dimension."""

_TRACE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Call:
    """How the model is called on the first batch.

    Attributes:
        batch: as the loader made it.
        inputs: what the model is called with, in memory of its own.
        target: what the output is compared with; None where that is not known.
        loss_calls: torch's loss functions called on the way.
        error: what the loss raised in eval mode; the call of the model is known nevertheless.
    """

    batch: Any
    inputs: Inputs
    target: Any
    loss_calls: tuple[LossCall, ...] = ()
    error: UserCodeError | None = None


class ModelCall(Probe[Call | None]):
    """The arguments of the model's first call on the first batch; None if it is never called."""

    def measure(self, audit: Audit) -> Call | None:
        """Run one forward pass, without a step.

        Raises:
            UserCodeError: the user's code raised before it called the model.
        """
        loop = audit.loop
        return call_on(loop, next(consecutive_batches(loop, 1)))


def call_on(loop: Loop, batch: Any) -> Call | None:
    """Return how the model is called first on ``batch``, by a forward pass; None if it is not.

    Raises:
        UserCodeError: the user's code raised before it called the model.
    """
    if isinstance(loop.model, torch.jit.ScriptModule):  # no hook can be put on it
        fed = loop.split_batch(batch)
        return Call(batch, batches.clone((fed.args, fed.kwargs)), fed.target)
    seen: list[Inputs] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not seen:
            seen.append((batches.clone(args), batches.clone(kwargs)))

    handle = loop.model.register_forward_pre_hook(note, with_kwargs=True)
    error: UserCodeError | None = None
    loss_calls: tuple[LossCall, ...] = ()
    try:
        loss_calls = loop.forward(batch).loss_calls
    except UserCodeError as raised:
        if not seen:
            raise
        error = raised
    finally:
        handle.remove()
    if not seen:
        return None
    return Call(batch, seen[0], target_of(loop, batch), loss_calls, error)


class Replay:
    """Calls the model again and again, each time from the very same state, in eval mode by default.

    Use as a context manager: it starts from the state it is entered in and returns to it. Random
    numbers are the same in every call too.
    """

    def __init__(self, loop: Loop, call: Call, *, train: bool = False) -> None:
        self._loop = loop
        self._train = train
        self._inputs = call.inputs
        self._stack = ExitStack()

    def __enter__(self) -> Replay:
        with ExitStack() as stack:
            self._snapshot = stack.enter_context(preserved(Subjects(models=self._loop.models)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, inputs: Inputs | None = None, *, seed: int | None = None) -> Any:
        """Return the model's output for ``inputs`` (default: the real ones), without gradients.

        ``seed`` draws other random numbers than the other calls do.

        Raises:
            UserCodeError: the model raised.
        """
        with torch.no_grad():
            return self._run(inputs, seed)

    def _run(self, inputs: Inputs | None, seed: int | None = None) -> Any:
        self._snapshot.restore()
        args, kwargs = self._inputs if inputs is None else inputs
        self._loop.model.train(self._train)
        if seed is not None:
            seed_everything(seed)
        with user_code("calling the model again"):
            return self._loop.model(*batches.clone(args), **batches.clone(kwargs))

    def traced(self, inputs: Inputs | None = None) -> list[tuple[str, Tensor]]:
        """Return the first floating output of each module, in order of completion.

        Empty when they are too large to be kept.

        Raises:
            UserCodeError: the model raised.
        """
        seen: list[tuple[str, Tensor]] = []
        self._snapshot.restore()
        with ExitStack() as stack, torch.no_grad():
            for name, module in self._loop.model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    hook = _tracer(name, seen)
                    stack.callback(module.register_forward_hook(hook).remove)
            # Restoring would take the hooks away again.
            self._loop.model.train(self._train)
            args, kwargs = self._inputs if inputs is None else inputs
            with user_code("calling the model again"):
                self._loop.model(*batches.clone(args), **batches.clone(kwargs))
        return [] if sum(t.nbytes for _, t in seen) > _TRACE_BYTES else seen

    def reduction_over_samples(self, count: int) -> Reduction | None:
        """Return the first reduction over dimension 0, where ``count`` samples are; None if none.

        Raises:
            UserCodeError: the model raised.
        """
        mode = _Reductions(count)
        with mode:
            self()
        return mode.first

    def influence(self, pick: Callable[[Any], Tensor], count: int) -> Tensor | None:
        """Return the size of the gradient of ``pick(output)`` by sample of the inputs, shape (N,).

        ``pick`` returns a scalar. Token ids take no gradient: what their embedding layers return
        stands for them. None where no gradient can be had: nothing differentiable is in reach.
        """
        leaves: list[Tensor] = []
        with torch.enable_grad(), ExitStack() as stack:
            self._snapshot.restore()
            for module in self._loop.model.modules():
                if isinstance(module, nn.Embedding):
                    stack.callback(module.register_forward_hook(_cut(leaves)).remove)
            args, kwargs = batches.map_leaves(batches.clone(self._inputs), _leaf(leaves))
            self._loop.model.train(self._train)
            try:
                output = pick(self._loop.model(*args, **kwargs))
                grads = torch.autograd.grad(output, leaves, allow_unused=True)
            except Exception:  # recurrent kernels of CUDA refuse in eval mode, users' code anything
                return None
        found = [_by_sample(grad, count) for grad in grads if grad is not None]
        sized = [values for values in found if values is not None]
        return torch.stack(sized).amax(0) if sized else None


@dataclass(frozen=True)
class Reduction:
    """A sum, mean, maximum, norm, softmax, ... over the samples of a batch."""

    name: str
    location: Location | None


_REDUCING = {
    **dict.fromkeys(
        ("mean", "sum", "std", "var", "max", "min", "amax", "amin", "median", "prod", "cumsum",
         "logsumexp", "softmax", "log_softmax", "softmin"), 1,
    ),
    **dict.fromkeys(("norm", "vector_norm", "normalize"), 2),
}  # fmt: skip
"""Functions that put what lies along a dimension together, and where their ``dim`` stands."""

_ALONG_ONE = ("softmax", "log_softmax", "softmin", "normalize", "cumsum")
"""Those of them that without a ``dim`` do not take all dimensions."""


class _Reductions(TorchFunctionMode):
    """Remembers the first reduction over the samples that the user's code calls."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self.first: Reduction | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.first is None and name in _REDUCING and self._is_over_samples(name, args, kwargs):
            self.first = Reduction(name, callstack.user_line())
        return func(*args, **kwargs)

    def _is_over_samples(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        values = args[0] if args else kwargs.get("input")
        if not isinstance(values, Tensor) or values.shape[:1] != (self._count,):
            return False
        # Similarities of all pairs may be normalised along either side.
        if values.shape[:2] == (self._count, self._count):
            return False
        place = _REDUCING[name]
        dim = kwargs.get("dim", args[place] if len(args) > place else None)
        if dim is None and "softm" in name:  # torch's own choice where none is given
            dim = 0 if values.ndim in (1, 3) else 1
        if dim is None:
            return name not in _ALONG_ONE and values.ndim > 1
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        return any(isinstance(each, int) and each % values.ndim == 0 for each in dims)


def _tracer(name: str, seen: list[tuple[str, Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensor = next((t for _, t in batches.tensors(output) if t.is_floating_point()), None)
        if tensor is not None and tensor.layout is torch.strided:
            seen.append((name, tensor.detach().cpu().clone()))

    return hook


def _cut(leaves: list[Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    return hook


def _leaf(leaves: list[Tensor]) -> Callable[[Any], Any]:
    def make(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        leaf = value.detach().requires_grad_()
        leaves.append(leaf)
        # Users may write to their inputs in place, which a leaf does not allow.
        return leaf.clone()

    return make


def _by_sample(gradient: Tensor, count: int) -> Tensor | None:
    for dim in (0, 1):
        if gradient.ndim > dim and gradient.shape[dim] == count:
            return gradient.movedim(dim, 0).reshape(count, -1).abs().amax(1).float()
    return None


# --- where the samples are -----------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Along which dimension of the model's inputs the samples lie.

    ``certain`` says whether the loader proves it; otherwise rows may be time steps or nodes.
    """

    dim: int
    count: int
    certain: bool


_GRAPH = "the model gets a graph, whose nodes depend on each other"


def layout_of(loop: Loop, call: Call) -> Layout | str:
    """Return where the samples are in the inputs of ``call``, or why that is not known."""
    tensors = [t for _, t in batches.tensors(call.inputs) if t.ndim > 0]
    if reason := _inseparable(call.inputs, tensors):
        return reason
    shift = shift_of(call)
    if shift is not None and shift.shifted:
        dim = 1 - shift.time
        return Layout(dim, shift.tokens.shape[dim], True)
    loader, first = loop.train_loader, tensors[0]
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        if _is_adjacency(tensors, first.shape[0]):
            return _GRAPH
        # What a script makes may be a set of pictures: each is a sample if it has a target.
        each = isinstance(call.target, Tensor) and call.target.shape[:1] == first.shape[:1]
        return Layout(0, first.shape[0], first.ndim >= 4 and (each or not loop.makes_batches))
    stacked = loader.collate_fn is default_collate
    size = batches.size(call.batch)
    count = size if stacked or not loader.batch_size else loader.batch_size
    dims = [dim for dim in (0, 1) if first.ndim > dim and first.shape[dim] == count]
    if not dims:
        return "the inputs of the model have no batch dimension"
    return Layout(dims[0], count, stacked or len(dims) == 1)


def _inseparable(inputs: Inputs, tensors: list[Tensor]) -> str:
    if not tensors:
        return "the model gets no tensor with a batch dimension"
    if any(t.layout is not torch.strided for t in tensors) or _opaque(inputs):
        return "the model gets objects that cannot be split into samples"
    if any(_is_edge_list(t) for t in tensors):
        return _GRAPH
    return ""


def _opaque(inputs: Inputs) -> bool:
    return any(
        hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor) and not callable(leaf)
        for _, leaf in batches.leaves(inputs)
    )


def _is_adjacency(tensors: list[Tensor], rows: int) -> bool:
    """Whether one input relates every row of another to every row: nodes of one graph."""
    related = [tuple(t.shape) == (rows, rows) for t in tensors if t.shape[0] == rows]
    return any(related) and not all(related)


def _is_edge_list(tensor: Tensor) -> bool:
    whole = not (tensor.is_floating_point() or tensor.dtype is torch.bool)
    return whole and tensor.ndim == 2 and tensor.shape[0] == 2 and tensor.shape[1] > 2


def samples(inputs: Inputs, layout: Layout, order: Tensor, *, states: bool = False) -> Inputs:
    """Return ``inputs`` with the samples taken in the given ``order`` (indices, shape (N,)).

    With ``states`` also in tensors of the shape of a recurrent state, (layers, N, size).
    """

    def take(leaf: Any) -> Any:
        if states and isinstance(leaf, Tensor) and is_state(leaf, layout):
            return leaf.index_select(1, order.to(leaf.device))
        if isinstance(leaf, Tensor) and _has_samples(leaf, layout):
            return leaf.index_select(
                layout.dim if leaf.ndim > layout.dim else 0, order.to(leaf.device)
            )
        if isinstance(leaf, list) and len(leaf) == layout.count:
            return [leaf[i] for i in order.tolist()]
        return leaf

    changed: Inputs = batches.map_leaves(inputs, take)
    return changed


def is_state(tensor: Tensor, layout: Layout) -> bool:
    """Whether ``tensor`` may be a recurrent state beside inputs (N, ...): of (layers, N, size)."""
    shape = tensor.shape
    return layout.dim == 0 and len(shape) == 3 and shape[1] == layout.count != shape[0]


def _has_samples(tensor: Tensor, layout: Layout) -> bool:
    if tensor.ndim > layout.dim:
        return tensor.shape[layout.dim] == layout.count
    # Beside (T, N) tokens there may be (N,) lengths.
    return tensor.ndim == 1 and tensor.shape[0] == layout.count


def stand_in(inputs: Inputs, layout: Layout, sample: int) -> Tensor | None:
    """Return an order in which another, different sample stands in place of ``sample``."""
    order = torch.arange(layout.count)
    for step in range(1, layout.count):
        order[sample] = (sample + step) % layout.count
        if differ(samples(inputs, layout, order), inputs):
            return order
    return None


def differ(first: Any, second: Any) -> bool:
    """Whether two structures of equal shapes hold different values anywhere."""
    pairs = zip(batches.tensors(first), batches.tensors(second), strict=True)
    return any(not _is_equal(a, b) for (_, a), (_, b) in pairs)


def _is_equal(a: Tensor, b: Tensor) -> bool:
    strided = a.layout is torch.strided and b.layout is torch.strided
    return torch.equal(a, b) if strided else batches.same_values(a, b)


def outputs_of(output: Any) -> Tensor | None:
    """Return all floating outputs as one flat tensor; None when there is none."""
    found = []
    for _, tensor in batches.tensors(output):
        values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        if values.is_floating_point() and values.layout is torch.strided:
            found.append(compact(values).reshape(-1))
    return torch.cat(found) if found else None


def compact(values: Tensor) -> Tensor:
    """Return ``values`` in double precision on the CPU, a projection of them where they are many.

    Logits over a large vocabulary would take gigabytes: a few random sums over the last dimension
    change whenever one of its elements does, and not otherwise.
    """
    values = values.detach()
    if values.numel() > _MANY and values.shape[-1] > 4 * _SUMS:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(values.shape[-1], _SUMS, generator=generator)
        values = values.float() @ weights.to(values.device)
    return values.cpu().double()


def noise_floor(replay: Replay, model: nn.Module, base: Any) -> float:
    """Return the tolerance for the floating outputs, from running the same call once more."""
    first, second = outputs_of(base), outputs_of(replay())
    if first is None or second is None or first.shape != second.shape:
        return float("inf")
    return tolerance(first, second, eps=max(eps_of(model), _coarsest(base)))


def _coarsest(output: Any) -> float:
    kinds = [t.dtype for _, t in batches.tensors(output) if t.is_floating_point()]
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def warmed_up(audit: Audit) -> int:
    """Take :data:`WARM_UP` steps at the author's own learning rate; return how many were taken.

    Raises:
        UserCodeError: a step raised.
    """
    some = list(consecutive_batches(audit.loop, WARM_UP))
    with constant_lr(audit.loop):
        for batch in some:
            audit.clock.check()
            audit.loop.step(batch)
    return len(some)


# --- next-token models ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift:
    """How a sequence among the model's inputs is related to the target.

    Attributes:
        path: where the sequence is in the inputs, as :func:`nnaudit.targets.batch.leaves` says it.
        tokens: the sequence, ids (B, T) or (T, B), or numbers with more dimensions.
        time: its dimension of time.
        shifted: the target is the next element; otherwise it is the very same one.
        valid: which positions have a target that counts, shape (B, T).
    """

    path: str
    tokens: Tensor
    time: int
    shifted: bool
    valid: Tensor


LEAST = 16
"""Positions that must have a target: fewer could match by accident."""


def shift_of(call: Call) -> Shift | None:
    """Return the input that the target continues or repeats; continuing counts first."""
    targets = [c.arguments.get("target") for c in call.loss_calls]
    targets += [t for _, t in batches.tensors(call.target)] if call.target is not None else []
    found = [
        shift
        for path, tokens in batches.tensors(call.inputs)
        for target in targets
        if isinstance(target, Tensor)
        and (shift := _compared(path, tokens.detach(), target.detach().to(tokens.device)))
    ]
    return next((s for s in found if s.shifted), next(iter(found), None))


def _compared(path: str, tokens: Tensor, target: Tensor) -> Shift | None:
    whole = not tokens.is_floating_point()
    if tokens.dtype is torch.bool or tokens.is_complex() or tokens.ndim < 2:
        return None
    if tokens.layout is not torch.strided or target.layout is not torch.strided:
        return None
    if whole and (tokens.ndim != 2 or target.is_floating_point()):
        return None
    if len(torch.unique(tokens)) < 4:
        return None
    for time in (1, 0):
        ids = tokens.transpose(0, 1) if time == 0 else tokens
        shift = _at(path, tokens, ids, target, time)
        if shift is not None:
            return shift
    return None


def _at(path: str, tokens: Tensor, ids: Tensor, target: Tensor, time: int) -> Shift | None:
    length = ids.shape[1]
    answer = _aligned(target, ids, time)
    if answer is None or length < 2:
        return None
    valid = (
        (answer >= 0)
        if not answer.is_floating_point()
        else torch.ones_like(answer, dtype=torch.bool)
    )
    if valid.ndim > 2:
        valid = valid.flatten(2).all(2)
    width = answer.shape[1]
    ahead = _share(answer[:, : length - 1], ids[:, 1 : width + 1], valid[:, : length - 1])
    same = _share(answer, ids[:, :width], valid)
    if ahead >= 0.9 and ahead > same:
        return Shift(path, tokens, time, True, valid)
    if same == 1.0 and ahead < 1.0 and width == length and not ids.is_floating_point():
        return Shift(path, tokens, time, False, valid)
    return None


def _aligned(target: Tensor, ids: Tensor, time: int) -> Tensor | None:
    """Return ``target`` as (B, T, ...) or (B, T - 1, ...), or None when it has another size."""
    rows, length, rest = ids.shape[0], ids.shape[1], ids.shape[2:]
    inner = ids[0, 0].numel()
    for width in (length, length - 1):
        if width < 1 or target.numel() != rows * width * inner:
            continue
        if time == 1:
            return target.reshape(rows, width, *rest)
        return target.reshape(width, rows, *rest).transpose(0, 1)
    return None


def _share(answer: Tensor, ids: Tensor, valid: Tensor) -> float:
    """The share of the valid positions that are equal; 0 when too few are valid."""
    equal = answer == ids
    equal = equal.flatten(2).all(2) if equal.ndim > 2 else equal
    counted = int(valid.sum())
    return float((equal & valid).sum()) / counted if counted >= LEAST else 0.0


def position_changed(
    call: Call, shift: Shift, row: int, position: int, padding: set[int]
) -> Inputs | None:
    """Return the inputs with another value at one position of one row; None if there is none."""
    by_row = shift.tokens.transpose(0, 1) if shift.time == 0 else shift.tokens
    now = by_row[row, position]
    if shift.tokens.is_floating_point():
        others = by_row.reshape(-1, *by_row.shape[2:])
        new = others[(others != now).reshape(len(others), -1).any(1)]
    else:
        if int(now) in padding:
            return None
        seen = torch.unique(by_row)
        new = seen[[int(v) not in padding and int(v) != int(now) for v in seen]]
    if not len(new):
        return None
    changed = shift.tokens.clone()
    view = changed.transpose(0, 1) if shift.time == 0 else changed
    view[row, position] = new[len(new) // 2]
    return _replaced(call.inputs, shift.path, changed)


def _replaced(inputs: Inputs, path: str, value: Tensor) -> Inputs:
    paths = iter([p for p, _ in batches.leaves(inputs)])
    changed: Inputs = batches.map_leaves(
        inputs, lambda leaf: value if next(paths) == path else leaf
    )
    return changed


def padding_of(model: nn.Module, shift: Shift) -> set[int]:
    """Return the ids that mean no token: declared by an embedding, or where no target counts."""
    declared = {
        int(m.padding_idx)
        for m in model.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.padding_idx is not None
    }
    if shift.tokens.is_floating_point():
        return set()
    by_row = shift.tokens.transpose(0, 1) if shift.time == 0 else shift.tokens
    idle = by_row[:, : shift.valid.shape[1]][~shift.valid]
    ids, counts = torch.unique(idle, return_counts=True)
    # What fills much of the places that do not count is a filler.
    return declared | {int(i) for i, n in zip(ids, counts, strict=True) if 4 * int(n) >= len(idle)}
