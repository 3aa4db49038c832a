"""Which weights are read from files while the program is built, and what became of them."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import describe
from nnaudit.loop.base import Loop
from nnaudit.measure.reseeded import differing_weights
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.source import source_of

_SIGNS = re.compile(
    r"load_state_dict|\.load\(|load_file|pretrained(?!\s*=\s*False\b)|weights\s*=(?!\s*None\b)"
    r"|\bhub\b|checkpoint|ckpt|timm",
    re.ASCII,
)
"""What the source of a program that loads weights mentions: without it nothing is started anew."""

RELATED = 0.2
"""Correlation above which changed weights still descend from the loaded ones: shrunk, averaged,
merged. Of 100 independent pairs it is exceeded with a chance of 0.05, of 1000 never."""


@dataclass(frozen=True)
class Read:
    """Weights in a file that the user's code read: the tensors of two dimensions or more."""

    file: str
    weights: dict[str, Tensor]
    location: Location | None


@dataclass(frozen=True)
class Loading:
    """A call of ``load_state_dict`` by the user's code. Names and tensors are of weight matrices.

    Attributes:
        module: what was loaded into.
        strict: as it was called.
        taken: parameters that were given a value, with that value, by name.
        unexpected: what was offered and is no part of the module.
        missing: parameters of the module that were given nothing.
        changed: how many of ``taken`` were another value before.
    """

    module: nn.Module
    strict: bool
    taken: dict[str, tuple[nn.Parameter, Tensor]]
    unexpected: dict[str, Tensor]
    missing: dict[str, nn.Parameter]
    changed: int
    location: Location | None

    @property
    def offered(self) -> int:
        """How many weight tensors the state dict had."""
        return len(self.taken) + len(self.unexpected)

    def misnamed(self) -> dict[str, Tensor]:
        """Return of :attr:`unexpected` what has its shape, and no more, among the missing."""
        places = Counter(tuple(p.shape) for p in self.missing.values())
        found: dict[str, Tensor] = {}
        for name, tensor in self.unexpected.items():
            shape = tuple(tensor.shape)
            if places[shape]:
                places[shape] -= 1
                found[name] = tensor
        return found


