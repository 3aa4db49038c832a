"""Private names of the frameworks that are relied on: a new version without one fails here.

Where such a name is missing nothing crashes, a loop is not found or a node not recognised: an audit
would be slower, or say less, and nobody would know. So each is asked for in the versions that are
installed. Frameworks are read and not imported, which takes a second instead of twenty.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nnaudit.targets.source import Source, source_of

ROOT = Path(__file__).resolve().parents[3]
OURS = sorted([*(ROOT / "auditor").rglob("*.py"), *(ROOT / "checks").rglob("*.py")])


# --- torch: names by their path -------------------------------------------------------------------


def imports(source: Source) -> dict[str, str]:
    """What the names that a file imports from torch stand for."""
    found = {}
    for node in source.find(ast.Import):
        found |= {a.asname: a.name for a in node.names if a.asname}
        found |= {a.name.partition(".")[0]: a.name.partition(".")[0] for a in node.names}
    for item in source.find(ast.ImportFrom):
        found |= {a.asname or a.name: f"{item.module}.{a.name}" for a in item.names}
    return {name: path for name, path in found.items() if path.partition(".")[0] == "torch"}


def private_paths() -> Iterator[str]:
    """The dotted names of torch in our sources that have a private part."""
    for file in OURS:
        source = source_of(file)
        known = imports(source)
        paths = set(known.values())
        for node in source.find(ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in known and re.fullmatch(r"[\w.]+", rest):
                paths.add(f"{known[root]}.{rest}")
        yield from (p for p in paths if re.search(r"\._[A-Za-z]", p) and not p.endswith("__"))


def resolved(path: str) -> Any:
    """What a dotted name stands for.

    Raises:
        AttributeError: nothing.
    """
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[cut:], module)
    raise AttributeError(path)


PATHS = sorted({*private_paths()})


def test_the_sources_do_name_private_parts_of_torch() -> None:
    assert "torch._GLOBAL_DEVICE_CONTEXT" in PATHS
    assert "torch._C._set_grad_enabled" in PATHS
    with pytest.raises(AttributeError):
        resolved("torch._C._no_such_name")


@pytest.mark.parametrize("path", PATHS)
def test_torch_has_what_is_named_by_its_path(path: str) -> None:
    try:
        resolved(path)
    except AttributeError:
        users = [str(f.relative_to(ROOT)) for f in OURS if path.rpartition(".")[2] in f.read_text()]
        pytest.fail(f"torch {torch.__version__} has no {path}, which is used in {users}")


# --- torch: attributes of its objects -------------------------------------------------------------


def stepped() -> Any:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def chained() -> Any:
    first = stepped()
    second = torch.optim.lr_scheduler.ExponentialLR(first.optimizer, 0.9)
    return torch.optim.lr_scheduler.SequentialLR(first.optimizer, [first, second], [3])


def loader() -> DataLoader[Any]:
    return DataLoader([1, 2], num_workers=0)  # type: ignore[arg-type]


OBJECTS: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
    ("a module, whose parts are listed and whose calls are followed", lambda: nn.Linear(1, 1),
     ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
      "_call_impl", "_is_full_backward_hook", "_forward_hooks_always_called")),
    ("a parameter, whose hooks are restored", lambda: nn.Parameter(torch.ones(1)),
     ("_backward_hooks", "_post_accumulate_grad_hooks")),
    ("a storage, which tells views from copies", lambda: torch.ones(1).untyped_storage(),
     ("_cdata",)),
    ("an autograd node, which tells what was computed first",
     lambda: nn.Parameter(torch.ones(1)).exp().grad_fn, ("_sequence_nr", "next_functions")),
    ("a scheduler, which counts its steps", stepped, ("_step_count",)),
    ("a scheduler of schedulers", chained, ("_schedulers",)),
    ("a scheduler's optimizer, which knows that it stepped", lambda: stepped().optimizer.step,
     ("_wrapped_by_lr_sched",)),
    ("an optimizer, whose hooks are called for fastai's", lambda: stepped().optimizer,
     ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")),
    ("a loader, which is read in its workers", loader, ("_get_iterator", "_iterator")),
    ("a compiled TorchScript module, whose values are saved",
     lambda: torch.jit.RecursiveScriptModule, ("_c",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "make", "attributes"), OBJECTS, ids=[what.partition(",")[0] for what, *_ in OBJECTS]
)
def test_torchs_objects_have_what_is_read_of_them(
    what: str, make: Callable[[], Any], attributes: tuple[str, ...]
) -> None:
    thing = make()
    held = {*dir(thing), *getattr(thing, "__annotations__", ())}
    for name in attributes:
        if name not in held and name not in inspect.getsource(type(thing)):
            pytest.fail(f"torch {torch.__version__}: {what}, has no {name} any more")


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_still_marks_its_optimizer() -> None:
    scheduler = stepped()
    assert not getattr(scheduler.optimizer, "_opt_called", False)
    scheduler.optimizer.step()
    assert scheduler.optimizer._opt_called, "by this it is seen that a scheduler steps too early"


def test_clipping_still_goes_through_the_two_functions_that_are_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.nn.utils import clip_grad

    called = []
    for name in ("_get_total_norm", "_clip_grads_with_norm_"):
        real = getattr(clip_grad, name)

        def noted(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            called.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(clip_grad, name, noted)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    nn.utils.clip_grad_norm_([parameter], 0.1)
    assert called == ["_get_total_norm", "_clip_grads_with_norm_"]


def test_backward_still_goes_through_torch_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(torch.autograd, "backward", lambda *args, **kwargs: called.append(args))
    nn.Parameter(torch.ones(())).backward()  # type: ignore[no-untyped-call]
    assert len(called) == 1, "Tensor.backward does not call torch.autograd.backward any more"


def test_the_stack_of_function_modes_can_be_taken_apart() -> None:
    from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    mode, depth = Mode(), torch._C._len_torch_function_stack()
    _push_mode(mode)
    assert torch._C._len_torch_function_stack() == depth + 1
    assert torch.overrides._get_current_function_mode_stack()[-1] is mode
    assert _pop_mode() is mode


# --- torch: names of autograd nodes ---------------------------------------------------------------

NODES = {name.rstrip("0123456789") for name in dir(torch._C._functions)}  # type: ignore[attr-defined]
"""Every kind of node that torch can make, on any device."""

WITHOUT_ENDING = (
    "Softmax", "SafeSoftmax", "Sigmoid", "LogSoftmax", "Log", "Log2", "Log10", "Log1P",
    "LogSigmoid", "Logsumexp", "Relu", "Tanh", "Softplus",
)  # fmt: skip
"""Nodes that checks name by their operation alone."""


def named_nodes() -> set[str]:
    strings = (node.value for file in OURS for node in source_of(file).find(ast.Constant))
    return {s for s in strings if isinstance(s, str) and re.fullmatch(r"[A-Z]\w*Backward", s)}


def test_autograd_nodes_have_the_names_that_are_looked_for() -> None:
    assert len(named_nodes()) > 40
    wanted = named_nodes() | {"AccumulateGrad"}
    missing = sorted(wanted - NODES)
    assert not missing, f"torch {torch.__version__} has no autograd nodes of the names {missing}"


@pytest.mark.parametrize("operation", WITHOUT_ENDING)
def test_autograd_nodes_are_named_after_their_operation(operation: str) -> None:
    known = {node for node in NODES if node.startswith(f"{operation}Backward")}
    assert known, f"torch {torch.__version__} has no autograd node {operation}Backward"


def test_a_node_tells_its_name() -> None:
    made: Tensor = nn.Parameter(torch.ones(2)).softmax(0)
    assert made.grad_fn is not None
    assert made.grad_fn.name() == "SoftmaxBackward0"


# --- frameworks -----------------------------------------------------------------------------------

FRAMEWORKS: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("transformers", "trainer.py", "Trainer", ("_run_epoch", "get_eval_dataloader")),
    ("transformers", "trainer.py", "Trainer._run_epoch",
     ("steps_in_epoch", "num_update_steps_per_epoch")),
    ("transformers", "trainer_callback.py", "TrainerState",
     ("max_steps", "logging_steps", "eval_steps", "save_steps")),
    *(
        row
        for package in ("lightning/pytorch", "pytorch_lightning")
        for row in (
            (package, "loops/fit_loop.py", "_FitLoop",
             ("max_batches", "max_epochs", "epoch_loop", "trainer", "_data_fetcher",
              "val_check_batch")),
            (package, "loops/training_epoch_loop.py", "_TrainingEpochLoop", ("max_steps",)),
            (package, "loops/fetchers.py", "_DataFetcher", ("length", "done")),
            (package, "core/module.py", "LightningModule", ("_trainer", "_fabric")),
            (package, "trainer/connectors/logger_connector/result.py", "_ResultMetric", ()),
        )
    ),
    ("ignite", "engine/engine.py", "Engine", ("state",)),
    ("ignite", "engine/events.py", "State", ("epoch_length", "max_iters")),
    ("accelerate", "data_loader.py", "DataLoaderShard", ("__iter__",)),
    ("accelerate", "data_loader.py", "DataLoaderDispatcher", ("__iter__",)),
    ("accelerate", "data_loader.py", "DataLoaderStateMixin",
     ("gradient_state", "end_of_dataloader", "remainder")),
    ("accelerate", "state.py", "GradientState", ("dataloader_references",)),
    ("fastai", "optimizer.py", "Optimizer", ("param_lists", "hypers", "state", "cbs", "step")),
    ("fastai", "data/load.py", "DataLoader", ("__iter__",)),
    ("torchvision", "models/_api.py", "WeightsEnum", ("get_state_dict",)),
]  # fmt: skip
"""Package, file, class (and method), and what that defines, holds or is given."""


def definition(source: Source, path: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The class, or the method of one, of a file."""
    owner, _, method = path.partition(".")
    classes = [node for node in source.find(ast.ClassDef) if node.name == owner]
    if not classes or not method:
        return classes[0] if classes else None
    methods = (node for node in classes[0].body if isinstance(node, ast.FunctionDef))
    return next((node for node in methods if node.name == method), None)


