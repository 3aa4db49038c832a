"""What the user hands over: a :class:`Target`, and how one is made of a file that is imported."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from nnaudit.errors import (
    BrokenTargetError,
    NnauditError,
    TargetError,
    describe,
    is_user,
    user_code,
    user_location,
    user_traceback,
)
from nnaudit.report import Location
from nnaudit.targets import definitions
from nnaudit.targets.set_order import compiled

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
        never_steps: that loop back-propagates, and no optimizer ever steps in it.
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
    never_steps: bool = False

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
    tree = definitions.parse(path)
    if not definitions.defines_model(tree):
        raise TargetError(definitions.nothing_found(path, tree))
    return _import(path)


def found_in(module: ModuleType, path: Path) -> Target:
    """Return the target that ``module``, which is the file at ``path`` executed, defines.

    Raises:
        TargetError: it defines no model, or a marked function fails or returns something else.
    """
    marked = [v for v in vars(module).values() if getattr(v, TARGET_MARK, False)]
    found = _made_by(marked[0], path) if marked else _by_names(module, path)
    if not isinstance(found, Target):
        raise TargetError(
            f"{path}: {marked[0].__name__}() is marked @nnaudit.target and returned a "
            f"{type(found).__name__}: return nnaudit.Target(...)"
        )
    found.path, found.form = str(path), "module"
    found.name = path.stem if found.name == "model" else found.name
    found.reload = lambda: load(path)
    return found


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
        raise _failure(path, "importing the file failed", error) from error
    return module


def forget(module: ModuleType) -> None:
    """Let go of a module that :func:`imported` returned, and of all that it holds."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
    vars(module).clear()


def _made_by(function: Callable[[], Any], path: Path) -> Any:
    """Call the function that is marked as the target of the file at ``path``."""
    try:
        return function()
    except NnauditError:
        raise
    except Exception as error:
        raise _failure(path, f"{function.__name__}() failed", error) from error


def _failure(path: Path, what: str, error: Exception) -> BrokenTargetError:
    failure = BrokenTargetError(f"{_place(error, path)}: {what}: {describe(error)}")
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
    """Return the parts of a training that ``module`` has under conventional names, and their lines.

    Where none is called a model, the last model class that can be built without arguments is it.
    """
    parts: dict[str, Any] = {}
    locations: dict[str, Location] = {}
    statements = definitions.top_level(definitions.parse(path))
    for part, names in definitions.NAMES.items():
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
    tree = definitions.parse(path)
    for name in reversed(definitions.model_classes(tree)):
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
