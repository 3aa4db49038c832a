"""MODE106: whether frozen parameters stay frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.errors import user_code
from nnaudit.loop.base import Loop, Needs
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.frozen_names import FreezingLoop, freezing_loops
from nnaudit.measure.living import living
from nnaudit.measure.movement import same
from nnaudit.measure.seeding import source_files
from nnaudit.report import Kind, Result, Table
from nnaudit.state.snapshot import preserved
from nnaudit.targets.layers import StatisticsNorm
from nnaudit.targets.source import source_of
from nnaudit.wording import count, verb

_STEPS = 3


class FrozenSet(Check):
    """Do frozen parameters stay frozen, and trained ones trained?

    Why: A `train()` that sets `requires_grad`, or an `eval()` that clears it, changes what is
        trained at the first validation. A backbone whose weights are frozen still changes when its
        batch normalisation is in train mode: the running statistics follow the new data, and the
        features are no longer those that were loaded.
    How: Takes a step, reads `requires_grad` of every parameter, calls `model.eval()` and
        `model.train()` as around a validation, and reads it again; then takes three steps.
        - Fails when a misspelt flag (`p.require_grad = False`), or `requires_grad = False` on a
          module, is meant to freeze what is trained: Python makes an attribute of it that nothing
          reads.
        - Fails when the source freezes parameters by a condition on their names that is true of
          none, while nothing is frozen.
        - Fails when `requires_grad` of any parameter differs: also where a `train()` that freezes
          is never called by the program.
        - Fails when an optimizer changes a parameter that does not require a gradient (by weight
          decay, momentum or an old gradient). A parameter that no optimizer holds may be an average
          of others, and is not judged.
        - Warns when running statistics change under a normalisation whose own parameters are frozen
          and stay. It does not fail: adapting the statistics to new data is a method of its own,
          and PyTorch's tutorial on transfer learning trains in this way.
    Fix: Keep frozen normalisation in eval mode: `def train(self, mode=True): super().train(mode);
        self.backbone.eval(); return self`.
    References: PyTorch documentation, Autograd mechanics, "Locally disabling gradient
        computation"; torchvision.ops.FrozenBatchNorm2d.
    """

    code, name, kind = "MODE106", "frozen-set", Kind.EXACT
    needs = (Needs.OWN_STEPS,)

    def run(self, audit: Audit) -> Result:
        """Look for flags without effect, switch modes as around a validation, take a few steps."""
        if without_effect := _misspelt(audit.loop.model):
            return self._not_frozen(audit, without_effect)
        if (freezing := _freezes_nothing(audit.loop)) is not None:
            return self._matches_nothing(freezing)
        flipped = _flipped(audit.loop)
        if flipped:
            return self._flips(audit, flipped)
        return self._steps(audit)

    def _not_frozen(self, audit: Audit, written: dict[str, str]) -> Result:
        name, attribute = next(iter(written.items()))
        what = "module" if attribute == "requires_grad" else "parameter"
        return self.failed(
            f"{attribute} = False is set on {count(len(written), what)} ({name} first), which has "
            "no effect: their parameters are trained.",
            measured=f"{count(len(written), what)} with {attribute} = False, still trained",
            threshold="none",
            module=name if what == "module" else name.rpartition(".")[0],
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
            fix="module.requires_grad_(False)"
            if what == "module"
            else "parameter.requires_grad = False",
        )

    def _matches_nothing(self, freezing: FreezingLoop) -> Result:
        return self.failed(
            f"The parameters whose names meet `{freezing.condition}` are to be frozen, and no "
            "parameter has such a name: all are trained.",
            measured="0 parameters match",
            threshold="the parameters to be frozen",
            location=freezing.location,
            fix="print([name for name, _ in model.named_parameters()]), and use the names there",
        )

    def _flips(self, audit: Audit, flipped: dict[str, bool]) -> Result:
        name = next(iter(flipped))
        thawed = sum(flipped.values())
        number = thawed or len(flipped)
        was, now = ("frozen", "trained") if thawed else ("trained", "frozen")
        return self.failed(
            f"After model.eval() and model.train(), as around validation, "
            f"{count(number, f'{was} parameter')} {verb(number, 'become', 'becomes')} {now} "
            f"({name} first).",
            measured=f"requires_grad of {count(len(flipped), 'parameter')} changes",
            threshold="no change",
            evidence=(
                Table(
                    title="Parameters whose requires_grad changes",
                    columns=("parameter", "before", "after"),
                    rows=tuple((n, str(not v), str(v)) for n, v in list(flipped.items())[:20]),
                ),
            ),
            module=name.rpartition(".")[0],
            modules=_owners(flipped),
            location=audit.loop.locate(audit.loop.model) or audit.loop.locate("model"),
            fix="set requires_grad once, before creating the optimizer, not in train() or eval()",
        )

    def _steps(self, audit: Audit) -> Result:
        loop = audit.loop
        frozen = {n: p for n, p in loop.model.named_parameters() if not p.requires_grad}
        norms = _frozen_norms(loop.model)
        if not frozen and not norms:
            return self.passed("No parameter is frozen, and switching modes freezes none.")
        weights = {name: p.detach().clone() for name, p in frozen.items()}
        buffers = {name: _statistics(norm) for name, norm in norms.items()}
        for batch in consecutive_batches(loop, _STEPS):
            audit.clock.check()
            loop.step(batch)
        moved = {name for name, p in frozen.items() if not same(p, weights[name])}
        held = {id(p) for o in loop.optimizers for group in o.param_groups for p in group["params"]}
        stepped = [name for name in frozen if name in moved and id(frozen[name]) in held]
        if stepped and not any(frozen[name].requires_grad for name in stepped):
            return self._moved(audit, stepped, len(frozen))
        drifted = [
            name
            for name, norm in norms.items()
            if not any(_inside(parameter, name) for parameter in moved)
            and any(not same(a, b) for a, b in zip(buffers[name], _statistics(norm), strict=True))
        ]
        if drifted:
            return self._drifted(audit, drifted, len(frozen))
        return self.passed(
            f"{count(len(frozen), 'frozen parameter')} and the statistics of frozen layers do not "
            "change."
        )

    def _moved(self, audit: Audit, stepped: list[str], frozen: int) -> Result:
        return self.failed(
            f"{len(stepped)} of {count(frozen, 'frozen parameter')} "
            f"{verb(len(stepped), 'change')} in {_STEPS} steps, because the optimizer still "
            f"updates them ({stepped[0]} first).",
            measured=f"{count(len(stepped), 'frozen parameter')} {verb(len(stepped), 'change')}",
            threshold="none",
            module=stepped[0].rpartition(".")[0],
            modules=_owners(stepped),
            location=audit.loop.locate("optimizer"),
            fix="AdamW([p for p in model.parameters() if p.requires_grad], lr=...)",
        )

    def _drifted(self, audit: Audit, drifted: list[str], frozen: int) -> Result:
        modules = dict(audit.loop.model.named_modules())
        rows: tuple[tuple[str, str], ...] = tuple(
            (name, type(modules[name]).__name__) for name in drifted[:20]
        )
        details: dict[str, Any] = {
            "evidence": (
                Table(
                    title="Running statistics that change", columns=("module", "type"), rows=rows
                ),
            )
        }
        return self.warned(
            f"The running statistics of {count(len(drifted), 'frozen normalisation layer')} change "
            f"in {_STEPS} steps ({drifted[0]} first), because train mode is on for them.",
            measured=f"{count(len(drifted), 'normalisation layer')} of a network with "
            f"{count(frozen, 'frozen parameter')}",
            threshold="none",
            module=drifted[0],
            modules=tuple(drifted),
            location=audit.loop.locate(modules[drifted[0].partition(".")[0]])
            or audit.loop.locate("model"),
            fix="def train(self, mode=True): super().train(mode); self.backbone.eval(); "
            "return self",
            **details,
        )


_MISSPELT = re.compile(r"_?requires?d?_?grad(s|ient|ients)?_?$", re.IGNORECASE)
"""What people write for ``requires_grad``: Python makes a new attribute of it without a word."""


def _misspelt(model: nn.Module) -> dict[str, str]:
    """Return the attributes meant to freeze that do not, by the parameter or module they are on.

    On a parameter, any spelling but the right one; on a module, ``requires_grad`` itself, unless
    the module's class keeps a setting of that name or nothing in it is trained.
    """
    found = {
        name: attribute
        for name, p in model.named_parameters()
        for attribute, value in vars(p).items()
        if value is False and p.requires_grad and _MISSPELT.match(attribute)
    }
    for name, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters())
        if vars(module).get("requires_grad") is False and trained and not _own_setting(module):
            found[name] = "requires_grad"
    return found


def _freezes_nothing(loop: Loop) -> FreezingLoop | None:
    """Return a loop that is to freeze parameters by their names and meets none of them.

    Names are those of every module that is alive: another network, or a part of this one, may be
    what it goes through. Where anything is frozen, parameters may have been renamed since.
    """
    if any(not p.requires_grad for model in loop.models for p in model.parameters()):
        return None
    names = {name for module in living(nn.Module) for name, _ in module.named_parameters()}
    found = (each for file in source_files(loop) for each in freezing_loops(source_of(file), names))
    return next((each for each in found if not each.matches), None)


def _own_setting(module: nn.Module) -> bool:
    """Whether a method of the module's class names ``requires_grad`` as an attribute."""
    own = [cls for cls in type(module).__mro__ if cls not in nn.Module.__mro__]
    codes = [getattr(value, "__code__", None) for cls in own for value in vars(cls).values()]
    return any(code is not None and "requires_grad" in code.co_names for code in codes)


def _flipped(loop: Loop) -> dict[str, bool]:
    """Return what requires_grad becomes, for parameters where it changes over a validation.

    What it is in training is read after a step: train() may be called on its way, or never.
    """
    model = loop.model
    with preserved(loop.subjects):
        for batch in consecutive_batches(loop, 1):
            loop.step(batch)
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        with user_code("switching between train and eval mode"):
            model.eval()
            model.train()
        after = {name: p.requires_grad for name, p in model.named_parameters()}
    return {n: after[n] for n, flag in before.items() if n in after and after[n] != flag}


def _frozen_norms(model: nn.Module) -> dict[str, StatisticsNorm]:
    """Return normalisations with running statistics whose own parameters are all frozen."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, StatisticsNorm) and module.running_mean is not None:
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                found[name] = module
    return found


def _statistics(norm: StatisticsNorm) -> tuple[Tensor, ...]:
    values = (norm.running_mean, norm.running_var)
    return tuple(value.detach().clone() for value in values if value is not None)


def _inside(parameter: str, module: str) -> bool:
    return parameter.startswith(f"{module}.") if module else True


def _owners(parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that hold the parameters with these names, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
