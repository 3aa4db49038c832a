"""GRAD102: whether the optimizer holds the parameters that are to be trained."""

from __future__ import annotations

import gc
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.movement import same
from nnaudit.measure.reseeded import differing_weights, varies
from nnaudit.measure.seeding import source_files
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.gradient_origins import GradientOrigins, Untrained
from nnaudit.probes.gradient_reach import GradientReach, UnregisteredParameters
from nnaudit.report import Kind, Result, Table
from nnaudit.targets.source import source_of
from nnaudit.training.optimizers import held_by, strangers_of
from nnaudit.wording import attribute, count, verb

_EPOCHS = 12
"""Epochs at whose beginning is looked for what is thawed: schedules of a few epochs are usual."""

_SECONDS = 20.0
"""Time for these."""

_THAWS = re.compile(r"requires_grad\s*=\s*(?!False)|requires_grad_\((?!\s*False)|unfreeze|thaw")


class OptimizerCoverage(Check):
    """Does an optimizer hold every trainable parameter?

    Why: A parameter that gets a gradient and is in no optimizer keeps its random initial value for
        ever. It happens when the optimizer is made before a layer is added or replaced, when it
        gets one part of the model, or when parameter groups leave something out. Training goes on,
        a little worse than it could.
    How: Compares the model's parameters that require a gradient, and have a non-zero one in at
        least one of the first steps, with the parameters of all optimizers. Fails when one is
        missing.
        - Parameters that change between steps all the same are updated by the program itself
          (float32 master weights, by hand) and do not count. Neither do those beside them that
          stand still, where the optimizers hold as many tensors of the same shapes that the model
          does not have: a low-precision copy may need many steps to follow its master by one
          rounding.
        - A network beside the main one (a decoder, a critic, a loss with weights) counts as a
          whole: it fails when it gets a gradient for every step, no optimizer holds any of it, it
          does not move, and another seed gives it other weights. Loaded ones (a perceptual loss, a
          teacher) are meant to stay.
        - Where something is frozen, the first steps of the second epoch are compared too, and where
          the source thaws something by itself those of up to 12: what is thawed by then and is in
          no optimizer stays as it was.
        - Warns when only later layers are in the optimizer and the missing ones are loaded (another
          seed leaves them unchanged): a pretrained network used for its features, with gradients
          computed for nothing.
        - Notes missing parameters without a gradient, parameters of the optimizer that are frozen
          or that the model does not have, and parameters in two optimizers.
    Fix: Create the optimizer after the model is complete, from `model.parameters()`.
    References: PyTorch documentation of torch.optim, "Constructing it".
    """

    code, name, kind = "GRAD102", "optimizer-coverage", Kind.EXACT
    needs = (Needs.OWN_STEPS, Needs.OPTIMIZER)
    probes = (FirstSteps, GradientReach, GradientOrigins)

    def run(self, audit: Audit) -> Result:
        """Compare the model's parameters with the optimizers'."""
        first = audit.probe(FirstSteps)
        if not first.steps:
            first.require()
        loop = audit.loop
        missing = _missing(loop, first)
        if missing:
            return self._missed(audit, missing)
        first.require()
        strays = audit.probe(GradientReach).strays
        if strays:
            return self._unregistered(audit, strays)
        for untrained in audit.probe(GradientOrigins).untrained:
            if _is_random(audit, untrained):
                return self._left_out(audit, untrained)
        thawed, epoch = _thawed_later(audit, first)
        if thawed:
            return self._missed(audit, thawed, when=f" from epoch {epoch} on")
        notes = _notes(loop, first)
        held = len({id(p) for p in held_by(loop)})
        if notes:
            return self.noted(
                "The optimizers hold every parameter that gets a gradient. Note: "
                f"{'; '.join(notes)}.",
                location=loop.locate("optimizer"),
            )
        return self.passed(
            f"The optimizers hold every parameter that gets a gradient ({held} tensors)."
        )

    def _missed(self, audit: Audit, missing: list[str], when: str = "") -> Result:
        loop = audit.loop
        sizes = {name: p.numel() for name, p in loop.model.named_parameters()}
        elements = sum(sizes.get(name, 0) for name in missing)
        groups = _grouped(missing)
        parts = ", ".join(groups[:3]) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
        strangers = len(strangers_of(loop))
        what = (
            f"{count(len(missing), 'trainable tensor')} ({elements:,} parameters) "
            f"{verb(len(missing), 'get a gradient', 'gets a gradient')}{when} but "
            f"{verb(len(missing), 'are', 'is')} in no optimizer: {parts}"
        )
        if strangers:
            what += f"; instead it holds {count(strangers, 'tensor')} that the model does not have"
        details: dict[str, Any] = {
            "measured": f"{len(missing)} of {count(len(sizes), 'tensor')} missing",
            "threshold": "none",
            "evidence": (_table(missing, sizes),),
            "location": loop.locate("optimizer") or loop.locate("model"),
            "module": groups[0],
            "modules": tuple(groups),
        }
        if when:
            return self.failed(
                f"{what}. {verb(len(missing), 'They were', 'It was')} frozen when the optimizer "
                "was made.",
                fix="Give the optimizer what is thawed: optimizer.add_param_group({'params': "
                "model.backbone.parameters()}) beside requires_grad_(True).",
                **details,
            )
        if not strangers and self._used_for_features(audit, missing):
            return self.warned(
                f"{what}; only later layers are trained, on features of a pretrained part.",
                fix=f"To freeze it: {attribute(f'model.{groups[0]}')}.requires_grad_(False), and "
                "eval mode. To fine-tune it: add its parameters to the optimizer.",
                **details,
            )
        return self.failed(
            f"{what}.",
            fix="Create the optimizer after the model is complete: "
            "torch.optim.AdamW(model.parameters(), lr=...).",
            **details,
        )

    def _left_out(self, audit: Audit, untrained: Untrained) -> Result:
        name = untrained.type
        return self.failed(
            f"{name} gets a gradient for every step ({count(untrained.tensors, 'tensor')}) but no "
            "optimizer holds any of it: it stays as it was drawn at random.",
            measured=f"{count(untrained.tensors, 'tensor')} of {name} in no optimizer",
            threshold="none",
            location=audit.loop.locate(audit.loop.models[untrained.model])
            or audit.loop.locate("optimizer"),
            fix="torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=...), or an "
            f"optimizer of its own for {name}",
        )

    def _unregistered(self, audit: Audit, strays: tuple[UnregisteredParameters, ...]) -> Result:
        places = ", ".join(stray.place for stray in strays[:3])
        count = sum(stray.count for stray in strays)
        return self.failed(
            f"{count} trainable tensors in {places} get a gradient but are in no optimizer: they "
            "are not registered with the model, so model.parameters() does not list them.",
            fix=strays[0].registration,
            measured=f"{count} tensors outside the model's parameters",
            threshold="none",
            location=audit.loop.locate("model") or audit.loop.locate("optimizer"),
            module=strays[0].owner,
            modules=tuple(stray.owner for stray in strays),
        )

    @staticmethod
    def _used_for_features(audit: Audit, missing: list[str]) -> bool:
        """Whether the missing ones are the loaded first part of the network."""
        absent = set(missing)
        names = [
            name
            for name, p in audit.loop.model.named_parameters()
            if p.requires_grad or name in absent  # thawed on the way
        ]
        held = [i for i, name in enumerate(names) if name not in absent]
        if not held or held[0] < max(i for i, name in enumerate(names) if name in absent):
            return False
        if audit.loop.lacks(Needs.FRESH_RUN):
            return True
        audit.clock.check()
        with audit.loop.relaunched(audit.seed + 1) as other:
            differing = differing_weights(audit.loop, other)
        return not any(differing.get(name, False) for name in missing)