def mentioned(node: ast.AST) -> set[str]:
    """The names of methods, attributes, arguments and variables in ``node``."""
    keys = ("name", "attr", "arg", "id")
    return {
        str(getattr(each, key)) for each in ast.walk(node) for key in keys if hasattr(each, key)
    }


@pytest.mark.parametrize(
    ("package", "file", "path", "names"),
    FRAMEWORKS,
    ids=[f"{package.partition('/')[0]}-{path}" for package, _, path, _ in FRAMEWORKS],
)
def test_frameworks_have_what_their_loops_are_led_by(
    package: str, file: str, path: str, names: tuple[str, ...]
) -> None:
    top, _, inner = package.partition("/")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{top} is not installed")
    source = source_of(Path(spec.submodule_search_locations[0]) / inner / file)
    node = definition(source, path)
    if node is None:
        pytest.fail(f"{package}/{file} has no {path} any more: auditor/loop/script/frameworks.py")
    gone = sorted(set(names) - mentioned(node))
    if gone:
        pytest.fail(f"{path} of {package}/{file} has no {', '.join(gone)} any more")


def test_a_compiled_module_still_holds_the_original() -> None:
    """Read and not compiled: importing the compiler alone takes seconds."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    source = source_of(Path(spec.submodule_search_locations[0]) / "_dynamo" / "eval_frame.py")
    node = definition(source, "OptimizedModule")
    assert node is not None
    texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
    assert "_orig_mod" in mentioned(node) | texts
