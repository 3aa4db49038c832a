"""What a script evaluates its network on: with which loader, or on which batches of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from nnaudit.loop.losses import LOSS_FUNCTIONS
from nnaudit.loop.script.channel import Call
from nnaudit.loop.script.listening import Listening
from nnaudit.loop.script.mapping import find
from nnaudit.loop.script.naming import (
    TRAINING,
    VALIDATION,
    Named,
    is_held,
    meaning,
    named_values,
    names_of,
    purpose_of,
    same_memory,
    words_of_data,
)
from nnaudit.loop.script.patches import is_wrapper
from nnaudit.loop.script.training_objects import (
    Registers,
    TrainingObjects,
    recorded,
    unwrapped,
)
from nnaudit.report import Location
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

MOST_CALLS = 256
"""Calls of networks beside the training steps that are looked at."""

_BYTES = 128 * 2**20
"""Of what the network is evaluated on, so much is kept."""

_COMPARED = 16
"""Items by which two data sets are compared."""

_KEPT = 512
"""Intermediate results that are told apart from what they are compared with."""


@dataclass(frozen=True)
class EvaluationCall:
    """A call of a network on validation data that no loader has given.

    Attributes:
        call: the call, its arguments copied.
        by: whose name says that the data are for validation; None where no name says anything.
        compared: what its output was compared with since, the first first.
        scored: what of that a loss was computed with, or what was asked whether it is equal.
        named: tensors in variables that are named after validation data.
        location: the user's line that called the network.
    """

    call: Call
    by: Named | None
    compared: list[Tensor] = field(default_factory=list)
    scored: list[Tensor] = field(default_factory=list)
    named: tuple[Tensor, ...] = ()
    location: Location | None = None


class EvaluationLog:
    """What a script reads, and calls its networks on, without training.

    Attributes:
        loaders: in the order in which they were first read.
        names: the words of the names that each had when it was read, by its id.
        calls: those on validation data that came from no loader.
        unnamed: calls in eval mode on what no name says anything of.
        modes: whether each module was in train mode in the last of them.
        closed: nobody asks any more.
    """

    def __init__(self) -> None:
        self.loaders: list[Any] = []
        self.names: dict[int, set[str]] = {}
        self.calls: list[EvaluationCall] = []
        self.unnamed: list[EvaluationCall] = []
        self.modes: dict[nn.Module, bool] = {}
        self.closed = False
        self._looked_at = 0
        self._known: set[str] = set()
        self._bytes = 0
        self._comparing = Listening()

    def __bool__(self) -> bool:
        """Something was evaluated."""
        return bool(self.loaders or self.calls)

    def read(self, loader: Any) -> None:
        """The script reads ``loader``."""
        if self.closed:
            return
        if not any(loader is each for each in self.loaders):
            self.loaders.append(loader)
        self.names.setdefault(id(loader), set()).update(names_of(_sources(loader)))

    def on_forward(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        args: Any,
        kwargs: Any,
        given: Iterable[Any],
    ) -> Any:
        """Do a call without gradients, and note it where it is on validation data.

        ``given`` are batches that loaders have given the script: calls on these are no news.
        """
        self.rest()
        seen = self._noted(module, args, kwargs, given)
        output = run(args, kwargs)
        if seen is not None:
            self._comparing.enter(None, (_Comparisons(seen, output),))
        return output

    def _noted(
        self, module: nn.Module, args: Any, kwargs: Any, given: Iterable[Any]
    ) -> EvaluationCall | None:
        """Note the call that is about to be made, and return it if what comes of it matters."""
        tensors = [tensor for _, tensor in batches.tensors((args, kwargs))]
        if self.closed or self._looked_at >= MOST_CALLS or not tensors:
            return None
        self._looked_at += 1
        try:
            if any(find(tensors[0], batch) is not None for batch in given):
                return None
            self._bytes += sum(each.numel() * each.element_size() for each in tensors)
            told = purpose_of(tensors)
            other = module.training if told is None else told[0] == "training"
            if other or self._bytes > _BYTES or not self._is_news(args, kwargs):
                return None
            seen = EvaluationCall(
                recorded(module, args, kwargs),
                by=told[1] if told is not None else None,
                named=tuple(_named_after_validation(tensors)),
                location=callstack.user_line(),
            )
        except (RuntimeError, NotImplementedError, TypeError):
            return None  # of tensors that have no values, as under vmap, nothing is known
        if seen.by is None:
            self.unnamed.append(seen)
        else:
            self.calls.append(seen)
            self.modes.update((each, each.training) for each in module.modules())
        return seen

    def _is_news(self, args: Any, kwargs: Any) -> bool:
        """Whether no call with the same values was seen."""
        digest = batches.digest((args, kwargs))
        known, self._known = digest in self._known, self._known | {digest}
        return not known

    def rest(self) -> None:
        """Whatever the script compares from now on is no output of the last call."""
        self._comparing.leave()

    def close(self) -> None:
        """Let go of everything but the modes."""
        self.rest()
        self.closed = True
        self.loaders, self.names, self.calls, self.unnamed = [], {}, [], []


def _named_after_validation(inputs: list[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors whose variables are named after validation data, but for the ``inputs``."""
    for name, value in named_values():
        if not isinstance(value, Tensor) or any(is_held(each, value) for each in inputs):
            continue
        if meaning(words_of_data(name)) == "validation":
            yield value.detach()


