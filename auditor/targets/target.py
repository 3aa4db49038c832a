"""What the user hands over: a :class:`Target`, and how one is found in a file."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from nnaudit.errors import (
    TargetError,
    describe,
    is_user,
    user_code,
    user_location,
    user_traceback,
)
from nnaudit.report import Location
from nnaudit.targets.metrics import NAMES as METRIC_NAMES
from nnaudit.targets.set_order import compiled
from nnaudit.targets.source import source_of

NAMES: dict[str, tuple[str, ...]] = {
    "model": (
        "build_model", "make_model", "create_model", "get_model", "model",
        "build_net", "make_net", "get_net", "net", "network",
    ),
    "train_loader": (
        "train_loader", "build_train_loader", "make_train_loader", "get_train_loader",
        "create_train_loader", "train_dataloader", "trainloader", "training_loader", "train_dl",
    ),
    "val_loader": (
        "val_loader", "build_val_loader", "make_val_loader", "get_val_loader",
        "create_val_loader", "val_dataloader", "valid_loader", "valid_dataloader",
        "validation_loader", "valloader", "validloader", "valid_dl", "val_dl", "eval_loader",
        "test_loader", "test_dataloader", "testloader", "test_dl",
    ),
    "loss": (
        "loss_fn", "criterion", "loss_function", "loss_func", "build_loss", "make_loss",
        "get_loss", "build_criterion", "make_criterion", "get_criterion",
    ),
    "optimizer": (
        "build_optimizer", "make_optimizer", "create_optimizer", "get_optimizer",
        "configure_optimizer", "optimizer",
    ),
    "scheduler": (
        "build_scheduler", "make_scheduler", "get_scheduler", "scheduler", "lr_scheduler",
    ),
    "training_step": ("training_step", "train_step"),
    "metric": METRIC_NAMES,
    "datamodule": (
        "build_datamodule", "make_datamodule", "get_datamodule", "datamodule", "data_module", "dm",
    ),
    "trainer": ("build_trainer", "make_trainer", "create_trainer", "get_trainer", "trainer"),
}  # fmt: skip
"""The conventional names of each part in a target file; the first that is defined counts."""

TARGET_MARK = "__nnaudit_target__"


@dataclass
class Target:
    """A model and its training, as objects or as factories.

    Factories (zero-argument callables that build the thing) are best: some checks need the run to
    start anew, which an object that already exists does not allow.

    Attributes:
        model: an ``nn.Module`` or a factory. A factory may take ``width``, a float by which the
            audit scales the hidden layers.
        train_loader: an iterable of batches or a factory.
        val_loader: likewise.
        loss: ``loss(output, target) -> scalar tensor``. Default: chosen from the target's dtype.
        optimizer: a factory ``optimizer(model)``, or an optimizer of ``model``'s parameters.
            Default: AdamW with lr 1e-3. A factory may return several in a list.
        scheduler: a factory ``scheduler(optimizer)``.
        training_step: ``training_step(model, batch) -> loss``, in place of ``loss`` where the
            forward pass is more than ``loss(model(x), y)``. The batch is on the model's device.
            With a parameter named ``optimizer`` (and ``scheduler``) it does the whole step:
            zero_grad, backward, optimizer.step(), and returns the loss.
        metric: ``metric(output, target)``, an object with ``update`` and ``compute``, or several
            in a dict.
        name: how reports call it.
        locations: the line of the user's source where each part is defined, by part name.
        reload: makes the same target anew from its source, where there is one.
        unused: why the file's own training loop is not what is audited; empty where it has none.
    """

    model: nn.Module | Callable[..., nn.Module]
    train_loader: Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    val_loader: Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    optimizer: Any = None
    scheduler: Any = None
    training_step: Callable[..., Tensor] | None = None
    metric: Any = None
    name: str = "model"
    locations: dict[str, Location] = field(default_factory=dict, repr=False)
    reload: Callable[[], Target] | None = field(default=None, repr=False)
    path: str = ""
    form: str = "python"
    unused: str = ""

    def __post_init__(self) -> None:
        """Reject what can never work, in words.

        Raises:
            TargetError: ``model`` or a loader is of the wrong kind.
        """
        if not callable(self.model):
            raise TargetError(
                f"model is a {type(self.model).__name__}: hand over an nn.Module or a function "
                "that builds one"
            )
        for part in ("loss", "training_step"):
            value = getattr(self, part)
            if value is not None and not callable(value):
                raise TargetError(f"{part} is a {type(value).__name__}, not a function")


def target(function: Callable[[], Target]) -> Callable[[], Target]:
    """Mark ``function``, which returns a :class:`Target`, as the one to audit in its file."""
    setattr(function, TARGET_MARK, True)
    return function


def load(path: Path) -> Target:
    """Find the target that the file at ``path`` defines.

    Raises:
        TargetError: the file is missing, not Python, fails on import or defines no model.
    """
    return found_in(imported(path), path)


def imported(path: Path) -> ModuleType:
    """Execute the file at ``path`` as a module of its own, its folder first on the import path.

    Raises:
        TargetError: the file is missing, not Python, fails on import or defines no model.
    """
    tree = parse(path)
    if not _defines_model(tree):
        raise TargetError(_nothing_found(path, tree))
    return _import(path)


def found_in(module: ModuleType, path: Path) -> Target:
    """Return the target that ``module``, which is the file at ``path`` executed, defines.

    Raises:
        TargetError: it defines no model, or a marked function returns something else.
    """
    marked = [v for v in vars(module).values() if getattr(v, TARGET_MARK, False)]
    found = marked[0]() if marked else _by_names(module, path)
    if not isinstance(found, Target):
        raise TargetError(
            f"{path}: {marked[0].__name__}() is marked @nnaudit.target and returned a "
            f"{type(found).__name__}: return nnaudit.Target(...)"
        )
    found.path, found.form = str(path), "module"
    found.name = path.stem if found.name == "model" else found.name
    found.reload = lambda: load(path)
    return found


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of the Python file at ``path``.

    Raises:
        TargetError: it is missing, a folder, not text, or not Python.
    """
    if path.is_dir():
        raise TargetError(f"{path} is a folder: name the Python file in it that defines the model")
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file has such a name"
        raise TargetError(f"{path}: {why[0].lower()}{why[1:]}") from None
    if path.suffix != ".py":
        raise TargetError(f"{path} is not a Python file: name one that ends in .py")
    source = source_of(path)
    if isinstance(source.error, SyntaxError):
        where = f"{path}:{source.error.lineno}" if source.error.lineno else str(path)
        raise TargetError(f"{where}: syntax error: {source.error.msg}") from source.error
    if isinstance(source.error, (RecursionError, MemoryError)):
        raise TargetError(f"{path} is nested too deeply to be read as Python")
    if source.error is not None:
        raise TargetError(f"{path} cannot be read as Python: {source.error}") from source.error
    return source.tree