def _is_random(audit: Audit, untrained: Untrained) -> bool:
    """Whether another seed gives the network other weights; so it was not loaded."""
    if audit.loop.lacks(Needs.FRESH_RUN):
        return False
    audit.clock.check()
    with audit.loop.relaunched(audit.seed + 1) as other:
        if len(other.models) != len(audit.loop.models):
            return False
        here, there = (
            [p.detach() for p in loop.models[untrained.model].parameters() if varies(p)]
            for loop in (audit.loop, other)
        )
        return len(here) == len(there) > 0 and all(
            a.shape == b.shape and not torch.equal(a, b) for a, b in zip(here, there, strict=True)
        )


def _missing(loop: Loop, first: First) -> list[str]:
    """Return the parameters that got a gradient in some step, are in no optimizer and stay."""
    strays = [g for seen in first.observations for g in seen.gradients if not g.owned]
    driven = [g.parameter for g in strays if g.norm is not None and g.norm != 0.0]
    sizes: dict[str, set[float]] = {}
    for gradient in strays:
        sizes.setdefault(gradient.parameter, set()).add(gradient.weight_norm)
    # What changes all the same is updated by the program: from master weights, by hand.
    still = [name for name in dict.fromkeys(driven) if len(sizes[name]) == 1]
    return _without_masters(loop, still, [name for name in sizes if len(sizes[name]) > 1])


