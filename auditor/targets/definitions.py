"""What a Python file defines, told from its text before anything runs. Must not import torch."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Literal

from nnaudit.errors import TargetError
from nnaudit.targets import notebook
from nnaudit.targets.imports import comes_to_torch, imports_torch
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
    "metric": (
        "metric", "metrics", "metric_fn", "compute_metric", "compute_metrics", "build_metric",
    ),
    "datamodule": (
        "build_datamodule", "make_datamodule", "get_datamodule", "datamodule", "data_module", "dm",
    ),
    "trainer": ("build_trainer", "make_trainer", "create_trainer", "get_trainer", "trainer"),
}  # fmt: skip
"""The conventional names of each part in a target file; the first that is defined counts."""


def _near(path: Path) -> Path | None:
    """Return the Python file beside ``path`` whose name is nearly its name."""
    names = [file.name for file in path.parent.glob("*.py")]
    found = difflib.get_close_matches(path.name, names, n=1)
    return path.with_name(found[0]) if found else None


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
        if isinstance(error, FileNotFoundError) and (near := _near(Path(path))):
            why = f"{why}; did you mean {near}?"
        raise TargetError(f"{path}: {why[0].lower()}{why[1:]}") from None
    if path.suffix not in (".py", notebook.SUFFIX):
        raise TargetError(
            f"{path} is not a Python file: name one that ends in .py, or a notebook, .ipynb"
        )
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
    the file trains when it is imported. Any other program that does something when it is run, and
    comes to torch by whatever it imports, is a script. What is left, model classes or a model
    alone, is a module.

    Raises:
        TargetError: the file cannot be read, or is neither.
    """
    tree = parse(path)
    if any(_is_marked(node) for node in top_level(tree).values()):
        return "module"
    if _has_all_parts(tree) and not (_trains_at_top_level(tree) or _runs_its_own_loop(tree)):
        return "module"
    if _does_something(tree) and comes_to_torch(tree, path):
        return "script"
    if defines_model(tree):
        return "module"
    raise TargetError(nothing_found(path, tree))


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
        or ("trainer" in has and imports_torch(tree))
    )


def defines_model(tree: ast.Module) -> bool:
    """Whether there is a model to be had: by a conventional name, a mark, or its class."""
    names = top_level(tree)
    return (
        any(name in names for part in ("model", "trainer") for name in NAMES[part])
        or any(_is_marked(node) for node in names.values())
        or bool(model_classes(tree))
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
    """Whether the file does something when it is run, and speaks of an optimizer's steps.

    Called or not: ``loss.backward`` without its parentheses is a mistake of a training loop's. Not
    within a function that is itself a part to be handed over: a training step, a closure of it.
    """
    parts = {name for known in NAMES.values() for name in known}
    methods = {
        node.attr
        for statement in tree.body
        if getattr(statement, "name", "") not in parts
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute)
    }
    speaks = "step" in methods and not methods.isdisjoint({"backward", "zero_grad"})
    return speaks and _does_something(tree)


def _does_something(tree: ast.Module) -> bool:
    """Whether the file runs statements of its own, behind a main guard or not."""
    return any(
        isinstance(node, (ast.For, ast.While, ast.With, ast.Try))
        or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in tree.body
    )


def _is_marked(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).split("(")[0].split(".")[-1] == "target"
        for decorator in node.decorator_list
    )


def model_classes(tree: ast.Module) -> list[str]:
    """Return the names of the classes of networks, in the order of the file."""
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[-1].endswith("Module") for base in node.bases)
    ]


def nothing_found(path: Path, tree: ast.Module) -> str:
    """Say that the file holds nothing to audit, and what it could hold."""
    known = ", ".join(NAMES["model"])
    hint = "" if comes_to_torch(tree, path) else " (it does not import torch either)"
    return (
        f"{path} defines no model and trains none{hint}: nnaudit takes a training script, or a "
        f"file with {known} or a function marked @nnaudit.target; `nnaudit init` writes one"
    )