@dataclass(frozen=True)
class Fate:
    """What became of the weights that were loaded into the networks under audit.

    Attributes:
        held: as they were loaded, or derived from it.
        overwritten: another value when training begins, with no relation to the loaded one.
    """

    held: tuple[str, ...]
    overwritten: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What :class:`LoadedWeights` saw.

    Attributes:
        reads: files of weights that were read.
        unused: those of ``reads`` of which no tensor is in any network.
        loadings: calls of ``load_state_dict``.
        fate: what became of what was loaded into the networks under audit.
        failed_downloads: errors of downloads that the program went on after.
        published: torchvision's description of the weights it loaded (a ``WeightsEnum``).
        random: by parameter, whether another seed gives it another value.
        promised: calls in the user's source that ask for pretrained weights, whatever happens.
    """

    reads: tuple[Read, ...] = ()
    unused: tuple[Read, ...] = ()
    loadings: tuple[Loading, ...] = ()
    fate: Fate = field(default_factory=lambda: Fate((), ()))
    failed_downloads: tuple[tuple[str, Location | None], ...] = ()
    published: tuple[Any, ...] = ()
    random: dict[str, bool] = field(default_factory=dict)
    promised: tuple[Location, ...] = ()

    @property
    def pretrained(self) -> bool:
        """Whether the network under audit holds weights that were loaded."""
        return bool(self.fate.held)


class LoadedWeights(Probe[Provenance]):
    """The run started anew under another seed, with an eye on everything that loads weights."""

    def measure(self, audit: Audit) -> Provenance:
        """Start the run anew, unless its source mentions nothing that loads.

        Raises:
            UserCodeError: the user's code raised.
        """
        loop = audit.loop
        if not _may_load(loop):
            return Provenance()
        promised = tuple(_promises(source_files(loop)))
        with watching_loads() as watch, loop.relaunched(audit.seed + 1) as fresh:
            watch.building = False
            parameters = {
                id(p): p for model in fresh.models for p in model.parameters() if not is_lazy(p)
            }
            return Provenance(
                reads=tuple(watch.reads),
                unused=tuple(r for r in watch.reads if not _used(r, parameters, watch.loadings)),
                loadings=tuple(watch.loadings),
                fate=_fate(watch.loadings, parameters),
                failed_downloads=tuple(watch.failed_downloads),
                published=tuple(watch.published),
                random=_random_matrices(loop, fresh) if watch.reads or promised else {},
                promised=promised,
            )


def _may_load(loop: Loop) -> bool:
    files = source_files(loop)
    return not files or any(_SIGNS.search(source_of(file).text) for file in files)


_PROMISES = ("pretrained", "encoder_weights")
"""Arguments that mean nothing but weights of another training."""

_BRANCHES = (ast.If, ast.IfExp, ast.Try, ast.For, ast.While, ast.Match, ast.ExceptHandler)


def _promises(files: tuple[Path, ...]) -> Iterator[Location]:
    """Yield the calls with ``pretrained=True`` (or a name) that stand under no condition."""
    for file in files:
        source = source_of(file)
        for node in source.find(ast.Call):
            promised = any(_is_promise(keyword) for keyword in node.keywords)
            if promised and not any(isinstance(a, _BRANCHES) for a in source.ancestors(node)):
                yield Location(file=str(file), line=node.lineno)


def _is_promise(keyword: ast.keyword) -> bool:
    if keyword.arg not in _PROMISES or not isinstance(keyword.value, ast.Constant):
        return False
    return keyword.value.value is True or isinstance(keyword.value.value, str)


def _random_matrices(loop: Loop, fresh: Loop) -> dict[str, bool]:
    matrices = {name for name, p in loop.model.named_parameters() if p.ndim > 1}
    return {n: random for n, random in differing_weights(loop, fresh).items() if n in matrices}


# --- watching -------------------------------------------------------------------------------------


@dataclass
class Watch:
    """What was seen so far; nothing more is noted once ``building`` is over."""

    building: bool = True
    reads: list[Read] = field(default_factory=list)
    loadings: list[Loading] = field(default_factory=list)
    failed_downloads: list[tuple[str, Location | None]] = field(default_factory=list)
    published: list[Any] = field(default_factory=list)


@contextmanager
def watching_loads() -> Iterator[Watch]:
    """Note down who reads weights, and what they are loaded into, for the time of a ``with``."""
    watch = Watch()
    places: list[tuple[Any, str, Callable[[Any, Watch], Any]]] = [
        (nn.Module, "load_state_dict", _watched_loading),
        (torch, "load", _watched_reading),
        (torch.hub, "download_url_to_file", _watched_download),
    ]
    safetensors = sys.modules.get("safetensors.torch")
    if safetensors is not None:
        places.append((safetensors, "load_file", _watched_reading))
    published = getattr(sys.modules.get("torchvision.models._api"), "WeightsEnum", None)
    if published is not None:
        places.append((published, "get_state_dict", _watched_publication))
    transformers = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if transformers is not None:
        places.append((transformers, "from_pretrained", _watched_checkpoint))
    with ExitStack() as stack:
        for owner, name, watched in places:
            original = vars(owner).get(name, getattr(owner, name))
            setattr(owner, name, watched(original, watch))
            stack.callback(setattr, owner, name, original)
        yield watch


def _user_line() -> Location | None:
    """Return the line of the user's that loads; None where nnaudit does, or repeats a script."""
    calls = callstack.own_call(repeated=False)
    return callstack.location(calls[-1]) if calls else None


