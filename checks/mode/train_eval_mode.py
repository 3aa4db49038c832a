"""MODE101: whether the network is in train mode while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.loop.observation import Observation
from nnaudit.measure.reseeded import differing_weights
from nnaudit.probes.averaged_copies import AveragedCopies, AveragedCopy
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.reference_networks import ReferenceNetwork, ReferenceNetworks
from nnaudit.probes.second_epoch import SecondEpoch
from nnaudit.report import Kind, Result, Table
from nnaudit.targets.layers import Dropout, StatisticsNorm, mode_matters
from nnaudit.wording import count, verb

_STOCK = (Dropout, StatisticsNorm, nn.RNNBase)
"""Layers whose mode means the same in every network."""


@dataclass(frozen=True)
class Mode:
    """A module that behaves differently in train and eval mode, and how it ran."""

    name: str
    type: str
    training: bool
    normalises: bool
    frozen: bool


class TrainEvalMode(Check):
    """Is the network in train mode during training and in eval mode during validation?

    Why: After a validation pass that called `model.eval()`, with nothing that calls
        `model.train()`, dropout is off and batch normalisation neither uses nor updates the
        statistics of the batch: regularisation is lost, and the running statistics stay at their
        initial values.
    How: Reads the mode of every module while it runs in the first steps, in calls that gradients
        flow through. Only modules whose mode matters count: their forward reads it, their settings
        make a difference (a dropout of rate 0 does not), and they are not in a frozen part.
        - Fails when all of them are in eval mode.
        - Warns when only some are; batch normalisation in eval mode while the rest trains is a
          usual way to fine-tune.
        - Scripts are also run to the end of the epoch: the modes during validation, and in the
          first step of the next epoch, are judged in the same way. Of a script without a loader
          these are the modes in which it calls its network on rows that are named as validation's.
        - Warns of a network beside the main one (a teacher, a reference) that is called in the
          steps, that no optimizer holds and whose weights stand still, with dropout or batch
          normalisation in train mode. An average that moves may be noisy by design.
        - Fails when a copy of the network that no optimizer holds (a moving average) is called with
          a validation batch, without gradients and in train mode, with all its dropouts and
          normalisations.
        - Where nnaudit writes the loop, a model built in eval mode fails if its weights are random,
          and is a note if they are loaded: libraries return pretrained networks in eval mode.
    Fix: Call `model.train()` at the start of every epoch, after validation, and `model.eval()`
        before validation.
    References: PyTorch documentation, nn.Module.train, and Autograd mechanics, "Evaluation mode".
    """

    code, name, kind = "MODE101", "train-eval-mode", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (FirstSteps, SecondEpoch, ReferenceNetworks, AveragedCopies)

    def run(self, audit: Audit) -> Result:
        """Read the modes of the first steps."""
        first = audit.probe(FirstSteps)
        modes = _modes(_flags(first.observations), audit.loop.model)
        trained = [mode for mode in modes if not mode.frozen]
        if not all(mode.training for mode in trained):
            return self._asleep(audit, first.observations, trained, "during training steps")
        if not any("" in seen.training_flags for seen in first.observations):
            first.require()  # it broke off before the model had run
        if trained and audit.loop.handed_over_in_eval:
            return self._woken(audit, trained)
        return self._between_epochs(audit) or self._beside(audit) or self._awake(modes, trained)

    def _between_epochs(self, audit: Audit) -> Result | None:
        """Judge the modes in validation, and after it."""
        second = audit.probe(SecondEpoch).seen
        later = _modes(second.training_flags, audit.loop.model) if second is not None else []
        left = [mode for mode in later if not mode.frozen]
        if second is not None and not all(mode.training for mode in left):
            when = "in training steps after the first epoch: validation, or other code between"
            return self._asleep(audit, (second,), left, f"{when} epochs, leaves them in that mode")
        flags = second.validation_flags if second is not None else audit.loop.validation_modes()
        awake = _awake_in_validation(flags, audit.loop.model)
        return self._validated_in_train_mode(audit, awake) if awake else None

    def _beside(self, audit: Audit) -> Result | None:
        """Judge networks that are not trained: averages, teachers."""
        if copy := next((each for each in audit.probe(AveragedCopies) if each.awake), None):
            return self._copy_awake(audit, copy)
        if references := audit.probe(ReferenceNetworks):
            return self._reference_awake(audit, references[0])
        return None

    def _reference_awake(self, audit: Audit, network: ReferenceNetwork) -> Result:
        layers = network.dropouts or network.normalisations
        what = (
            f"{count(layers, 'dropout')} {verb(layers, 'drop')} units at random"
            if network.dropouts
            else f"{count(layers, 'normalisation')} "
            f"{verb(layers, 'use and learn', 'uses and learns')} the statistics of the batch"
        )
        return self.warned(
            f"{network.type}, which no optimizer trains and whose weights stand still, is called "
            f"in train mode: {what} in it, so what it says of an input differs from call to call.",
            fix="teacher.eval(), after any train() that reaches it",
            measured=f"{count(layers, 'layer')} in train mode",
            threshold="none",
            location=audit.loop.locate(audit.loop.models[network.model]),
        )

    def _copy_awake(self, audit: Audit, copy: AveragedCopy) -> Result:
        return self.failed(
            f"A copy of the network ({copy.type}) is validated in train mode, with "
            f"{count(copy.awake, 'layer')} for which the mode matters: dropout is active in it, or "
            "batch normalisation uses and learns the statistics of validation batches.",
            fix="ema_model.eval()  # before validation: model.eval() does not reach it",
            measured=f"{count(copy.awake, 'layer')} in train mode",
            threshold="none",
            location=audit.loop.locate("val_loader") or audit.loop.locate("model"),
        )

    def _validated_in_train_mode(self, audit: Audit, awake: list[Mode]) -> Result:
        kinds = ", ".join(sorted({mode.type for mode in awake}))
        verbs = verb(len(awake), "are", "is")
        return self.failed(
            f"{_all(len(awake))} for which the mode matters ({kinds}) {verbs} in train mode while "
            "the script validates: dropout is active, or batch normalisation uses and learns the "
            "statistics of validation batches.",
            fix="model.eval()  # before validation, and model.train() after it",
            measured=f"{len(awake)} of {count(len(awake), 'module')} in train mode",
            threshold="none",
            evidence=(_table(awake, "validation"),),
            module=awake[0].name,
            location=audit.loop.locate("val_loader") or audit.loop.locate("model"),
        )

    def _woken(self, audit: Audit, trained: list[Mode]) -> Result:
        """Answer for a model that was built in eval mode and that nnaudit put into train mode."""
        message = (
            "The model is returned in eval mode, which matters for "
            f"{count(len(trained), 'module')}; nnaudit trains it in train mode"
        )
        fix = "Call model.train() at the start of every epoch."
        location = audit.loop.locate("model")
        # Libraries hand over loaded networks so; whoever builds one anew has no reason to.
        if audit.loop.lacks(Needs.FRESH_RUN) or not _all_random(audit):
            return self.noted(f"{message}, as your own loop should.", fix=fix, location=location)
        return self.failed(
            f"{message}. A loop that does not call model.train() would train it in eval mode, for "
            "which random weights are no reason.",
            fix="Remove model.eval() from build_model, and call model.train() at the start of "
            "every epoch.",
            location=location,
        )

    def _awake(self, modes: list[Mode], trained: list[Mode]) -> Result:
        if not modes:
            return self.passed("No module behaves differently in train and eval mode.")
        frozen = len(modes) - len(trained)
        rest = f"; {frozen} more {verb(frozen, 'belong')} to frozen parts" if frozen else ""
        return self.passed(
            f"{_all(len(trained))} for which the mode matters {verb(len(trained), 'are', 'is')} in "
            f"train mode{rest}."
        )

    def _asleep(
        self, audit: Audit, seen: Sequence[Observation], trained: list[Mode], when: str
    ) -> Result:
        model = audit.loop.model
        asleep = [mode for mode in trained if not mode.training]
        kinds = ", ".join(sorted({mode.type for mode in asleep}))
        names = ", ".join(mode.name or "the model itself" for mode in asleep[:3])
        root = any(step.training_flags.get("", True) for step in seen)
        details = {
            "measured": f"{len(asleep)} of {count(len(trained), 'module')} in eval mode",
            "threshold": "none",
            "evidence": (_table(trained),),
            "module": asleep[0].name,
            "location": audit.loop.locate("training_step")
            or audit.loop.locate(model)
            or audit.loop.locate("model"),
        }
        only_norms = all(mode.normalises for mode in asleep)
        if len(asleep) == len(trained) and not (root and only_norms):
            return self.failed(
                f"{_all(len(asleep))} for which the mode matters ({kinds}) "
                f"{verb(len(asleep), 'are', 'is')} in eval mode {when}.",
                fix="Call model.train() at the start of every epoch, and model.eval() only around "
                "validation.",
                **details,
            )
        if only_norms:
            return self.warned(
                f"{count(len(asleep), 'batch normalisation layer')} ({names}) "
                f"{verb(len(asleep), 'are', 'is')} in eval mode {when}: running statistics are "
                "used but not updated.",
                fix="Call model.train(). To freeze them by design, freeze their parameters too: "
                "for p in norm.parameters(): p.requires_grad_(False).",
                **details,
            )
        return self.warned(
            f"{len(asleep)} of the {len(trained)} modules for which the mode matters ({names}) "
            f"{verb(len(asleep), 'are', 'is')} in eval mode {when}.",
            fix="Call model.train() at the start of every epoch.",
            **details,
        )


def _all_random(audit: Audit) -> bool:
    """Whether another seed gives every weight another value."""
    audit.clock.check()
    with audit.loop.relaunched(audit.seed + 1) as other:
        differing = differing_weights(audit.loop, other)
    return bool(differing) and all(differing.values())


def _flags(observations: Sequence[Observation]) -> dict[str, bool]:
    """Return whether each module was in train mode in any step."""
    flags: dict[str, bool] = {}
    for seen in observations:
        for name, training in seen.training_flags.items():
            flags[name] = flags.get(name, False) or training
    return flags


def _modes(flags: Mapping[str, bool], model: nn.Module) -> list[Mode]:
    """Return the modules that ran and to which the mode matters; ``flags`` say in which."""
    modules = dict(model.named_modules())
    return [
        Mode(
            name=name,
            type=type(modules[name]).__name__,
            training=training,
            normalises=isinstance(modules[name], StatisticsNorm),
            frozen=_is_frozen(name, modules),
        )
        for name, training in flags.items()
        if name in modules and mode_matters(modules[name])
    ]


def _awake_in_validation(flags: dict[str, bool], model: nn.Module) -> list[Mode]:
    """Return the dropouts and normalisations, if all were in train mode on validation's batch.

    Some in train mode may be meant (Monte Carlo dropout). A forward of the user's own that reads
    the mode may return losses in train mode only, as torchvision's detectors do.
    """
    modules = dict(model.named_modules())
    modes = _modes(flags, model)
    inner = [mode for mode in modes if mode.name and not mode.frozen]
    stock = [mode for mode in inner if isinstance(modules[mode.name], _STOCK)]
    return stock if flags.get("") and all(mode.training for mode in stock) else []


def _is_frozen(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether the nearest module around ``name`` that has parameters has only frozen ones."""
    while True:
        parameters = list(modules[name].parameters())
        if parameters:
            return not any(p.requires_grad for p in parameters)
        if not name:
            return False
        name = name.rpartition(".")[0]


def _table(modes: list[Mode], when: str = "training steps") -> Table:
    rows = sorted(modes, key=lambda mode: mode.training)[:20]
    return Table(
        title=f"Modes during {when}",
        columns=("module", "type", "mode"),
        rows=tuple(
            (mode.name or "(model)", mode.type, "train" if mode.training else "eval")
            for mode in rows
        ),
    )


def _all(number: int) -> str:
    return "The only module" if number == 1 else f"All {number} modules"
