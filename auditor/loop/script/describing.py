"""What was captured of a script, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.script.evaluation import EvaluatedBatches
from nnaudit.loop.script.run import Run
from nnaudit.report import OTHER_LOOPS, Part, TargetInfo
from nnaudit.wording import count


def info(loop: Loop, run: Run) -> TargetInfo:
    """Return the parts of the script's training as they were found."""
    return TargetInfo(
        name=loop.name,
        path=str(run.session.path),
        form="module" if run.session.objects else "script",
        parts=tuple(_parts(loop, run)),
    )


def _parts(loop: Loop, run: Run) -> Iterator[Part]:
    roles = run.roles
    assert roles is not None
    size = sum(p.numel() for p in loop.model.parameters() if not is_lazy(p))
    yield _part(loop, "model", f"{type(loop.model).__name__}, {size:,} parameters")
    others = [type(m).__name__ for m in loop.models[1:] if any(True for _ in m.parameters())]
    if others:
        yield Part(name="other models", description=", ".join(others), origin="user")
    yield from _which_loop(run)
    yield _train_loader(loop, run)
    if loop.val_loader is None:
        yield Part(
            name="val_loader",
            description="none seen, up to the end of the first epoch",
            origin="absent",
            disables=("checks on validation data",),
        )
    elif isinstance(loop.val_loader, EvaluatedBatches):
        rows = count(loop.val_loader.rows, "row")
        text = f"none: the script evaluates its network on {rows} of its own"
        yield _part(loop, "val_loader", text)
    else:
        yield _part(loop, "val_loader", _loader(loop.val_loader))
    yield _batch(run)
    yield _part(loop, "loss", _loss(run))
    yield _part(loop, "optimizer", ", ".join(_optimizer(o) for o in loop.optimizers))
    if loop.schedulers:
        names = ", ".join(type(s).__name__ for s in loop.schedulers)
        yield _part(loop, "scheduler", names)
    if run.session.trainer is not None:
        yield run.session.trainer
    yield from _manner(run)


def _which_loop(run: Run) -> Iterator[Part]:
    before = run.phase - 1
    student = ", whose network learns from one that was trained before" * run.session.is_students
    text = f"training loop {run.phase}{student}; {count(before, 'loop')} before it: not audited"
    text = text if before else "the first training loop that the script comes to"
    yield Part(name="loop", description=text, origin="user", location=run.training_at)
    others = [
        f"{name}() is called at line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))} too"
        for name, lines in run.elsewhere.items()
    ]
    if run.in_rounds:
        others.insert(0, "every round of the loop makes an optimizer of its own: one is audited")
    if others and not run.session.objects:
        text = f"{'; '.join(others)}. --loop {run.phase + 1} audits the next that the script runs"
        yield Part(name=OTHER_LOOPS, description=text, origin="user")


def _train_loader(loop: Loop, run: Run) -> Part:
    if not run.without_loader:
        extra = "; the optimizer steps once at the end of an epoch" if run.ends_epoch else ""
        return _part(loop, "train_loader", _loader(loop.train_loader) + extra)
    reason = loop.lacks(Needs.TRAIN_LOADER)
    if reason:
        return Part(
            name="train_loader",
            description=reason,
            origin="absent",
            disables=("checks of a loader's rows", "checks that give the script a batch"),
            location=run.training_at,
        )
    description = (
        "none: the script draws its batches itself; nnaudit replaces them at the model's input"
    )
    return _part(loop, "train_loader", description)


def _batch(run: Run) -> Part:
    roles = run.roles
    assert roles is not None
    if roles.recipe is None:
        text = "changed by the script before the model sees it: every look costs a step, undone"
        return Part(name="batch", description=text, origin="user")
    paths = ", ".join(f"batch{path}" for path in sorted(roles.recipe.paths()))
    target = (roles.loss.others or {}).get("target") if roles.loss is not None else None
    compared = f", target batch{target.path}" if target is not None else ""
    return Part(name="batch", description=f"model({paths}){compared}", origin="user")


def _loss(run: Run) -> str:
    roles = run.roles
    assert roles is not None
    if roles.main_loss is not None:
        return f"{roles.main_loss.kind}, reduction {roles.main_loss.reduction}"
    if roles.loss is not None and roles.loss.own:
        return "computed by the model"
    return "the script's own, none of torch's: read at backward()"


def _manner(run: Run) -> Iterator[Part]:
    roles = run.roles
    assert roles is not None
    if roles.per_step > 1:
        divided = (
            f", loss divided by {roles.divisor}" if roles.divisor > 1 else ", loss not divided"
        )
        text = (
            f"{roles.per_step} batches for one optimizer step{divided}; all are the same one here"
        )
        yield Part(name="accumulation", description=text, origin="user")
    casts = [
        f"{kind} {dtype}" for kind, on, dtype in (roles.entry.autocast if roles.entry else ()) if on
    ]
    scalers = [type(s).__name__ for s in roles.scalers if s.is_enabled()]
    if casts or scalers:
        yield Part(name="precision", description=", ".join([*casts, *scalers]), origin="user")
    if roles.lookahead:
        text = (
            f"the script draws {roles.lookahead} batch(es) ahead: "
            "a change of batch costs as many steps"
        )
        yield Part(name="look-ahead", description=text, origin="user")


def _loader(loader: Any) -> str:
    size = getattr(loader, "batch_size", None)
    workers = getattr(loader, "num_workers", 0)
    return (
        type(loader).__name__
        + (f", batch size {size}" if size else "")
        + (f", {workers} workers" if workers else "")
    )


def _optimizer(optimizer: torch.optim.Optimizer) -> str:
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    return f"{type(optimizer).__name__}, lr {', '.join(f'{rate:g}' for rate in rates)}"


def _part(loop: Loop, name: str, description: str) -> Part:
    return Part(name=name, description=description, origin="user", location=loop.locate(name))