def _watched_loading(original: Any, watch: Watch) -> Any:
    def load_state_dict(
        self: nn.Module, state_dict: Any, strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        where = _user_line() if watch.building else None
        if where is None or not isinstance(state_dict, Mapping):
            return original(self, state_dict, strict, *args, **kwargs)
        offered = _matrices(state_dict)
        before = {name for name, p in _weights(self).items() if _equal(p, offered.get(name))}
        result = original(self, state_dict, strict, *args, **kwargs)
        own = _weights(self)
        taken = {n: (own[n], t) for n, t in offered.items() if n in own}
        watch.loadings.append(
            Loading(
                module=self,
                strict=strict,
                taken=taken,
                unexpected={n: t for n, t in offered.items() if n not in own},
                missing={n: p for n, p in own.items() if n not in offered},
                changed=sum(name not in before for name in taken),
                location=where,
            )
        )
        return result

    return load_state_dict


def _watched_reading(original: Any, watch: Watch) -> Any:
    def load(*args: Any, **kwargs: Any) -> Any:
        read = original(*args, **kwargs)
        where = _user_line() if watch.building else None
        weights = _weights_in(read) if where is not None else {}
        if weights:
            source = args[0] if args else next(iter(kwargs.values()), "")
            name = Path(source).name if isinstance(source, (str, Path)) else type(source).__name__
            watch.reads.append(Read(name, weights, where))
        return read

    return load


def _watched_download(original: Any, watch: Watch) -> Any:
    def download(url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(url, *args, **kwargs)
        except Exception as error:
            name = str(url).rpartition("/")[2]
            where = _user_line()
            watch.failed_downloads.append((f"{name}: {describe(error)}", where))
            raise

    return download


_COPIED = 2**28
"""Elements of a checkpoint's weights that are copied, to see later what became of them."""


def _watched_checkpoint(original: Any, watch: Watch) -> Any:
    """Watch the class method by which transformers loads weights, without ``load_state_dict``."""

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        where = _user_line() if watch.building else None
        if where is None:
            return original.__func__(cls, *args, **kwargs)
        asked = kwargs.pop("output_loading_info", False)
        model, told = original.__func__(cls, *args, output_loading_info=True, **kwargs)
        absent = {*told.get("missing_keys", ()), *map(_first, told.get("mismatched_keys", ()))}
        own = _weights(model)
        taken: dict[str, tuple[nn.Parameter, Tensor]] = {}
        room = _COPIED
        for name, parameter in own.items():
            if name not in absent and parameter.numel() <= room:
                taken[name] = (parameter, parameter.detach().clone())
                room -= parameter.numel()
        watch.loadings.append(
            Loading(
                module=model,
                strict=False,
                taken=taken,
                unexpected={name: torch.empty(0) for name in told.get("unexpected_keys", ())},
                missing={name: own[name] for name in absent & own.keys()},
                changed=len(taken),
                location=where,
            )
        )
        return (model, told) if asked else model

    return classmethod(from_pretrained)


def _first(key: Any) -> Any:
    """Return the name in a mismatched key, which comes with the two shapes."""
    return key[0] if isinstance(key, (tuple, list)) else key


def _watched_publication(original: Any, watch: Watch) -> Any:
    def get_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(self, *args, **kwargs)
        if watch.building:
            watch.published.append(self)
        return state

    return get_state_dict


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: p
        for name, p in module.named_parameters(remove_duplicate=False)
        if not is_lazy(p) and p.ndim > 1
    }


def _matrices(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        str(name): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.is_floating_point()
    }


def _weights_in(read: Any, depth: int = 3) -> dict[str, Tensor]:
    """Return the matrices of what looks like a state dict in ``read``, itself or a member.

    A state dict's keys are paths of parameters: the last parts of some are ``weight``.
    """
    if not isinstance(read, Mapping):
        return {}
    found = _matrices(read)
    if any(name.rpartition(".")[2] == "weight" for name in found):
        return found
    inner: dict[str, Tensor] = {}
    if depth:
        for key, value in read.items():
            inner |= {f"{key}.{n}": t for n, t in _weights_in(value, depth - 1).items()}
    return inner


# --- what became of it ----------------------------------------------------------------------------


def _equal(parameter: Tensor, tensor: Tensor | None) -> bool:
    if tensor is None or parameter.shape != tensor.shape or tensor.layout is not torch.strided:
        return False
    return torch.equal(parameter.detach().cpu(), tensor.detach().cpu().to(parameter.dtype))


def _used(read: Read, parameters: dict[int, nn.Parameter], loadings: list[Loading]) -> bool:
    """Whether any tensor of ``read`` is in a network under audit, or in one it was loaded into."""
    there = list(parameters.values())
    there += [p for loading in loadings for p in loading.module.parameters() if not is_lazy(p)]
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in there:
        shapes.setdefault(tuple(parameter.shape), []).append(parameter)
    return any(
        _equal(parameter, tensor)
        for tensor in read.weights.values()
        for parameter in shapes.get(tuple(tensor.shape), ())
    )


def _fate(loadings: list[Loading], parameters: dict[int, nn.Parameter]) -> Fate:
    """Follow what was loaded into ``parameters``; what was loaded last counts."""
    last: dict[int, tuple[str, Tensor]] = {}
    for loading in loadings:
        if not loading.changed:
            continue  # a network given its own weights back
        for name, (parameter, tensor) in loading.taken.items():
            last[id(parameter)] = (name, tensor)
    held: list[str] = []
    overwritten: list[str] = []
    for key, (name, tensor) in last.items():
        if key in parameters:
            descends = _descends(parameters[key], tensor)
            (held if descends else overwritten).append(name)
    return Fate(tuple(held), tuple(overwritten))


def _descends(parameter: Tensor, tensor: Tensor) -> bool:
    if _equal(parameter, tensor) or parameter.shape != tensor.shape:
        return True
    pair = [batches.clone(t).cpu().double().flatten() for t in (parameter, tensor)]
    centred = [t - t.mean() for t in pair]
    norms = [float(t.norm()) for t in centred]
    if min(norms) == 0.0:
        return False
    return abs(float(centred[0] @ centred[1])) / (norms[0] * norms[1]) > RELATED