class _Comparisons(TorchFunctionMode):
    """Notes which tensors that were there before meet those that come of a network's output."""

    def __init__(self, seen: EvaluationCall, output: Any) -> None:
        super().__init__()
        self._seen = seen
        # Held, lest their memory becomes another's.
        self._made = [tensor for _, tensor in batches.tensors(output)]
        self._storages = {_storage(tensor) for tensor in self._made}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if not given or len(self._made) >= _KEPT:
            return result
        with torch._C.DisableTorchFunction():
            come = {_storage(each) in self._storages for each in given}
            if come == {True, False}:
                met = [each.detach() for each in given if _storage(each) not in self._storages]
                self._seen.compared.extend(met)
                scores = func in LOSS_FUNCTIONS or func in _EQUALS
                if scores and not torch.is_grad_enabled():  # else it is a label for training
                    self._seen.scored.extend(met)
            if True in come:
                made = [each for _, each in batches.tensors(result)]
                self._made += made
                self._storages |= {_storage(each) for each in made}
        return result


_EQUALS = frozenset({torch.eq, Tensor.eq, Tensor.__eq__})


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


# --- with a loader --------------------------------------------------------------------------------


def validation_loader(
    registers: Registers,
    train: Any,
    seen: Iterable[Any],
    names: Mapping[int, set[str]] | None = None,
) -> Any:
    """Return the loader that the script validates with, as far as one can tell; or None.

    By the name of its variable, attribute or entry, or that of its data; else the one that was
    ``seen`` to be read without training, unless it reads the training rows: these are looked at for
    the training's own accuracy. ``names`` are words of the names that those had by then.
    """
    called: dict[int, set[str]] = {}
    held: dict[int, Any] = {id(loader): loader for loader in registers.of["loader"].alive()}
    for name, value in named_values():
        called.setdefault(id(value), set()).update(words_of_data(name))
        if isinstance(value, DataLoader) or is_wrapper(value):
            held.setdefault(id(value), value)
    seen = [loader for loader in seen if loader is not train]
    held.update((id(loader), loader) for loader in seen)

    def meant_by(loader: Any) -> set[str]:
        own = [called.get(id(each), set()) for each in _sources(loader)]
        return set().union((names or {}).get(id(loader), set()), *own)

    others = {key: meant_by(each) for key, each in held.items() if each is not train}
    untrained = {key: each for key, each in others.items() if TRAINING.isdisjoint(each)}
    for meant in VALIDATION:
        for key, each in untrained.items():
            if not each.isdisjoint(meant):
                return held[key]
    evaluated = [each for each in seen if id(each) in untrained and not _same_rows(each, train)]
    return evaluated[0] if len({id(each) for each in evaluated}) == 1 else None


def _sources(loader: Any) -> Iterator[Any]:
    """Yield what gives ``loader`` its name: itself, what it holds, its data and their tensors."""
    yield loader
    for name in ("base_dataloader", "loader"):
        if isinstance(within := getattr(loader, name, None), DataLoader):
            yield within
    dataset = getattr(loader, "dataset", None)
    if dataset is not None:
        yield dataset
    if type(dataset) is TensorDataset:
        yield from dataset.tensors


def _same_rows(loader: Any, train: Any) -> bool:
    """Whether both read all of the same data: with samplers they may share it out."""
    left, right = getattr(loader, "dataset", None), getattr(train, "dataset", None)
    if left is None or right is None:
        return False
    if not (left is right or _same_tensors(left, right) or _same_items(left, right)):
        return False
    plain = (SequentialSampler, RandomSampler)
    return all(type(getattr(each, "sampler", None)) in plain for each in (loader, train))


def _same_tensors(left: Any, right: Any) -> bool:
    """Whether two data sets are made of the same rows of the same tensors."""
    if type(left) is Subset and type(right) is Subset:
        same = left.dataset is right.dataset or _same_tensors(left.dataset, right.dataset)
        return same and list(left.indices) == list(right.indices)
    if not (type(left) is TensorDataset and type(right) is TensorDataset):
        return False
    if len(left.tensors) != len(right.tensors):
        return False
    return all(same_memory(a, b) for a, b in zip(left.tensors, right.tensors, strict=True))


