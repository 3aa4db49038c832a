"""The snapshot puts everything back, and each of its parts is needed for it.

Random networks, optimizers and schedulers are trained a little, vandalised, and compared bit for
bit by a fingerprint that shares no code with the source.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import random
import sys
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
)

from nnaudit.state import process
from nnaudit.state import snapshot as state
from nnaudit.state.reach import Reach, generators_of
from nnaudit.state.snapshot import Snapshot, Subjects, preserved

WIDTH = 6


class Counting(nn.Module):
    """State in all the places where people leave it."""

    __slots__ = ("speed",)

    def __init__(self) -> None:
        super().__init__()
        self.speed = 1.0
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)
        self.register_buffer("wide", torch.ones(1).expand(WIDTH))
        self.cache = torch.zeros(WIDTH)
        self.calls = 0
        self.history: dict[str, Any] = {"losses": [], "seen": {0}, "pair": (torch.zeros(2), 1)}
        self.table = np.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.speed *= 0.5
        self.mean.mul_(0.9).add_(x.detach().mean(0))
        self.cache = x.detach()[0].clone()
        self.history["losses"].append(self.calls)
        self.history["seen"].add(self.calls)
        self.history["pair"][0].add_(1)
        self.table[0] += 1
        return self.linear(x) * self.wide + self.mean * self.speed


class Stubborn(nn.Module):
    """Refuses ordinary attribute access."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def __setattr__(self, name: str, value: Any) -> None:
        if "linear" in self.__dict__.get("_modules", ()):
            raise AttributeError(name)
        super().__setattr__(name, value)

    @property
    def expensive(self) -> None:
        raise RuntimeError("a snapshot must not run properties")

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["used"] = self.__dict__.get("used", 0) + 1
        return self.linear(x) / self.used

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, dropout=0.3)
        self.hidden: Any = None

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.lstm(x.unsqueeze(0), self.hidden)
        self.hidden = tuple(h.detach() for h in hidden)
        return out.squeeze(0)


class Tied(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WIDTH, WIDTH, sparse=sparse)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        if not sparse:
            self.head.weight = self.embed.weight
        else:
            self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.abs().long().clamp(max=WIDTH - 1)).mean(1))


class Bf16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.bfloat16()).float()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, WIDTH))


def conv() -> nn.Module:
    first = nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 3, 3, padding=1))
    return nn.Sequential(*first, nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(WIDTH))


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False).eval()
    return model


def parametrised() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
    )


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)))
    return nn.Sequential(body, nn.Linear(WIDTH, WIDTH))


def wrapped() -> nn.Module:
    return nn.DataParallel(mlp())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "frozen": frozen,
    "recurrent": Recurrent,
    "tied": partial(Tied, sparse=False),
    "sparse": partial(Tied, sparse=True),
    "parametrised": parametrised,
    "counting": Counting,
    "stubborn": Stubborn,
    "bf16": Bf16,
    "scripted": scripted,
    "wrapped": wrapped,
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, foreach=True),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, foreach=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
}


def _chain(optimizer: torch.optim.Optimizer) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, total_iters=2),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "none": lambda optimizer: None,
    "step": partial(lr_scheduler.StepLR, step_size=2),
    "cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=500, cycle_momentum=False),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0),
    "chain": _chain,
}


class Noisy(Dataset[Tensor]):
    """Augments with a generator of its own."""

    def __init__(self) -> None:
        self.points = torch.randn(12, WIDTH)
        self.rng = np.random.default_rng(0)
        self.served = 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Tensor:
        self.served += 1
        return self.points[index] + float(self.rng.normal()) + random.random()


@dataclass
class Case:
    """A training program in miniature."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    loader: DataLoader[Tensor]
    losses: list[bytes] = field(default_factory=list)

    @property
    def subjects(self) -> Subjects:
        schedulers = () if self.scheduler is None else (self.scheduler,)
        return Subjects((self.model,), (self.optimizer,), schedulers, (), (self.loader,))

    def loss(self, batch: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = (self.model(batch) - torch.randn(WIDTH)).square().mean()
        loss.backward()
        return loss

    def step(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own: LBFGS's, and chained schedulers'
            self._step()

    def _step(self) -> None:
        batch = next(iter(self.loader))
        loss = self.optimizer.step(lambda: self.loss(batch))
        self.losses.append(loss.detach().numpy().tobytes())
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(float(loss))
        elif self.scheduler is not None:
            self.scheduler.step()


def build(model: str, optimizer: str, scheduler: str, steps: int) -> Case:
    """Build from scratch, from one seed, and train a little."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    network = MODELS[model]()
    if (model, optimizer) == ("conv", "adagrad"):  # which refuses uninitialised parameters
        network(torch.zeros(4, WIDTH))
    make = partial(torch.optim.SparseAdam, lr=0.1) if model == "sparse" else OPTIMIZERS[optimizer]
    trained = make([p for p in network.parameters() if p.requires_grad or model != "sparse"])
    data = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=torch.Generator())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = Case(network, trained, SCHEDULERS[scheduler](trained), data)
    for _ in range(steps):
        case.step()
    return case


