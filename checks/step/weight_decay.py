"""STEP110: whether weight decay is decoupled, on the right parameters, and in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.planned_rate import planned_lr
from nnaudit.measure.decayed_names import unmet_names
from nnaudit.measure.seeding import source_files
from nnaudit.report import Kind, Result, Table
from nnaudit.targets.layers import NORMS
from nnaudit.targets.source import source_of
from nnaudit.training.optimizers import decouples_decay, is_adaptive
from nnaudit.wording import count, verb


@dataclass(frozen=True)
class Decay:
    """The weight decay of one parameter group.

    Attributes:
        optimizer: its class.
        amount: ``weight_decay``.
        rate: the highest learning rate the group is planned to reach.
        decoupled: taken off the weights, as AdamW does, not added to the gradient.
        adaptive: gradients are divided by their size, and an added penalty with them.
        vectors: how many of its parameters are biases, gains and the like.
        tensors: how many parameters it has.
        gains: of its parameters, those of normalisation layers.
    """

    optimizer: str
    amount: float
    rate: float
    decoupled: bool
    adaptive: bool
    vectors: int
    tensors: int
    gains: int = 0


class WeightDecay(Check):
    """Is weight decay decoupled, on the right parameters, and in proportion?

    Why: In Adam an L2 penalty is added to the gradient and then divided by the gradient's size, so
        weights with large gradients are hardly decayed: weight_decay=0.01 means one thing in AdamW
        and quite another in Adam. Decay on biases and on the gains of normalisation costs capacity
        without regularising. And a decay that is too large shrinks the weights faster than the
        network learns.
    How: Read from the optimizer's parameter groups; no step is taken. It warns in four cases, and
        notes the last.
        - Adam (also NAdam, RAdam, Adamax, RMSprop, Adagrad) with an L2 penalty of 0.01 or more,
          AdamW's default: L2 penalties in use are 1e-3 and below, and such are taken as by design.
        - More than the option `l2` is added to the gradient.
        - Decay is subtracted from the weights, as in AdamW, and decay times learning rate exceeds
          the option `shrink` per step (0.01 halves the weights every 70 steps; vision transformers
          do well with 0.3 at a rate of 1e-3).
        - A list of names in the source that are to be left out (one of them a bias) holds one that
          is in no parameter's name, one group without decay has biases, and one with decay has the
          gains of normalisation: they go by another name. A list for several networks, of which one
          name is met, leaves no gain in a decayed group.
        - Decay of 0.05 or more on biases and gains is a note. Whether any decay is needed only
          overfitting shows: GEN101.
    Fix: torch.optim.AdamW(model.parameters(), lr=..., weight_decay=0.01)
    References: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
    """

    code, name, kind = "STEP110", "weight-decay", Kind.JUDGEMENT
    needs = (Needs.OPTIMIZER,)
    options: ClassVar[dict[str, float]] = {"l2": 0.1, "shrink": 0.01}

    def run(self, audit: Audit) -> Result:
        """Read the groups."""
        loop = audit.loop
        decays = _decays(loop)
        active = [decay for decay in decays if decay.amount > 0.0]
        if not loop.optimizers:
            return self.skipped("There is no optimizer.")
        if not active:
            return self.passed(
                "No weight decay is used. If the network overfits (see GEN101), start with 0.01 in "
                "AdamW."
            )
        details: dict[str, Any] = {
            "evidence": (_table(decays),),
            "location": loop.locate("optimizer"),
        }
        if (missed := self._missed(loop, decays, details)) is not None:
            return missed
        for decay in active:
            warning = self._warning(audit, decay, details)
            if warning is not None:
                return warning
        return self._vectors(active, details)

    def _missed(self, loop: Loop, decays: list[Decay], details: dict[str, Any]) -> Result | None:
        """Warn of gains that are decayed because what should leave them out names no parameter."""
        gains = sum(decay.gains for decay in decays if decay.amount > 0.0)
        if not gains or not any(decay.amount == 0.0 and decay.vectors for decay in decays):
            return None
        names = [name for model in loop.models for name, _ in model.named_parameters()]
        sources = (source_of(file) for file in source_files(loop))
        listed = next((each for source in sources for each in unmet_names(source, names)), None)
        if listed is None:
            return None
        return self.warned(
            f"{listed.name!r} is to be left out of weight decay and is in no parameter's name: "
            f"{count(gains, 'parameter')} of normalisation layers {verb(gains, 'are', 'is')} "
            "decayed with the weights.",
            measured=f"0 parameters named {listed.name!r}",
            threshold="the names of this network",
            fix="decay by shape: [p for p in model.parameters() if p.ndim >= 2]",
            **{**details, "location": listed.location},
        )

    def _warning(self, audit: Audit, decay: Decay, details: dict[str, Any]) -> Result | None:
        if decay.adaptive and not decay.decoupled and decay.amount >= 0.01:
            return self.warned(
                f"{decay.optimizer} adds weight_decay={decay.amount:g} to the gradient and divides "
                "it by the gradient's size: weights with large gradients are hardly decayed.",
                measured=f"an L2 penalty of {decay.amount:g} in {decay.optimizer}",
                threshold="below 0.01",
                fix=f"torch.optim.AdamW(model.parameters(), lr={decay.rate:g}, "
                f"weight_decay={decay.amount:g})",
                **details,
            )
        if not decay.decoupled and decay.amount > self.option(audit, "l2"):
            return self.warned(
                f"{decay.optimizer} adds a weight decay of {decay.amount:g} to the gradient, more "
                f"than {self.option(audit, 'l2'):g}: it may outweigh the loss.",
                measured=f"weight_decay={decay.amount:g}",
                threshold=f"at most {self.option(audit, 'l2'):g}",
                fix="set weight_decay=1e-4, which is usual for SGD",
                **details,
            )
        shrink = decay.amount * decay.rate
        if decay.decoupled and shrink > self.option(audit, "shrink"):
            return self.warned(
                f"Weight decay shrinks the weights by {100 * shrink:.2g}% per step (weight_decay="
                f"{decay.amount:g} at learning rate {decay.rate:g}).",
                measured=f"{100 * shrink:.2g}% per step",
                threshold=f"at most {100 * self.option(audit, 'shrink'):g}% per step",
                fix="set weight_decay=0.01",
                **details,
            )
        return None

    def _vectors(self, active: list[Decay], details: dict[str, Any]) -> Result:
        strong = [decay for decay in active if decay.amount >= 0.05 and decay.vectors]
        vectors = sum(decay.vectors for decay in strong)
        amounts = ", ".join(sorted({f"{decay.amount:g}" for decay in active}))
        if vectors and any(decay.tensors > decay.vectors for decay in strong):
            return self.noted(
                f"Weight decay of {amounts} also applies to {vectors} biases and gains, which "
                "usually get a parameter group with weight_decay=0.",
                **details,
            )
        names = ", ".join(sorted({decay.optimizer for decay in active}))
        return self.passed(f"Weight decay is {amounts} in {names}.", evidence=details["evidence"])


def _decays(loop: Loop) -> list[Decay]:
    found = []
    norms = {
        id(parameter)
        for model in loop.models
        for module in model.modules()
        if isinstance(module, NORMS) or type(module).__name__.endswith("Norm")
        for parameter in module.parameters(recurse=False)
    }
    for optimizer in loop.optimizers:
        decoupled = decouples_decay(optimizer)
        ours = type(optimizer).__module__.startswith("torch.optim")
        for group in optimizer.param_groups:
            amount = group.get("weight_decay", 0.0)
            if not ours and not decoupled:
                continue  # what another library's weight_decay means is its own affair
            shapes = [parameter.ndim for parameter in group["params"]]
            found.append(
                Decay(
                    optimizer=type(optimizer).__name__,
                    amount=float(amount) if isinstance(amount, (int, float)) else 0.0,
                    rate=planned_lr(loop, group),
                    decoupled=bool(group.get("decoupled_weight_decay", decoupled)) or decoupled,
                    adaptive=is_adaptive(optimizer),
                    vectors=sum(ndim <= 1 for ndim in shapes),
                    tensors=len(shapes),
                    gains=sum(id(parameter) in norms for parameter in group["params"]),
                )
            )
    return found


def _table(decays: list[Decay]) -> Table:
    return Table(
        title="Weight decay by parameter group",
        columns=("optimizer", "weight_decay", "learning rate", "tensors", "biases and gains"),
        rows=tuple((d.optimizer, d.amount, d.rate, d.tensors, d.vectors) for d in decays[:20]),
    )