def top_level(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return the names that ``tree`` binds at its top level, with the statement that does."""
    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for place in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for leaf in ast.walk(place):
                    if isinstance(leaf, ast.Name):
                        names[leaf.id] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = node
    return names


def form_of(path: Path) -> Literal["module", "script"]:
    """Tell from the file's syntax tree, before anything runs, in which form the target is.

    A marked function makes a module. A program that runs a training loop of its own is a script,
    whatever else it defines: its loop is what will train, and so what is to be audited. A model
    and its training data, or a framework's trainer, under conventional names make a module, unless
    the file trains when it is imported. Any other program that does something when it is run is a
    script. What is left, model classes or a model alone, is a module.

    Raises:
        TargetError: the file cannot be read, or is neither.
    """
    tree = parse(path)
    if any(_is_marked(node) for node in top_level(tree).values()):
        return "module"
    if _has_all_parts(tree) and not (_trains_at_top_level(tree) or _runs_its_own_loop(tree)):
        return "module"
    if _does_something(tree) and _imports_a_library(tree):
        return "script"
    if _defines_model(tree):
        return "module"
    raise TargetError(_nothing_found(path, tree))


def has_all_parts(path: Path) -> bool:
    """Whether the file at ``path`` can be taken as a module, by the names that it defines.

    Raises:
        TargetError: it cannot be read.
    """
    return _has_all_parts(parse(path))


def _has_all_parts(tree: ast.Module) -> bool:
    names = top_level(tree)
    has = {part for part, known in NAMES.items() if any(name in names for name in known)}
    return (
        {"model", "train_loader"} <= has
        or {"model", "datamodule"} <= has
        or ("trainer" in has and _imports_a_library(tree))
    )


def _defines_model(tree: ast.Module) -> bool:
    names = top_level(tree)
    return (
        any(name in names for part in ("model", "trainer") for name in NAMES[part])
        or any(_is_marked(node) for node in names.values())
        or bool(_model_classes(tree))
    )


_TRAINS = frozenset({"backward", "fit", "fit_one_cycle", "train", "run"})
"""Methods that a program trains by: torch's own, and the frameworks' trainers'."""


def _trains_at_top_level(tree: ast.Module) -> bool:
    """Whether importing the file would train, since no guard keeps its loop from running."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _TRAINS
        for statement in tree.body
        if isinstance(statement, (ast.For, ast.While, ast.With, ast.Expr, ast.Try))
        for node in ast.walk(statement)
    )


def _runs_its_own_loop(tree: ast.Module) -> bool:
    """Whether the file does something when it is run, and calls ``backward()`` and ``step()``.

    Not within a function that is itself a part to be handed over: a training step, a closure of it.
    """
    parts = {name for known in NAMES.values() for name in known}
    called = {
        node.func.attr
        for statement in tree.body
        if getattr(statement, "name", "") not in parts
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    return {"backward", "step"} <= called and _does_something(tree)


def _does_something(tree: ast.Module) -> bool:
    """Whether the file runs statements of its own, behind a main guard or not."""
    return any(
        isinstance(node, (ast.For, ast.While, ast.With, ast.Try))
        or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in tree.body
    )


_LIBRARIES = frozenset(
    {"torch", "lightning", "pytorch_lightning", "transformers", "accelerate", "ignite", "skorch",
     "fastai", "timm", "torchvision"}
)  # fmt: skip


def _imports_a_library(tree: ast.Module) -> bool:
    return imports_any(tree, _LIBRARIES)


def imports_any(tree: ast.Module, packages: Collection[str]) -> bool:
    """Whether the file, or something in it, imports one of the top-level ``packages``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] in packages for name in found):
            return True
    return False