# --- vandals --------------------------------------------------------------------------------------


def train(case: Case) -> None:
    case.step()
    case.step()


def accumulate(case: Case) -> None:
    case.model(torch.randn(4, WIDTH)).sum().backward()


def drop_grads(case: Case) -> None:
    case.optimizer.zero_grad(set_to_none=False)
    for p in case.model.parameters():
        p.grad = None


def replace_head(case: Case) -> None:
    name = list(case.model._modules)[-1]
    setattr(case.model, name, nn.Linear(WIDTH, 3))


def replace_parameters(case: Case) -> None:
    for module in case.model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = nn.Parameter(p.detach() + 1)


def remove_part(case: Case) -> None:
    del case.model._modules[next(iter(case.model._modules))]


def grow(case: Case) -> None:
    case.model.add_module("extra", nn.Linear(2, 2))
    case.model.register_buffer("late", torch.zeros(3))
    case.model.__dict__["attribute"] = [1, 2]


def freeze(case: Case) -> None:
    for p in case.model.parameters():
        p.requires_grad_(not p.requires_grad)


def flip_modes(case: Case) -> None:
    for module in case.model.modules():
        module.training = not module.training


def hook(case: Case) -> None:
    for module in case.model.modules():
        module.register_forward_hook(lambda *args: None)
        module.register_full_backward_hook(lambda *args: None)
        module.register_state_dict_post_hook(lambda *args: None)
    for p in case.model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())
    case.optimizer.register_step_pre_hook(lambda *args: None)


def cast(case: Case) -> None:
    case.model.double()


def swap_data(case: Case) -> None:
    for p in case.model.parameters():
        # The same shape: an LSTM does not check, and reads beyond the end of a smaller one.
        p.data = torch.full(p.shape, float("nan"), dtype=torch.float64)


def scramble(case: Case) -> None:
    with torch.no_grad():
        for tensor in (*case.model.parameters(), *case.model.buffers()):
            tensor.fill_(3)


def tune(case: Case) -> None:
    for group in case.optimizer.param_groups:
        group["lr"] = 17.0
        group["new"] = "option"
    case.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    case.optimizer.defaults["lr"] = 2.0


def reload_optimizer(case: Case) -> None:
    case.optimizer.load_state_dict(copy.deepcopy(case.optimizer.state_dict()))
    case.optimizer.state.clear()


def reschedule(case: Case) -> None:
    lr_scheduler.ExponentialLR(case.optimizer, 0.1).step()


def consume(case: Case) -> None:
    torch.rand(3)
    random.random()
    np.random.rand()
    list(case.loader)


def reseed(case: Case) -> None:
    torch.manual_seed(99)
    case.loader.generator.manual_seed(3)
    case.loader.sampler.generator = None


def flags(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch._C._set_grad_enabled(False)
    np.seterr(all="raise")


def litter(case: Case) -> None:
    os.environ["NNAUDIT_TEST"] = "1"
    os.chdir("/")
    sys.path.append("/nowhere")
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.DEBUG)


def crash(case: Case) -> None:
    raise KeyboardInterrupt


VANDALS = (
    train,
    accumulate,
    drop_grads,
    replace_head,
    replace_parameters,
    remove_part,
    grow,
    freeze,
    flip_modes,
    hook,
    cast,
    swap_data,
    scramble,
    tune,
    reload_optimizer,
    reschedule,
    consume,
    reseed,
    flags,
    litter,
    crash,
)


def vandalise(case: Case, vandals: list[Callable[[Case], None]]) -> None:
    """Do one after the other; what the former broke may stop the latter."""
    for vandal in vandals:
        with contextlib.suppress(Exception):
            vandal(case)


CASES = st.tuples(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULERS)),
    st.integers(0, 2),
)
VANDAL_LISTS = st.lists(st.sampled_from(VANDALS), min_size=1, max_size=6)


# --- fingerprints: written without a look at the source under test --------------------------------


def fingerprint(case: Case, *, identities: bool = True) -> dict[str, str]:
    """Whatever can be told about a case, bit for bit, as printable text by name."""
    out: dict[str, str] = {}
    _describe_model(case.model, out)
    names = {id(p): name for name, p in case.model.named_parameters()}
    for i, group in enumerate(case.optimizer.param_groups):
        out[f"group {i}"] = str({k: v for k, v in group.items() if k != "params"})
        out[f"group {i} params"] = str([names.get(id(p), "?") for p in group["params"]])
    out["state"] = _text({names.get(id(p), "?"): s for p, s in case.optimizer.state.items()})
    out["defaults"] = _text(case.optimizer.defaults)
    out["optimizer"] = str(sorted(vars(case.optimizer)))
    out["optimizer hooks"] = str(len(case.optimizer._optimizer_step_pre_hooks))
    if case.scheduler is not None:
        out["scheduler"] = _text(case.scheduler.state_dict())
    out["loader"] = _text(case.loader.generator) + str(case.loader.sampler.generator is None)
    out["dataset"] = _text((case.loader.dataset.rng, case.loader.dataset.served))
    out |= _describe_process()
    if identities:
        tensors = [*case.model.parameters(), *case.model.buffers()]
        out["identities"] = str([*map(id, tensors), *map(id, case.model.modules())])
    return out