def _without_masters(loop: Loop, still: list[str], moved: list[str]) -> list[str]:
    """Return those of ``still`` that no master copy can stand for.

    A program that writes the weights itself, as ``moved`` shows, writes them from what its
    optimizers hold: copies of the same shapes, or all of them one after another in one vector.
    """
    strangers = strangers_of(loop)
    if not moved or not strangers:
        return still
    shapes = {n: tuple(p.shape) for n, p in loop.model.named_parameters()}
    copies = Counter(tuple(p.shape) for p in strangers)
    if not any(copies[shapes.get(name, ())] for name in moved):
        needed = sum(math.prod(shapes.get(name, ())) for name in (*moved, *still))
        return [] if sum(p.numel() for p in strangers) >= needed else still
    copies.subtract(shapes.get(name, ()) for name in moved)
    left = []
    for name in still:
        shape = shapes.get(name, ())
        if copies[shape] > 0:
            copies[shape] -= 1
        else:
            left.append(name)
    return left


def _thawed_later(audit: Audit, first: First) -> tuple[list[str], int]:
    """Return what is frozen at first, trainable in a later epoch, and in no optimizer; and that.

    An epoch is ended at its first step, so that many can be looked at.
    """
    loop = audit.loop
    frozen = {name: p for name, p in loop.model.named_parameters() if not p.requires_grad}
    if not frozen or strangers_of(loop):
        return [], 0
    audit.clock.check()
    loop.step(first.batches[0])
    begun, last = time.monotonic(), _EPOCHS if _thaws(loop) else 2
    for epoch in range(2, last + 1):
        audit.clock.check()
        step = loop.next_epoch(first.batches[0])
        if step is None or step.observation is None or time.monotonic() - begun > _SECONDS:
            break
        driven = [
            g.parameter
            for g in step.observation.gradients
            if not g.owned and g.parameter in frozen and g.norm is not None and g.norm > 0.0
        ]
        if driven:
            before = {name: frozen[name].detach().clone() for name in driven}
            loop.step(first.batches[0])
            held = {id(p) for p in _held_by_any()}
            still = [n for n in driven if same(before[n], frozen[n])]
            return [n for n in still if id(frozen[n]) not in held], epoch
    return [], 0


def _thaws(loop: Loop) -> bool:
    """Whether the source sets ``requires_grad`` to True somewhere, or may."""
    lines = (line for file in source_files(loop) for line in source_of(file).lines)
    return any(map(_THAWS.search, lines))


def _held_by_any() -> Iterator[Tensor]:
    """Yield the parameters of every optimizer there is: one may have been made on the way."""
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.optim.Optimizer):
            yield from parameters_of(thing)


def _notes(loop: Loop, first: First) -> list[str]:
    held = held_by(loop)
    notes = []
    silent = {
        gradient.parameter
        for seen in first.observations
        for gradient in seen.gradients
        if not gradient.owned and not gradient.norm
    }
    if silent:
        parts = ", ".join(_grouped(sorted(silent))[:3])
        notes.append(
            f"{count(len(silent), 'tensor')} {verb(len(silent), 'get')} no gradient and "
            f"{verb(len(silent), 'are', 'is')} in no optimizer ({parts})"
        )
    if strangers := len(strangers_of(loop)):
        notes.append(f"they also hold {count(strangers, 'tensor')} that the model does not have")
    if frozen := sum(not p.requires_grad for p in held):
        notes.append(f"they also hold {count(frozen, 'frozen tensor')}, without effect")
    if twice := len(held) - len({id(p) for p in held}):
        notes.append(f"{count(twice, 'tensor')} {verb(twice, 'are', 'is')} held twice")
    return notes


def _grouped(names: Iterable[str]) -> list[str]:
    """Return the modules that the parameters belong to, at most two levels deep."""
    return list(dict.fromkeys(".".join(name.split(".")[:-1][:2]) or name for name in names))


def _table(missing: list[str], sizes: dict[str, int]) -> Table:
    return Table(
        title="Parameters in no optimizer",
        columns=("parameter", "elements"),
        rows=tuple((name, float(sizes.get(name, 0))) for name in missing[:20]),
    )