def _same_items(left: Any, right: Any) -> bool:
    """Whether two data sets of as many items hold the same ones: some of them are read."""
    try:
        if len(left) != len(right) or len(left) < _COMPARED:
            return False
        places = range(0, len(left), len(left) // _COMPARED)
        with preserved(Subjects()):
            pairs = [(batches.digest(left[i]), batches.digest(right[i])) for i in places]
    except Exception:  # whatever a data set of the user's raises when it is read so
        return False
    return all(one == other for one, other in pairs) and len(set(pairs)) > 1


# --- without one ----------------------------------------------------------------------------------


class EvaluatedBatches:
    """Stands for the validation loader of a script that has none: what it evaluates on, in batches.

    Attributes:
        rows: how many there are.
        location: the user's line that calls the network with them.
    """

    def __init__(self, made: list[Any], location: Location | None) -> None:
        self._batches = made
        self.rows = sum(batches.size(batch) for batch in made)
        self.location = location

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def evaluated_batches(
    roles: TrainingObjects, calls: Iterable[EvaluationCall]
) -> EvaluatedBatches | None:
    """Return the ``calls`` of the audited network as batches of the training's form; None if none.

    A call whose target is not known makes no batch where training has one.
    """
    entry = roles.entry
    if entry is None or entry is not roles.exit or roles.recipe is None:
        return None
    found: list[Any] = []
    location = None
    for seen in calls:
        same = unwrapped(seen.call.module) is unwrapped(entry.module)
        if not same or _is_training(seen.call, entry):
            continue
        batch = _as_batch(roles, seen)
        if batch is not None:
            location = location or seen.location
            found += _in_parts(batch, batches.size(roles.batch))
    return EvaluatedBatches(found, location) if found else None


def scored_calls(roles: TrainingObjects, calls: Iterable[EvaluationCall]) -> list[EvaluationCall]:
    """Return those of which a loss or hits were computed, on other rows than those of training.

    What no name says anything of, as ``x1`` beside ``x0``, is known by that.
    """
    if roles.entry is None:
        return []
    return [
        replace(each, compared=each.scored, by="function")
        for each in calls
        if each.scored and not _share_rows(each.call, roles.entry)
    ]


_ROWS = 8
"""Rows from all over a training batch that are looked for among those of an evaluation."""


def _share_rows(call: Call, entry: Call) -> bool:
    """Whether half of the rows of a training step are among those of an evaluation."""
    theirs, mine = ([t for _, t in batches.tensors((c.args, c.kwargs))][:1] for c in (call, entry))
    if not theirs or not mine or theirs[0].ndim == 0 or mine[0].ndim == 0:
        return True
    every = max(1, len(mine[0]) // _ROWS)
    rows, known = theirs[0].detach(), mine[0].detach()[::every][:_ROWS]
    if rows.shape[1:] != known.shape[1:] or rows.layout is not torch.strided:
        return True
    found = [bool((rows == row).flatten(1).all(1).any()) for row in known]
    return 2 * sum(found) >= len(found)


def _is_training(call: Call, entry: Call) -> bool:
    """Whether a call is on the tensors of a training step, as with masks over one graph."""
    if any(same_memory(a, b) for a in call.given for b in entry.given):
        return True
    return batches.digest((call.args, call.kwargs)) == batches.digest((entry.args, entry.kwargs))


def _as_batch(roles: TrainingObjects, seen: EvaluationCall) -> Any:
    assert roles.recipe is not None
    values = roles.recipe.taken_back(seen.call.args, seen.call.kwargs, roles.batch)
    leaves = [path for path, leaf in batches.leaves(roles.batch) if isinstance(leaf, Tensor)]
    # An agent is tried out in a function of that name, too: on states, with no target to them.
    alone = len(leaves) == 1 and seen.by != "data"
    if not values or alone or (seen.by == "function" and {*leaves} <= values.keys()):
        return None
    rows = len(next(iter(values.values())))
    for path, leaf in batches.leaves(roles.batch):
        if isinstance(leaf, Tensor) and path not in values:
            fitting = [each for each in (*seen.compared, *seen.named) if _fits(each, leaf, rows)]
            if not fitting:
                return None
            values[path] = fitting[0].to(leaf.dtype).reshape(rows, *leaf.shape[1:]).clone()
    paths = iter([path for path, _ in batches.leaves(roles.batch)])
    return batches.map_leaves(roles.batch, lambda leaf: values.get(next(paths), leaf))


def _fits(tensor: Tensor, like: Tensor, rows: int) -> bool:
    """Whether ``tensor`` may be as many ``rows`` of what ``like`` holds."""
    each = like[0].numel() if like.ndim and len(like) else 1
    if tensor.ndim == 0 or tensor.numel() != rows * each:
        return False
    return tensor.is_floating_point() == like.is_floating_point()


def _in_parts(batch: Any, size: int) -> list[Any]:
    """Cut ``batch`` into parts of ``size`` rows, where rows can be taken."""
    rows = batches.size(batch)
    if not 0 < size < rows:
        return [batch]
    try:
        return [
            batches.rows(batch, range(start, min(start + size, rows)))
            for start in range(0, rows, size)
        ]
    except batches.NotSliceableError:
        return [batch]