def _describe_model(model: nn.Module, out: dict[str, str]) -> None:
    for name, module in model.named_modules(remove_duplicate=False):
        out[f"{name} is"] = f"{type(module)} {module.training} {list(module._modules.keys())}"
        out[f"{name} hooks"] = str(
            [len(hooks) for key, hooks in sorted(vars(module).items()) if key.endswith("_hooks")]
        )
        out[f"{name} volatile"] = str(sorted(module._non_persistent_buffers_set))
        known = set(vars(nn.Module())) | {"_c", "_concrete_type", "forward", "_initializing"}
        out[f"{name} attributes"] = _text(
            {k: v for k, v in sorted(vars(module).items()) if k not in known}
        )
        out[f"{name} speed"] = str(getattr(module, "speed", None))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            out[f"{name}.{key}"] = _text(tensor)
            if tensor is not None and tensor.is_leaf:
                out[f"{name}.{key}.grad"] = _text(tensor.grad)
                hooks = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)
                out[f"{name}.{key} hooks"] = str([len(each or ()) for each in hooks])


def _describe_process() -> dict[str, str]:
    return {
        "python": str(random.getstate()),
        "numpy": str(np.random.get_state()),
        "torch": _text(torch.get_rng_state()),
        "modes": str(
            (
                torch.is_grad_enabled(),
                torch.is_anomaly_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.get_default_dtype(),
                torch.get_deterministic_debug_mode(),
                torch.backends.cudnn.benchmark,
                torch.get_float32_matmul_precision(),
                torch.get_num_threads(),
                np.geterr(),
            )
        ),
        "process": str((warnings.filters, dict(os.environ), Path.cwd(), sys.path)),
        "logging": str(logging.getLogger().level),
    }