def _is_marked(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).split("(")[0].split(".")[-1] == "target"
        for decorator in node.decorator_list
    )


def _model_classes(tree: ast.Module) -> list[str]:
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[-1].endswith("Module") for base in node.bases)
    ]


def _nothing_found(path: Path, tree: ast.Module) -> str:
    known = ", ".join(NAMES["model"])
    hint = "" if _imports_a_library(tree) else " (it does not import torch either)"
    return (
        f"{path} defines no model and trains none{hint}: nnaudit takes a training script, or a "
        f"file with {known} or a function marked @nnaudit.target; `nnaudit init` writes one"
    )


def _import(path: Path) -> ModuleType:
    """Execute the file as a module of its own name, its folder first on the import path."""
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Known by its name before it runs: dataclasses and DataLoader workers look it up there.
    sys.modules[name] = module
    try:
        exec(compiled(path, vars(module)), vars(module))
    except SystemExit as error:
        raise TargetError(
            f"{_place(error, path)}: the file calls sys.exit({error.code!r}) when it is imported: "
            'put that behind if __name__ == "__main__":'
        ) from error
    except Exception as error:
        raise _import_failure(path, error) from error
    return module


def forget(module: ModuleType) -> None:
    """Let go of a module that :func:`imported` returned, and of all that it holds."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
    vars(module).clear()


def _import_failure(path: Path, error: Exception) -> TargetError:
    failure = TargetError(f"{_place(error, path)}: importing the file failed: {describe(error)}")
    failure.add_note(user_traceback(error))
    return failure


def _place(error: BaseException, path: Path) -> str:
    where = user_location(error)
    return f"{where.file}:{where.line}" if where else str(path)


def _module_name(path: Path) -> str:
    """The file's own name, unless a module that it would hide has it."""
    taken = path.stem in sys.stdlib_module_names or (
        path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) != str(path)
    )
    return f"nnaudit_target_{path.stem}" if taken or not path.stem.isidentifier() else path.stem


def named_parts(module: ModuleType, path: Path) -> tuple[dict[str, Any], dict[str, Location]]:
    """Return the parts of a training that ``module`` has under :data:`NAMES`, and their lines.

    Where none is called a model, the last model class that can be built without arguments is it.
    """
    parts: dict[str, Any] = {}
    locations: dict[str, Location] = {}
    statements = top_level(parse(path))
    for part, names in NAMES.items():
        for name in names:
            value = getattr(module, name, None)
            if name in statements and value is not None and not isinstance(value, ModuleType):
                parts[part] = _made_loss(name, value) if part == "loss" else value
                locations[part] = Location(file=str(path), line=statements[name].lineno)
                break
    lone = _only_model_class(module, path) if "model" not in parts else None
    if lone is not None:
        parts["model"] = lone
    return parts, locations


def _by_names(module: ModuleType, path: Path) -> Target:
    parts, locations = named_parts(module, path)
    if "model" not in parts:
        raise TargetError(
            f"{path} defines no model that can be built without arguments: "
            "add a function build_model() that returns the model to audit"
        )
    # A framework's own parts were asked for a loop before, and had none.
    return Target(
        **{part: made for part, made in parts.items() if part not in ("datamodule", "trainer")},
        locations=locations,
    )


def _made_loss(name: str, found: Any) -> Any:
    """Return the loss; a factory of one, told by its name, is called."""
    if name.startswith(("build_", "make_", "get_")) and not isinstance(found, nn.Module):
        with user_code(f"calling {name}()"):
            return found()
    return found


def _only_model_class(module: ModuleType, path: Path) -> type[nn.Module] | None:
    """The last model class of the file that can be built without arguments."""
    tree = parse(path)
    for name in reversed(_model_classes(tree)):
        candidate = getattr(module, name)
        if inspect.isclass(candidate) and issubclass(candidate, nn.Module):
            required = [
                p
                for p in inspect.signature(candidate).parameters.values()
                if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
            if not required:
                return candidate
    return None


def defined_at(thing: Any) -> Location | None:
    """Return where a user's function or class is defined; None for a library's or a builtin's."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    for candidate in (thing, type(thing)):
        try:
            file = inspect.getsourcefile(candidate)
            line = inspect.getsourcelines(candidate)[1]
        except (TypeError, OSError):
            continue
        if file and is_user(file) and not file.startswith(sysconfig.get_paths()["stdlib"]):
            return Location(file=file, line=max(line, 1))
    return None