def _text(value: Any) -> str:  # noqa: PLR0911 one return for each kind of value
    """A description in which one different bit shows."""
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return f"{type(value)} {value.dtype}"
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        dense = dense.resolve_conj()
        raw = bytes(dense.contiguous().view(-1).view(torch.uint8).numpy()) if dense.numel() else b""
        shape = (value.shape, dense.stride(), value.dtype, value.requires_grad, type(value))
        return f"{shape} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, torch.Generator):
        return _text(value.get_state())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        return str({_text(k): _text(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return str([_text(each) for each in value])
    if isinstance(value, nn.Module) or callable(value):
        return str(type(value))
    return repr(value)


# --- properties -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _guard() -> Iterator[None]:
    """A vandal that is not undone must fail its own test, not the next one."""
    with preserved(Subjects()):
        yield


def _vandalised(case: Case, vandals: list[Callable[[Case], None]]) -> Snapshot:
    with contextlib.suppress(KeyboardInterrupt), preserved(case.subjects) as snapshot:
        vandalise(case, vandals)
        crash(case)
    return snapshot


@settings(max_examples=90, deadline=None, derandomize=True, database=None)
@given(CASES, VANDAL_LISTS)
def test_an_audit_leaves_no_trace(
    recipe: tuple[str, str, str, int], vandals: list[Callable[[Case], None]]
) -> None:
    case = build(*recipe)
    before = fingerprint(case)
    snapshot = _vandalised(case, vandals)
    assert fingerprint(case) == before
    with contextlib.suppress(KeyboardInterrupt):
        vandalise(case, vandals[::-1])
    snapshot.restore()
    snapshot.restore()
    assert fingerprint(case) == before


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(CASES, VANDAL_LISTS)
def test_training_goes_on_as_if_undisturbed(
    recipe: tuple[str, str, str, int], vandals: list[Callable[[Case], None]]
) -> None:
    runs = []
    for disturb in (False, True):
        with preserved(Subjects()):
            case = build(*recipe)
            if disturb:
                losses = list(case.losses)
                _vandalised(case, [train, *vandals])
                case.losses = losses
            for _ in range(3):
                case.step()
            runs.append((case.losses, fingerprint(case, identities=False)))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("vandal", VANDALS, ids=lambda v: v.__name__)
def test_each_vandal_does_harm(vandal: Callable[[Case], None]) -> None:
    case = build("mlp", "adamw", "step", 1)
    before = fingerprint(case)
    with preserved(case.subjects):
        with contextlib.suppress(KeyboardInterrupt):
            vandal(case)
        assert fingerprint(case) != before or vandal is crash


# --- each keeper is necessary ---------------------------------------------------------------------


@dataclass
class Damage:
    """Something an audit may do, and how to see whether it was undone."""

    subjects: Subjects
    harm: Callable[[], object]
    read: Callable[[], Any]


DAMAGES: dict[str, Callable[[pytest.MonkeyPatch], Damage]] = {}


def damage(make: Callable[[pytest.MonkeyPatch], Damage]) -> Callable[..., Damage]:
    DAMAGES[f"keep_{make.__name__.removeprefix('_harm_')}"] = make
    return make


def _parameter(
    p: Tensor, harm: Callable[[Tensor], object], read: Callable[[Tensor], Any]
) -> Damage:
    holder = nn.Module()
    holder.__dict__["held"] = p
    return Damage(Subjects((holder,)), partial(harm, p), partial(read, p))


def _attribute(value: Any, harm: Callable[[Any], object], read: Callable[[Any], Any]) -> Damage:
    return _parameter(value, harm, read)


@damage
def _harm_class(patch: pytest.MonkeyPatch) -> Damage:
    lazy = nn.LazyLinear(2)
    return Damage(Subjects((lazy,)), lambda: lazy(torch.ones(1, 3)), lambda: type(lazy))


@damage
def _harm_parametrised_class(patch: pytest.MonkeyPatch) -> Damage:
    model = parametrizations.weight_norm(nn.Linear(2, 2))
    harm = partial(remove_parametrizations, model, "weight")
    return Damage(
        Subjects((model,)),
        harm,
        lambda: hasattr(model, "weight") and not isinstance(model.weight, nn.Parameter),
    )


@damage
def _harm_attribute_dict(patch: pytest.MonkeyPatch) -> Damage:
    model = mlp()
    harm = partial(object.__setattr__, model, "__dict__", {})
    return Damage(Subjects((model,)), harm, lambda: id(model.__dict__))


@damage
def _harm_slots(patch: pytest.MonkeyPatch) -> Damage:
    model = Counting()
    return Damage(Subjects((model,)), partial(setattr, model, "speed", 3), lambda: model.speed)


@damage
def _harm_dict(patch: pytest.MonkeyPatch) -> Damage:
    model = mlp()
    return Damage(Subjects((model,)), model._modules.popitem, lambda: list(model._modules))


@damage
def _harm_list(patch: pytest.MonkeyPatch) -> Damage:
    return _attribute([1], lambda x: x.append(2), tuple)


@damage
def _harm_set(patch: pytest.MonkeyPatch) -> Damage:
    return _attribute({1}, lambda x: x.add(2), frozenset)


@damage
def _harm_deque(patch: pytest.MonkeyPatch) -> Damage:
    return _attribute(deque([1, 2], maxlen=2), lambda x: x.append(2), tuple)


@damage
def _harm_array(patch: pytest.MonkeyPatch) -> Damage:
    return _attribute(np.zeros(2), lambda x: x.fill(2), lambda x: x.tolist())


@damage
def _harm_script(patch: pytest.MonkeyPatch) -> Damage:
    model = scripted()[0]
    return Damage(Subjects((model,)), model.eval, lambda: getattr(model, "1").training)


@damage
def _harm_loader(patch: pytest.MonkeyPatch) -> Damage:
    loader = DataLoader([1, 2])
    harm = partial(loader.__dict__.__setitem__, "drop_last", True)
    return Damage(Subjects(loaders=(loader,)), harm, lambda: loader.drop_last)


@damage
def _harm_torch_generator(patch: pytest.MonkeyPatch) -> Damage:
    loader = DataLoader([1, 2], shuffle=True, generator=torch.Generator())
    read = lambda: loader.generator.get_state().tolist()  # noqa: E731
    return Damage(Subjects(loaders=(loader,)), lambda: list(loader), read)


@damage
def _harm_numpy_generator(patch: pytest.MonkeyPatch) -> Damage:
    data = Subset(Noisy(), [0, 1])
    rng = data.dataset.rng
    subjects = Subjects(loaders=(DataLoader(data),))
    return Damage(subjects, rng.random, lambda: str(rng.bit_generator.state))


class Transform:
    """A transform of an ordinary class, as they stand in a list in a ``Compose``."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng


def _augmented(rng: Any) -> Subjects:
    data = TensorDataset(torch.zeros(2))
    data.transform = Transform([Transform(rng)])  # type: ignore[attr-defined]
    return Subjects(loaders=(DataLoader(Subset(data, [0])),))


@damage
def _harm_numpy_random_state(patch: pytest.MonkeyPatch) -> Damage:
    rng = np.random.RandomState(0)
    return Damage(_augmented(rng), rng.rand, lambda: str(rng.get_state()))


@damage
def _harm_python_random(patch: pytest.MonkeyPatch) -> Damage:
    rng = random.Random(0)
    return Damage(_augmented(rng), rng.random, rng.getstate)


@damage
def _harm_leaf(patch: pytest.MonkeyPatch) -> Damage:
    return _parameter(
        nn.Parameter(torch.ones(2)), lambda p: p.requires_grad_(False), lambda p: p.requires_grad
    )


@damage
def _harm_geometry(patch: pytest.MonkeyPatch) -> Damage:
    return _parameter(
        torch.ones(4, 2), lambda p: setattr(p, "data", torch.ones(2)), lambda p: tuple(p.shape)
    )


@damage
def _harm_bytes(patch: pytest.MonkeyPatch) -> Damage:
    return _parameter(torch.ones(2), lambda p: p.mul_(2), lambda p: p.tolist())


@damage
def _harm_value(patch: pytest.MonkeyPatch) -> Damage:
    sparse = torch.eye(2).to_sparse()
    return _parameter(sparse, lambda p: p.mul_(2), lambda p: p.to_dense().tolist())


@damage
def _harm_grad(patch: pytest.MonkeyPatch) -> Damage:
    p = nn.Parameter(torch.ones(2))
    return _parameter(p, lambda p: p.sum().backward(), lambda p: p.grad is None)


@damage
def _harm_tensor_hooks(patch: pytest.MonkeyPatch) -> Damage:
    p = nn.Parameter(torch.ones(2))
    p.register_hook(lambda g: g)
    return _parameter(p, lambda p: p.register_hook(abs), lambda p: len(p._backward_hooks))


def _process(harm: Callable[[], object], read: Callable[[], Any]) -> Damage:
    return Damage(Subjects(), harm, read)


@damage
def _harm_python_rng(patch: pytest.MonkeyPatch) -> Damage:
    return _process(random.random, random.getstate)


@damage
def _harm_numpy_rng(patch: pytest.MonkeyPatch) -> Damage:
    return _process(np.random.rand, lambda: str(np.random.get_state()))


@damage
def _harm_torch_rng(patch: pytest.MonkeyPatch) -> Damage:
    return _process(lambda: torch.rand(1), lambda: torch.get_rng_state().tolist())


@damage
def _harm_accelerator_rng(patch: pytest.MonkeyPatch) -> Damage:
    rng = torch.Generator()
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "default_generators", (rng,))
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    return _process(lambda: torch.rand(1, generator=rng), lambda: rng.get_state().tolist())


@damage
def _harm_mps_rng(patch: pytest.MonkeyPatch) -> Damage:
    rng = torch.Generator()
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    patch.setattr(torch.mps, "get_rng_state", rng.get_state)
    patch.setattr(torch.mps, "set_rng_state", rng.set_state)
    return _process(lambda: torch.rand(1, generator=rng), lambda: rng.get_state().tolist())


@damage
def _harm_cuda_device(patch: pytest.MonkeyPatch) -> Damage:
    now = [0]
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "current_device", lambda: now[0])
    patch.setattr(torch.cuda, "set_device", lambda device: now.__setitem__(0, device))
    return _process(lambda: torch.cuda.set_device(1), torch.cuda.current_device)


@damage
def _harm_grad_mode(patch: pytest.MonkeyPatch) -> Damage:
    return _process(lambda: torch._C._set_grad_enabled(False), torch.is_grad_enabled)


@damage
def _harm_anomaly_mode(patch: pytest.MonkeyPatch) -> Damage:
    harm = partial(torch.autograd.set_detect_anomaly, True, False)
    return _process(
        harm, lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    )


@damage
def _harm_autocast(patch: pytest.MonkeyPatch) -> Damage:
    def harm() -> None:
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_cache_enabled(False)

    def read() -> Any:
        dtype = torch.get_autocast_dtype("cuda")
        return torch.is_autocast_enabled("cpu"), dtype, torch.is_autocast_cache_enabled()

    return _process(harm, read)


@damage
def _harm_default_dtype(patch: pytest.MonkeyPatch) -> Damage:
    return _process(partial(torch.set_default_dtype, torch.float64), torch.get_default_dtype)


@damage
def _harm_default_device(patch: pytest.MonkeyPatch) -> Damage:
    return _process(partial(torch.set_default_device, "meta"), torch.get_default_device)


@damage
def _harm_determinism(patch: pytest.MonkeyPatch) -> Damage:
    harm = partial(torch.use_deterministic_algorithms, True, warn_only=True)
    return _process(harm, torch.get_deterministic_debug_mode)


def _harm_flag(owner: Any, name: str) -> Damage:
    read = partial(getattr, owner, name)
    return _process(lambda: setattr(owner, name, not read()), read)


@damage
def _harm_cudnn(patch: pytest.MonkeyPatch) -> Damage:
    return _harm_flag(torch.backends.cudnn, "benchmark")


@damage
def _harm_cublas(patch: pytest.MonkeyPatch) -> Damage:
    return _harm_flag(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction")


@damage
def _harm_attention(patch: pytest.MonkeyPatch) -> Damage:
    cuda = torch.backends.cuda
    return _process(partial(cuda.enable_math_sdp, False), cuda.math_sdp_enabled)


@damage
def _harm_float32_precision(patch: pytest.MonkeyPatch) -> Damage:
    harm = partial(torch.set_float32_matmul_precision, "medium")
    return _process(harm, torch.get_float32_matmul_precision)


@damage
def _harm_threads(patch: pytest.MonkeyPatch) -> Damage:
    return _process(
        partial(torch.set_num_threads, torch.get_num_threads() + 1), torch.get_num_threads
    )


@damage
def _harm_numpy_errors(patch: pytest.MonkeyPatch) -> Damage:
    return _process(partial(np.seterr, all="raise"), np.geterr)


@damage
def _harm_warning_filters(patch: pytest.MonkeyPatch) -> Damage:
    harm = partial(warnings.simplefilter, "ignore")
    return _process(harm, lambda: (id(warnings.filters), str(warnings.filters)))


@damage
def _harm_environment(patch: pytest.MonkeyPatch) -> Damage:
    patch.setenv("NNAUDIT_OLD", "1")

    def harm() -> None:
        del os.environ["NNAUDIT_OLD"]
        os.environ["NNAUDIT_NEW"] = "1"

    return _process(harm, lambda: dict(os.environ))


@damage
def _harm_directory(patch: pytest.MonkeyPatch) -> Damage:
    return _process(partial(os.chdir, "/"), Path.cwd)


@damage
def _harm_import_path(patch: pytest.MonkeyPatch) -> Damage:
    return _process(partial(sys.path.append, "/nowhere"), lambda: list(sys.path))


@damage
def _harm_logging(patch: pytest.MonkeyPatch) -> Damage:
    root = logging.getLogger()

    def harm() -> None:
        root.setLevel(1)
        root.addHandler(logging.NullHandler())

    return _process(harm, lambda: (root.level, len(root.handlers)))


KEEPERS = [keep.__name__ for keep in (*(row[1] for row in state.KEEPERS), *state.PROCESS)]


def test_there_is_a_damage_for_each_keeper() -> None:
    assert sorted(DAMAGES) == sorted(KEEPERS)


def _suffer(made: Damage) -> bool:
    """Whether the damage was undone."""
    before = made.read()
    with preserved(made.subjects):
        made.harm()
        assert made.read() != before
    return bool(made.read() == before)


@pytest.mark.parametrize("name", KEEPERS)
def test_each_keeper_is_sufficient_and_necessary(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _suffer(DAMAGES[name](monkeypatch))
    made = DAMAGES[name](monkeypatch)
    with preserved(Subjects()), monkeypatch.context() as without:
        rows = tuple(row for row in state.KEEPERS if row[1].__name__ != name)
        without.setattr(state, "KEEPERS", rows)
        kept = tuple(keep for keep in state.PROCESS if keep.__name__ != name)
        without.setattr(state, "PROCESS", kept)
        assert not _suffer(made)


# --- corners --------------------------------------------------------------------------------------


def _tensor_survives(tensor: Tensor, harm: Callable[[Tensor], object]) -> None:
    before, place = _text(tensor), tensor.stride()
    with preserved(Subjects(extras=(tensor,))), torch.no_grad():
        harm(tensor)
    assert _text(tensor) == before
    assert tensor.stride() == place


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int16, torch.float16, torch.bfloat16, torch.float64, torch.complex64],
)
def test_values_of_any_dtype_come_back(dtype: torch.dtype) -> None:
    _tensor_survives(torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype), lambda t: t.zero_())


def test_float8_comes_back() -> None:
    _tensor_survives(torch.arange(9.0).to(torch.float8_e4m3fn), lambda t: t.copy_(torch.ones(9)))


def test_the_payload_of_a_nan_comes_back() -> None:
    nans = torch.tensor([0x7FC00001, 0x7FA12345, -0x400000], dtype=torch.int32).view(torch.float32)
    _tensor_survives(nans, lambda t: t.fill_(float("nan")))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(6).view(2, 3).t(),
        torch.arange(24.0)[3:20:3],
        torch.ones(1).expand(5),
        torch.ones(0, 3),
        torch.tensor(2.0),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "strided", "expanded", "empty", "scalar", "conjugate", "channels-last"],
)
def test_any_layout_comes_back(tensor: Tensor) -> None:
    def harm(t: Tensor) -> None:
        t.data[:1] = 7 if t.dim() else 0
        t.data = torch.zeros(2, 2)

    _tensor_survives(tensor, harm if tensor.dim() else lambda t: t.fill_(0))


def test_a_view_is_kept_without_its_base() -> None:
    base = torch.zeros(1000)
    view = base[10:12]
    with preserved(Subjects(extras=(view,))):
        base.fill_(1)
    assert base.sum() == 998


@pytest.mark.filterwarnings("ignore")
def test_quantised_sparse_nested_and_mkldnn_tensors_come_back() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    csr = torch.eye(3).to_sparse_csr()
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    mkldnn = torch.ones(3).to_mkldnn()
    with preserved(Subjects(extras=(quantised, csr, nested, mkldnn))):
        quantised.copy_(torch.zeros(3))
        csr.values().zero_()
        nested.mul_(2)
        mkldnn.zero_()
    assert quantised.int_repr().tolist() == [10, 10, 10]
    assert csr.to_dense().tolist() == torch.eye(3).tolist()
    assert nested.to_padded_tensor(0).sum() == 5
    assert mkldnn.to_dense().sum() == 3


def test_meta_tensors_are_no_obstacle() -> None:
    model = nn.Linear(2, 3, device="meta")
    with preserved(Subjects((model,))):
        model.to_empty(device="cpu")
    assert model.weight.device.type == "meta"


def test_a_lazy_network_is_uninitialised_again() -> None:
    model = nn.Sequential(nn.LazyConv1d(2, 1), nn.LazyBatchNorm1d())
    with preserved(Subjects((model,))):
        model(torch.ones(2, 3, 4))
        assert isinstance(model[0], nn.Conv1d)
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    assert isinstance(model[1], nn.LazyBatchNorm1d)
    model(torch.ones(2, 5, 4))
    assert model[0].weight.shape == (2, 5, 1)


def test_an_allocation_freed_by_sharding_is_filled_again() -> None:
    tensor = torch.arange(4.0)
    with preserved(Subjects(extras=(tensor,))):
        tensor.untyped_storage().resize_(0)
    assert tensor.tolist() == [0, 1, 2, 3]


def test_a_read_only_memory_map_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    np.arange(4, dtype=np.float32).tofile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch cannot express read-only
        tensor = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r"))
    with preserved(Subjects(extras=(tensor,))):
        pass
    assert tensor.tolist() == [0, 1, 2, 3]


def test_a_buffer_that_joined_a_graph_leaves_it() -> None:
    model = nn.BatchNorm1d(2)
    with preserved(Subjects((model,))):
        model.running_mean.add_(model.weight)
        assert model.running_mean.grad_fn is not None
    assert model.running_mean.is_leaf
    assert model.running_mean.tolist() == [0, 0]


def test_accumulated_gradients_keep_object_and_value() -> None:
    model = mlp()
    model(torch.ones(1, WIDTH)).sum().backward()
    grad = model[0].weight.grad
    before = grad.clone()
    with preserved(Subjects((model,))):
        model.zero_grad(set_to_none=False)
        model.double()
        model.zero_grad()
    assert model[0].weight.grad is grad
    assert torch.equal(grad, before)


def test_hooks_on_a_parameter_that_had_none_stay_silent() -> None:
    calls: list[str] = []
    p = nn.Parameter(torch.ones(1))
    with preserved(Subjects(extras=(p,))):
        for _ in range(2):
            p.register_post_accumulate_grad_hook(lambda p: calls.append("after"))
            p.register_hook(lambda g: calls.append("before"))
    p.sum().backward()
    assert calls == []
    p.register_hook(lambda g: calls.append("mine"))
    p.sum().backward()
    assert calls == ["mine"]


def test_optimizer_state_keeps_its_addresses() -> None:
    case = build("mlp", "adamw", "none", 1)
    tensors = [t for s in case.optimizer.state.values() for t in s.values()]
    with preserved(case.subjects):
        reload_optimizer(case)
    after = [t for s in case.optimizer.state.values() for t in s.values()]
    assert [id(t) for t in tensors] == [id(t) for t in after]


def test_a_new_parametrisation_and_a_removed_one_are_undone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    kinds, weight, out = list(map(type, model)), model[0].weight, model(torch.ones(2))
    with preserved(Subjects((model,))):
        parametrizations.spectral_norm(model[0])
        remove_parametrizations(model[1], "weight")
    assert list(map(type, model)) == kinds
    assert model[0].weight is weight
    assert torch.equal(model(torch.ones(2)), out)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_attributes_come_back() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0
            self.seen = [1]
            self.mean = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.seen.append(2)
            self.mean = self.mean + x
            return x

    model = torch.jit.script(Counter())
    traced = torch.jit.trace(mlp().eval(), torch.ones(1, WIDTH))
    before = _text(next(traced.parameters()))
    with preserved(Subjects((model, traced))):
        model(torch.ones(1))
        with torch.no_grad():
            next(traced.parameters()).zero_()
    assert (model.count, model.seen, model.mean.item()) == (0, [1], 0)
    assert _text(next(traced.parameters())) == before


def test_a_compiled_module_comes_back() -> None:
    inner = mlp()
    model = torch.compile(inner)
    before = _text(inner[0].weight)
    with preserved(Subjects((model,))), torch.no_grad():
        inner[0].weight.zero_()
        model.eval()
    assert _text(inner[0].weight) == before
    assert inner[2].training


def test_the_scaler_comes_back() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.1)

    def step() -> None:
        scaler.scale(p.sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    with preserved(Subjects(optimizers=(optimizer,), scalers=(scaler,))):
        step()
        assert scaler.get_scale() == 8
    assert scaler._scale is None
    step()
    with preserved(Subjects(optimizers=(optimizer,), scalers=(scaler,))):
        step()
    assert scaler.get_scale() == 8
    assert p.item() == pytest.approx(0.9)


def test_averaged_models_and_plain_helpers_come_back() -> None:
    class Ema:
        def __init__(self, model: nn.Module) -> None:
            self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
            self.steps = 0

    model = mlp()
    averaged, ema = torch.optim.swa_utils.AveragedModel(model), Ema(model)
    model.helper = types.SimpleNamespace(count=0)
    before = _text(ema.shadow)
    with preserved(Subjects((model,), extras=(averaged, ema))):
        averaged.update_parameters(model)
        ema.steps += 1
        ema.shadow["0.weight"].zero_()
        model.helper.count += 1
    assert int(averaged.n_averaged) == ema.steps == model.helper.count == 0
    assert _text(ema.shadow) == before


def test_samplers_with_an_epoch_come_back() -> None:
    data = list(range(8))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    batches = BatchSampler(sampler, 2, drop_last=False)
    loader = DataLoader(data, batch_sampler=batches)
    with preserved(Subjects(loaders=(loader,))):
        sampler.set_epoch(3)
    assert sampler.epoch == 0


def test_the_data_are_not_copied() -> None:
    data = TensorDataset(torch.zeros(5))
    lists = [torch.zeros(2)] * 10
    loaders = (DataLoader(data), DataLoader(lists), iter(()))
    found = Reach(loaders, loaders).objects
    assert not any(isinstance(each, Tensor) for each in found)


def test_a_persistent_iterator_is_left_alone() -> None:
    loader = DataLoader([1, 2, 3])
    with preserved(Subjects(loaders=(loader,))):
        loader._iterator = running = iter(loader)
    assert loader._iterator is running


def test_an_accelerator_woken_by_the_audit_is_seeded_like_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(5)
    rng = torch.Generator()
    with preserved(Subjects()):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "default_generators", (rng,))
        torch.rand(1, generator=rng)
    assert rng.initial_seed() == 5


def test_values_go_to_the_cpu_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(self: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tensor, "clone", clone)
    _tensor_survives(torch.ones(3), lambda t: t.zero_())


@pytest.mark.skipif(not hasattr(torch._C, "_get_fp32_precision_getter"), reason="PyTorch >= 2.9")
@pytest.mark.parametrize("before", ["old", "new"])
@pytest.mark.parametrize("during", ["old", "new"])
def test_both_interfaces_to_tf32_come_back(before: str, during: str) -> None:
    def change(interface: str, precision: str) -> None:
        if interface == "old":
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = precision == "high"
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            torch.backends.fp32_precision = "tf32"

    def read() -> list[Any]:
        get: Any = torch._C._get_fp32_precision_getter
        pairs = [(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")]
        legacy = (torch._C._get_float32_matmul_precision, torch._C._get_cudnn_allow_tf32)
        return [*(get(*pair) for pair in pairs), *map(process._readable, legacy)]

    with preserved(Subjects()):
        change(before, "high")
        saved = read()
        with preserved(Subjects()):
            change(during, "medium")
            assert read() != saved or before == during == "new"
        assert read() == saved


def test_one_failure_does_not_stop_the_rest() -> None:
    class Unwilling(torch.Generator):
        pass

    model, value = mlp(), torch.zeros(1)
    model.rng = rng = np.random.RandomState(0)
    snapshot = Snapshot.take(Subjects((model,), extras=(value,)))
    del snapshot._objects[0]
    snapshot._objects.insert(0, partial(rng.set_state, ("bad",)))
    value.fill_(1)
    with pytest.raises(ExceptionGroup, match="put everything back"):
        snapshot.restore()
    assert value.item() == 0


def test_the_body_s_exception_gets_through() -> None:
    model = mlp()
    with pytest.raises(ZeroDivisionError), preserved(Subjects((model,))):
        model.eval()
        raise ZeroDivisionError
    assert model.training


OF_THE_FILE = torch.Generator()


def through_another_function() -> Tensor:
    return torch.rand(2, generator=OF_THE_FILE)


class Stepper:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def step(self) -> Tensor:
        return torch.from_numpy(self.rng.random(2))


def test_functions_name_generators_of_their_file_closure_and_object() -> None:
    own, unused = random.Random(0), random.Random(1)

    def step() -> Tensor:
        inner = [own.random() for _ in range(2)]
        return through_another_function() + torch.tensor(inner)

    stepper = Stepper()
    found = generators_of((partial(step), stepper.step, None, nn.ReLU()))
    assert {id(each) for each in found} == {id(own), id(OF_THE_FILE), id(stepper.rng)}
    assert unused not in found


def test_who_runs_a_lightning_module_is_not_for_a_snapshot_to_say() -> None:
    """A script that was executed again has another trainer."""
    module = nn.Linear(2, 2)
    module._trainer = first = types.SimpleNamespace(stage="train")  # type: ignore[assignment]
    snapshot = Snapshot.take(Subjects(models=(module,)))
    module._trainer = second = types.SimpleNamespace(stage="train")  # type: ignore[assignment]
    module.counted, first.stage = 3, None
    snapshot.restore()
    assert module._trainer is second
    assert not hasattr(module, "counted")
